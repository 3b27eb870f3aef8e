"""A backend that the daemon did not start, where nobody has started it."""

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
