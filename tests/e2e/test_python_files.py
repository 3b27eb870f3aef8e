"""What Python programs do with whole files, against real backends."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.running import RunningDaemon
from tests.unit.faces import KINDS, connecting
from vuserd.client import Client
from vuserd.client.errors import RemoteError

_CONFIGURATION: Final = """
backend = "{backend}"
[limits]
user_images = "1M"
[[listen]]
socket = "{folder}/s"
[[export]]
name = "files"
path = "{folder}/files"
"""
LARGE: Final = os.urandom(5_000_001)  # than any image may be


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "large").write_bytes(LARGE)
    (folder / "small").write_bytes(LARGE[:1000])
    return folder


@pytest.fixture(params=KINDS)
def client(
    request: pytest.FixtureRequest, rust_virtiofsd: str, tmp_path: Path, files: Path
) -> Iterator[Client]:
    assert files.parent == tmp_path
    (tmp_path / "config").write_text(_CONFIGURATION.format(backend=rust_virtiofsd, folder=tmp_path))
    config = ("--config", str(tmp_path / "config"))
    with (
        RunningDaemon({}, tmp_path / "s", None, *config, configured=True),
        connecting(request.param)(str(tmp_path / "s")) as connected,
    ):
        yield connected


def test_a_file_in_parts(client: Client, files: Path) -> None:
    with client.open("files", "small") as small:
        assert small.read() == LARGE[:1000]
    with client.open("files", "large") as file:
        assert file.read(10) == LARGE[:10]
        assert file.seek(-10, os.SEEK_END) == len(LARGE) - 10
        assert file.read() == LARGE[-10:]
        assert file.seek(3_000_000) == 3_000_000
        assert file.read() == LARGE[3_000_000:]
        os.unlink(files / "large")  # it stays open, as here
        file.seek(0)
        with pytest.raises(RemoteError, match="CHANGED"):  # its ctime shows that
            file.read()
    assert client.read_bytes("files", "small") == LARGE[:1000]


def test_a_file_that_is_written_into(client: Client, files: Path) -> None:
    with client.open("files", "large") as file:
        assert file.read(10) == LARGE[:10]
        with open(files / "large", "r+b") as written:
            written.seek(4_000_000)
            written.write(b"other")
        file.seek(4_000_000)
        with pytest.raises(RemoteError, match="files:large: read: the file changed"):
            file.read()


def test_a_log_that_grows(client: Client, files: Path) -> None:
    """And is a prefix of what is in it later, which may end within a line: at a page's end."""
    ends = threading.Event()

    def append() -> None:
        with open(files / "log", "ab", buffering=0) as log:
            for number in range(1_000_000):
                log.write(b"%08d\n" % number)
                if ends.is_set():
                    return

    writer = threading.Thread(target=append)
    writer.start()
    try:
        while not (files / "log").exists():
            pass
        for _ in range(5):
            content = client.read_bytes("files", "log")
            written = b"".join(b"%08d\n" % number for number in range(len(content) // 9 + 1))
            assert written.startswith(content)
    finally:
        ends.set()
        writer.join()


def test_a_tree(client: Client, files: Path, tmp_path: Path) -> None:
    (files / "boot" / "dtbs").mkdir(parents=True)
    (files / "boot" / "dtbs" / "board.dtb").write_bytes(b"dtb")
    assert [*client.glob("files", "/**/*.dtb")] == ["/boot/dtbs/board.dtb"]
    assert [*client.glob("files", "*")] == ["boot", "large", "small"]
    found = {entry.name: entry.stat.size for entry in client.iterdir("files", "/", attrs=True)}
    assert found["small"] == 1000
    client.download("files", "/boot/dtbs/board.dtb", tmp_path / "board.dtb")
    assert (tmp_path / "board.dtb").read_bytes() == b"dtb"


@pytest.mark.skipif(os.geteuid() != 0, reason="no sandbox but root's is to be had in procfs")
def test_files_without_a_size(virtiofsd: str, tmp_path: Path) -> None:
    folder = Path("/proc/sys/kernel")
    with (
        RunningDaemon({"files": folder}, tmp_path / "s", virtiofsd),
        Client.connect(str(tmp_path / "s")) as client,
    ):
        assert client.stat("files", "ostype").size == 0
        assert client.read_text("files", "ostype") == "Linux\n"
        with client.open("files", "ostype") as file:
            assert file.readline() == b"Linux\n"
