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
