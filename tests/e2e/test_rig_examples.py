"""The examples for rigs: an emulated board that boots, and gateways for boards on a network."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from examples import boot_unicorn, gateway_http
from tests.running import REPOSITORY, RunningDaemon
from tests.system.checkout import kernel_package
from vuserd.client import Client

IMAGE: Final = b"MZ" + os.urandom(300_000)


@pytest.fixture(scope="module")
def daemon(
    rust_virtiofsd: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningDaemon]:
    folder = tmp_path_factory.mktemp("network")
    files = folder / "files"
    (files / "sub").mkdir(parents=True)
    (files / "Image").write_bytes(IMAGE)
    (files / "sub" / "a name, ф").write_bytes(b"here")
    (files / "empty").touch()
    with RunningDaemon({"lab": files}, folder / "s", rust_virtiofsd) as daemon:
        yield daemon


@contextmanager
def gateway(
    name: str, daemon: RunningDaemon, port: int = 0, end: signal.Signals = signal.SIGINT
) -> Iterator[str]:
    """Run a gateway; yield the address that it tells."""
    program = str(REPOSITORY / "examples" / name)
    command = [sys.executable, program, "--listen", f"127.0.0.1:{port}"]
    with subprocess.Popen(
        [*command, "--socket", daemon.socket], stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        try:
            told = running.stdout.readline()
            assert told.startswith("serving on "), told
            yield told.split()[-1]
        finally:
            running.send_signal(end)
            assert running.wait(30) == 0


def curl(*words: str) -> bytes:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("no curl on this machine")
    command = [program, "--silent", "--show-error", "--max-time", "60", *words]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


def status(*words: str) -> str:
    return curl("-o", os.devnull, "-w", "%{http_code}", *words).decode()


@pytest.fixture(scope="module")
def url(daemon: RunningDaemon) -> Iterator[str]:
    with gateway("gateway_http.py", daemon) as url:
        yield url


class TestHttp:
    def test_files(self, url: str) -> None:
        assert curl(f"{url}lab/Image") == IMAGE
        assert curl(f"{url}lab/sub/a%20name,%20%D1%84") == b"here"
        assert curl(f"{url}lab/empty") == b""
        # several over one connection
        assert curl(f"{url}lab/empty", f"{url}lab/Image", f"{url}lab/empty") == IMAGE

    def test_parts(self, url: str) -> None:
        for asked, part in (("0-0", IMAGE[:1]), ("5-99999999", IMAGE[5:]), ("-7", IMAGE[-7:])):
            assert curl("-r", asked, f"{url}lab/Image") == part
        assert status("-r", "5-9", f"{url}lab/Image") == "206"
        assert status("-r", f"{len(IMAGE)}-", f"{url}lab/Image") == "416"

    def test_going_on(self, url: str, tmp_path: Path) -> None:
        (tmp_path / "part").write_bytes(IMAGE[:1000])
        curl("-C", "-", "-o", str(tmp_path / "part"), f"{url}lab/Image")
        assert (tmp_path / "part").read_bytes() == IMAGE

    def test_versions(self, url: str) -> None:
        head = curl("--head", f"{url}lab/Image").decode()
        [tag] = [line.split(" ", 1)[1].strip() for line in head.splitlines() if "ETag" in line]
        assert f"Content-Length: {len(IMAGE)}\r\n" in head
        assert status("-H", f"If-None-Match: {tag}", f"{url}lab/Image") == "304"
        assert status("-H", f"If-Range: {tag}", "-r", "0-9", f"{url}lab/Image") == "206"
        assert status("-H", 'If-Range: "other"', "-r", "0-9", f"{url}lab/Image") == "200"

    def test_what_it_does_not_serve(self, url: str) -> None:
        assert status(f"{url}lab/nowhere") == "404"
        assert status(f"{url}nowhere/Image") == "404"
        assert status(f"{url}lab/sub") == "403"
        assert status("--path-as-is", f"{url}lab/../../../etc/passwd") == "404"
        assert status("-X", "PUT", "-d", "x", f"{url}lab/Image") == "501"


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("", (0, 10)),
        ("bytes=2-4", (2, 5)),
        ("bytes=2-", (2, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-30", (0, 10)),
        ("bytes=10-", None),
        ("bytes=4-2", None),
        ("bytes=-0", None),
        ("bytes=-", (0, 10)),
        ("bytes=1-2,4-5", (0, 10)),
        ("lines=1-2", (0, 10)),
    ],
)
def test_ranges(asked: str, part: tuple[int, int] | None) -> None:
    assert gateway_http.part_of(10, asked) == part


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_tftp(
    daemon: RunningDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: signal.Signals
) -> None:
    pytest.importorskip("tftpy")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    with gateway("gateway_tftp.py", daemon, port=_free_port(), end=end) as url:
        assert curl("--tftp-blksize", "1468", f"{url}lab/Image") == IMAGE
        (tmp_path / "new").write_bytes(b"x")
        for words in ([f"{url}lab/nowhere"], ["-T", str(tmp_path / "new"), f"{url}lab/new"]):
            with pytest.raises(subprocess.CalledProcessError):
                curl(*words)
    assert os.listdir(tmp_path / "temporary") == []


def _free_port() -> int:
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_device_tree_is_what_its_specification_says() -> None:
    blob = boot_unicorn.flattened({"a": b"12345", "n": {"a": b""}})
    cells = boot_unicorn.cells
    structure = (
        cells(1) + bytes(4)
        + cells(3, 5, 0) + b"12345\0\0\0"
        + cells(1) + b"n\0\0\0" + cells(3, 0, 0) + cells(2)
        + cells(2, 9)
    )  # fmt: skip
    size = 56 + len(structure) + 2
    head = cells(0xD00DFEED, size, 56, 56 + len(structure), 40, 17, 16, 0, 2, len(structure))
    assert blob == head + bytes(16) + structure + b"a\0"


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="the kernel comes by apt")
@pytest.mark.timeout(900)
def test_an_emulated_board_boots(
    rust_virtiofsd: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    [kernel] = kernel_package().glob("boot/vmlinuz-*")
    (tmp_path / "board.dtb").write_bytes(boot_unicorn.flattened(boot_unicorn.BOARD))
    exports = {"boot": kernel.parent, "board": tmp_path}
    with (
        RunningDaemon(exports, tmp_path / "s", rust_virtiofsd) as daemon,
        Client.connect(daemon.socket) as client,
    ):
        assert boot_unicorn.boot(client, ("boot", kernel.name), ("board", "board.dtb"))
    assert f"Machine model: {boot_unicorn.MODEL}\n" in capfd.readouterr().out
