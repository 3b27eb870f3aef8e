"""One connection of the synchronous client: a blocking socket, and the calls that are on it."""

import select
import socket
import struct
import time
from typing import Any

from vuserd.client.core.connection import ClientCore
from vuserd.client.core.exchange import Link
from vuserd.client.core.ticket import Ticket
from vuserd.client.errors import describe_loss


class SyncLink(Link):
    """A blocking socket, each of whose waits lasts so many seconds at most; 0 is no limit."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        sock.settimeout(None)
        super().__init__(sock)
        self._timeout = timeout or None
        if timeout:
            _limit_waits(sock, timeout)

    def send(self) -> None:
        """Send what the socket takes without waiting."""
        with _Unbroken(self.core):
            self._send()

    def wait(self, ticket: Ticket[Any], seconds: float | None = None) -> None:
        """Wait until a call is done, or the time is up.

        Answers to others may come first, and are kept.
        """
        with _Unbroken(self.core):
            if seconds is not None:
                self._wait_within(ticket, seconds)
                return
            while not ticket.done:
                if self.core.outgoing:
                    if not self._exchange(self._timeout):
                        self._stands_still()
                # A payload is received to its end, which saves system calls.
                elif self._receive(socket.MSG_WAITALL if self.core.in_payload else 0) is None:
                    self._stands_still()

    def _wait_within(self, ticket: Ticket[Any], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not ticket.done:
            left = deadline - time.monotonic()
            if left <= 0 or not self._exchange(left):
                break

    def _exchange(self, seconds: float | None) -> bool:
        """Wait until the daemon takes or gives something: it may do neither while we do not.

        False where the time is up.
        """
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if self.core.outgoing else 0))
        events = poll.poll(None if seconds is None else seconds * 1000)
        for _, event in events:
            if event & select.POLLOUT:
                self._send()
            if event & ~select.POLLOUT:
                self._receive(socket.MSG_DONTWAIT)
        return bool(events)

    def _stands_still(self) -> None:
        self.core.lost(describe_loss(BlockingIOError()))


class _Unbroken:
    """Ends the connection when KeyboardInterrupt or the like comes between its bytes."""

    def __init__(self, core: ClientCore) -> None:
        self._core = core

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._core.interrupted("an exchange with the daemon was interrupted")


def _limit_waits(sock: socket.socket, seconds: float) -> None:
    """Limit each wait in the kernel, where the socket stays blocking, as MSG_WAITALL needs it."""
    whole, fraction = divmod(seconds, 1)
    limit = struct.pack("@ll", int(whole), int(fraction * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
