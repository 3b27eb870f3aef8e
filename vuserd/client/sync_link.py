"""One connection of the synchronous client: a blocking socket, and the calls that are on it.

An exception of a signal handler (KeyboardInterrupt) may come between any two instructions, and ends
the call that is waited for, not the connection.  So C code alone puts aside what a system call has
moved, and the core is told of it then or later.  One that comes while the core writes its books,
which takes microseconds, costs the connection.
"""

import select
import socket
import time
from collections.abc import Sequence
from typing import Any, Final

from vuserd.client.core.exchange import ANCILLARY_SPACE, SEND_FLAGS, Link, Received
from vuserd.client.core.ticket import Ticket
from vuserd.client.descriptors import let_go
from vuserd.client.errors import ConnectionLost
from vuserd.wire.descriptors import ancillary_with, received_descriptors

#: Seconds of one poll(), which knows no more than 24 days: a longer wait takes several.
_AT_MOST: Final = 3600.0


class SyncLink(Link):
    """A blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(None)
        super().__init__(sock)
        self._sent: list[int] = []  # what the core was not told of, yet
        self._received: list[Received] = []  # likewise

    def send(self) -> None:
        """Send what the socket takes without waiting."""
        self._catch_up()
        self._send()

    def close(self) -> None:
        """Close the connection; calls in flight fail with ConnectionLost."""
        super().close()
        while self._received:
            for descriptor in received_descriptors(self._received.pop()[1]):
                let_go(descriptor)

    def wait(self, ticket: Ticket[Any], seconds: float | None = None) -> None:
        """Wait until a call is done, or the time is up.

        Answers to others may come first, and are kept.
        """
        core = self.core
        self._catch_up()
        deadline = None if seconds is None else time.monotonic() + seconds
        while not ticket.done:
            core.check_books()
            if core.is_over:  # one that was about to be settled when that was interrupted
                ticket.fail(ConnectionLost(core.reason))
            elif deadline is not None:
                left = deadline - time.monotonic()
                self._exchange(min(max(left, 0.0), _AT_MOST))
                if left <= 0:
                    return
            elif core.outgoing:
                self._exchange(None)
            else:  # a payload is received to its end, which saves system calls
                self._receive(socket.MSG_WAITALL if core.in_payload else 0)

    def _exchange(self, seconds: float | None) -> None:
        """Wait until the daemon takes or gives something: it may do neither while we do not."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if self.core.outgoing else 0))
        for _, event in poll.poll(None if seconds is None else seconds * 1000):
            if event & select.POLLOUT:
                self._send()
            if event & ~select.POLLOUT:
                self._receive(socket.MSG_DONTWAIT)

    def _catch_up(self) -> None:
        """Tell the core what was moved when an exception came in between."""
        self.is_moving = True
        try:
            if self._sent:
                self.core.changing = True
                self.core.sent(self._sent.pop())
            if self._received:
                self._receive()
        finally:
            self.is_moving = False

    def _put(self, piece: bytes | bytearray, descriptors: Sequence[int]) -> int:
        if descriptors:
            beside = ancillary_with(descriptors)
            self._sent.extend(map(self._socket.sendmsg, ([piece],), (beside,), (SEND_FLAGS,)))
        else:
            self._sent.extend(map(self._socket.send, (piece,), (SEND_FLAGS,)))
        self.core.changing = True  # and not again once the core was told
        return self._sent.pop()

    def _get(self, buffer: memoryview, flags: int) -> Received:
        if not self._received:
            self._received.extend(
                map(self._socket.recvmsg_into, ([buffer],), (ANCILLARY_SPACE,), (flags,))
            )
        self.core.changing = True
        return self._received.pop()
