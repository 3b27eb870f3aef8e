"""A connection's socket and its core: what all clients do alike with the two.

Each errno of the socket means one thing for the calls on it, and that is told here alone.
"""

import os
import socket
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from vuserd.client.core.connection import ClientCore
from vuserd.client.core.ticket import Ticket
from vuserd.client.descriptors import MOST_DESCRIPTORS, hang_up
from vuserd.client.errors import describe_loss
from vuserd.wire.descriptors import ancillary_space, ancillary_with, received_descriptors

#: How often to receive without a look at anything else; a socket holds less than that.
MOST_AT_ONCE: Final = 32
#: Also for descriptors that nobody asked for, or the kernel would close them here and now.
ANCILLARY_SPACE: Final = ancillary_space(MOST_DESCRIPTORS)
SEND_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


#: What ``recvmsg_into`` returns: bytes, what came beside them, flags, and whose they are.
Received: TypeAlias = tuple[int, list[tuple[int, int, bytes]], int, Any]


class Link:
    """A connected stream socket, which is the link's from now on, and its core."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._maker = os.getpid()
        self.core = ClientCore()
        #: True while bytes are moved that the core does not know of, yet.
        self.is_moving = False

    def close(self) -> None:
        """Close the connection; calls in flight fail with ConnectionLost."""
        self.core.lost("the client was closed")
        hang_up(self._socket, self._maker)

    def send(self) -> None:
        """Send what the socket takes without waiting."""
        self._send()

    def hear(self) -> None:
        """Take in what has come, without waiting: the daemon's last words, after it has ended."""
        for _ in range(MOST_AT_ONCE):
            if self.core.is_over or self._receive(socket.MSG_DONTWAIT) is None:
                break

    def _send(self) -> list[Ticket[Any]]:
        """Send what the socket takes; return the calls that fail with it."""
        core = self.core
        core.check_books()
        self.is_moving = True
        try:
            while core.outgoing:
                core.sent(self._put(*core.outgoing.next_piece()))
        except BlockingIOError:
            return []
        except BrokenPipeError:  # what it said before it went away can still be received
            return core.closed_for_requests()
        except ConnectionResetError:
            return core.closed_for_requests(unread=True)
        except OSError as error:
            return core.lost(describe_loss(error))
        finally:
            self.is_moving = False
        return []

    def _put(self, piece: bytes | bytearray, descriptors: Sequence[int]) -> int:
        """Send once; return how many bytes the socket took."""
        if descriptors:
            return self._socket.sendmsg([piece], ancillary_with(descriptors), SEND_FLAGS)
        return self._socket.send(piece, SEND_FLAGS)

    def _get(self, buffer: memoryview, flags: int) -> Received:
        """Receive once, into a buffer; return what ``recvmsg_into`` does."""
        return self._socket.recvmsg_into([buffer], ANCILLARY_SPACE, flags)

    def _receive(self, flags: int = 0) -> list[Ticket[Any]] | None:
        """Receive once; return the calls that are done by it, None where nothing has come."""
        core = self.core
        core.check_books()
        self.is_moving = True
        try:
            try:
                count, ancillary, _, _ = self._get(
                    core.receive_buffer(), flags | socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return None
            except ConnectionResetError:
                return core.ended(unread=True)
            except OSError as error:
                return core.lost(describe_loss(error))
            return core.received(count, received_descriptors(ancillary))
        finally:
            self.is_moving = False
