"""A backend that the daemon did not start, where nobody has started it."""

import socket
from pathlib import Path

import pytest

from vuserd.backend.adopted import AdoptedBackend
from vuserd.errors import BackendDown


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("/run/vuserd/no/vfs.sock", "start a virtiofsd with --socket-path=/run/vuserd/no/vfs.sock"),
        (
            r"/run/vuserd/backend/srv-no\x2done.sock",
            r"systemctl enable --now 'vuserd-backend@srv-no\x2done.socket'",
        ),
    ],
)
async def test_how_to_start_one(path: str, advice: str) -> None:
    with pytest.raises(BackendDown) as down:
        await AdoptedBackend(path).connect()
    assert str(down.value).endswith(f"{path}: no such file or directory; {advice}")


async def test_a_queue_that_is_full(tmp_path: Path) -> None:
    """Of connections that wait for a process that takes none."""
    path = str(tmp_path / "vfs.sock")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(path)
        listener.listen(0)
        waiting.connect(path)
        with pytest.raises(BackendDown, match=f"takes connections at {path}, and no more"):
            await AdoptedBackend(path).connect()
