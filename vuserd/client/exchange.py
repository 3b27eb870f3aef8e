"""The system calls of both clients: bytes and descriptors between a socket and the core.

What they raise is the socket's OSError, as it came.
"""

import socket
from typing import Any, Final

from vuserd.client.core import ClientCore, Ticket
from vuserd.descriptors import ancillary_space, ancillary_with, received_descriptors

#: More than a response has: a daemon that sends too many is understood, and they are closed.
_ANCILLARY_SPACE: Final = ancillary_space(4)


def send_some(sock: socket.socket, core: ClientCore, flags: int) -> None:
    """Send as much as one call takes."""
    piece, descriptors = core.outgoing.next_piece()
    if descriptors:
        count = sock.sendmsg([piece], ancillary_with(descriptors), flags)
    else:
        count = sock.send(piece, flags)
    core.outgoing.sent(count)


def receive_some(sock: socket.socket, core: ClientCore, flags: int = 0) -> list[Ticket[Any]]:
    """Receive once; give the calls that are done by it.

    Where the core does not expect a descriptor, the kernel closes whatever comes.
    """
    buffer = core.receive_buffer()
    if not core.expects_descriptors:
        return core.received(sock.recv_into(buffer, 0, flags))
    count, ancillary, _, _ = sock.recvmsg_into(
        [buffer], _ANCILLARY_SPACE, flags | socket.MSG_CMSG_CLOEXEC
    )
    return core.received(count, received_descriptors(ancillary))
