"""The daemon where there is little around it: no temporary folder, a root that is read-only."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.running import REPOSITORY
from vuserd.client import Client
from vuserd.client.errors import CannotConnect

_START = 20.0

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make these namespaces")


@contextlib.contextmanager
def serving(before: Sequence[str], backend: str, directory: Path, **more: str) -> Iterator[Client]:
    """Run a daemon behind the command ``before``, on an abstract socket: it needs no file."""
    address = f"@vuserd-test-{secrets.token_hex(8)}"
    command = [sys.executable, "-m", "vuserd.cli", "serve", "--socket", address]
    command += ["--export", f"files={directory}", "--backend", backend]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | more
    with subprocess.Popen([*before, *command], env=environment, stdin=subprocess.DEVNULL) as daemon:
        try:
            with connected(address) as client:
                yield client
        finally:
            daemon.send_signal(signal.SIGTERM)
            status = daemon.wait(timeout=30)
        assert status == 0


def connected(address: str) -> Client:
    deadline = time.monotonic() + _START
    while True:
        try:
            return Client.connect(address)
        except CannotConnect:
            assert time.monotonic() < deadline
            time.sleep(0.01)  # there is nothing to wait on before the socket is there


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "Image").write_bytes(b"kernel")
    return folder


@pytest.mark.parametrize("length", [200, 4000])
def test_a_temporary_folder_with_a_long_name(virtiofsd: str, files: Path, length: int) -> None:
    with serving([], virtiofsd, files, TMPDIR="/" + "long-name/" * (length // 10)) as client:
        assert client.read("files", "Image", 0, 16) == b"kernel"


@as_root
def test_a_root_that_is_read_only(virtiofsd: str, files: Path) -> None:
    """No file can be made anywhere."""
    script = (
        "awk '{print $5}' /proc/self/mountinfo | while read -r point; do"
        ' mount -o remount,ro,bind "$point" 2>/dev/null; done;'
        ' for each in /tmp /var/tmp /dev/shm /run "$PWD"; do'
        ' touch "$each/vuserd-probe" 2>/dev/null && exit 9; done; exec "$@"'
    )
    before = ["unshare", "--mount", "sh", "-c", script, "sh"]
    with serving(before, virtiofsd, files) as client:
        assert client.read("files", "Image", 0, 16) == b"kernel"


# -- what vuserd check promises --------------------------------------------------------------------

NO_CAPABILITIES = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]


def checked(before: Sequence[str], backend: str, directory: Path) -> tuple[int, str]:
    """Run ``vuserd check`` behind the command ``before``: its status, and what it says."""
    config = directory.parent / "vuserd.toml"
    config.write_text(
        f'backend = "{backend}"\n[[export]]\nname = "files"\npath = "{directory}"\n'
        '[[listen]]\nsocket = "@vuserd-checked"\n'
    )
    command = [*before, sys.executable, "-m", "vuserd.cli", "check", "--config", str(config)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert ended.stderr == ""
    return ended.returncode, ended.stdout


def test_a_backend_that_starts_is_promised(virtiofsd: str, files: Path) -> None:
    status, said = checked([], virtiofsd, files)
    assert status == 0
    assert "a backend starts, with the sandbox" in said


@as_root
def test_no_backend_is_promised_that_does_not_start(virtiofsd: str, files: Path) -> None:
    """Root without capabilities, as in a container without any: what check says is so."""
    files.chmod(0o755)
    status, said = checked(NO_CAPABILITIES, virtiofsd, files)
    with serving(NO_CAPABILITIES, virtiofsd, files) as client:
        [export] = client.exports()
    assert (status, export.state) in ((0, "up"), (1, "failed"))
    assert ("no backend starts: " in said) == (export.state == "failed")
    if status:
        assert "give this container CAP_SYS_ADMIN" in said


@as_root
def test_mounts_that_a_backend_will_not_see_are_told(virtiofsd: str, files: Path) -> None:
    for propagation, told in (("private", True), ("shared", False)):
        before = ["unshare", "--mount", "--propagation", propagation]
        status, said = checked(before, virtiofsd, files)
        assert status == 0
        assert ("do not reach a backend that runs" in said) == told
