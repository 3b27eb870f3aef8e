"""How much the kernel may hold of replies that a client has not read: it is the daemon's memory.

Where the daemon runs in a cgroup, these bytes count against that, and no other limit counts them.
"""

import contextlib
import socket
from typing import Final

from vuserd.delivery.headroom import HEADROOM

#: Bytes that let one send carry a whole payload buffer, for the first connections of a user:
#: thousands of them gain nothing from it.
_WIDE: Final = 2 << 20
_MOST_WIDE: Final = 64
_SO_SNDBUFFORCE: Final = 32
#: The kernel lets twice as much be used.
_USED: Final = 2
#: The parts of the daemon's memory that a user's wide buffers and the others may take.
_PART_OF_WIDE: Final = 16
_PART_OF_OTHERS: Final = 8


def fit_send_buffer(sock: socket.socket, number: int, most: int) -> None:
    """Set the size of a client's send buffer.

    Args:
        sock: of the client.
        number: how many connections its user has, this one among them.
        most: how many the user may have.

    """
    memory = HEADROOM.total()
    if number <= min(_MOST_WIDE, memory // (_PART_OF_WIDE * _USED * _WIDE)):
        _widen(sock)
        return
    fair = memory // (_PART_OF_OTHERS * most)
    with contextlib.suppress(OSError):  # more will do, and the kernel has a least of its own
        if fair < sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, fair // _USED)


def _widen(sock: socket.socket) -> None:
    """Let one send carry a whole payload buffer, which saves both sides wake-ups."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _WIDE)
    except OSError:  # only root may exceed net.core.wmem_max
        with contextlib.suppress(OSError):  # less will do
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _WIDE)
