"""The system calls of both clients: bytes and descriptors between a socket and the core.

What they raise is the socket's OSError, as it came.
"""

import socket
from typing import Any, Final

from vuserd.client.core import ClientCore, Ticket
from vuserd.client.foreign import MOST_DESCRIPTORS
from vuserd.wire.descriptors import ancillary_space, ancillary_with, received_descriptors

#: How often to receive without a look at anything else; a socket holds less than that.
MOST_AT_ONCE: Final = 32
#: Also for descriptors that nobody asked for, or the kernel would close them here and now.
_ANCILLARY_SPACE: Final = ancillary_space(MOST_DESCRIPTORS)


def send_some(sock: socket.socket, core: ClientCore, flags: int) -> None:
    """Send as much as one call takes."""
    piece, descriptors = core.outgoing.next_piece()
    if descriptors:
        count = sock.sendmsg([piece], ancillary_with(descriptors), flags)
    else:
        count = sock.send(piece, flags)
    core.outgoing.sent(count)


def receive_some(sock: socket.socket, core: ClientCore, flags: int = 0) -> list[Ticket[Any]]:
    """Receive once; give the calls that are done by it."""
    buffer = core.receive_buffer()
    count, ancillary, _, _ = sock.recvmsg_into(
        [buffer], _ANCILLARY_SPACE, flags | socket.MSG_CMSG_CLOEXEC
    )
    return core.received(count, received_descriptors(ancillary))
