"""One connection of the synchronous client: a blocking socket, and the calls that are on it."""

import os
import select
import socket
import struct
import time
from typing import Any, Final

from vuserd.client.calls import Call
from vuserd.client.core import ClientCore, Ticket
from vuserd.client.errors import describe_loss
from vuserd.client.exchange import MOST_AT_ONCE, receive_some, send_some
from vuserd.client.foreign import hang_up

_SEND_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class SyncLink:
    """A connected, blocking stream socket, which is the link's from now on, and its core.

    Args:
        sock: its own waits are limited by :func:`set_timeout`, if at all.
        timeout: the same limit for waits that are not the socket's own, seconds; 0 is none.

    """

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._socket = sock
        self._timeout = timeout
        self._maker = os.getpid()
        self.core = ClientCore()

    def close(self) -> None:
        """Close the connection; calls in flight fail with ConnectionLost."""
        self.core.lost("the client was closed")
        hang_up(self._socket, self._maker)

    def send(self) -> None:
        """Send what the socket takes without waiting."""
        with _Unbroken(self.core):
            self._send()

    def wait(self, ticket: Ticket[Any]) -> None:
        """Wait until a call is done. Answers to others may come first, and are kept."""
        with _Unbroken(self.core):
            while not ticket.done:
                if self.core.outgoing:
                    self._exchange()
                else:
                    self._receive()

    def is_answered(self, call: Call[Any], seconds: float) -> bool:
        """Do a call, or lose the connection; False where neither has happened in the time."""
        deadline = time.monotonic() + seconds
        ticket = self.core.begin(call)
        self.send()
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        with _Unbroken(self.core):
            while not ticket.done:
                left = deadline - time.monotonic()
                if left <= 0 or not poll.poll(left * 1000):
                    return False
                self._receive(socket.MSG_DONTWAIT)
        return True

    def hear(self) -> None:
        """Take in what has come, without waiting: the daemon's last words, after it has ended."""
        for _ in range(MOST_AT_ONCE):
            if not self._receive(socket.MSG_DONTWAIT):
                break

    def _send(self) -> None:
        try:
            while self.core.outgoing:
                send_some(self._socket, self.core, _SEND_FLAGS)
        except BlockingIOError:
            pass
        except BrokenPipeError:  # what it said before it went away can still be received
            self.core.closed_for_requests()
        except ConnectionResetError:
            self.core.closed_for_requests(unread=True)
        except OSError as error:
            self.core.lost(describe_loss(error))

    def _exchange(self) -> None:
        """Wait until the daemon takes or gives something: it may do neither while we do not."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLOUT)
        events = poll.poll(self._timeout * 1000 or None)
        if not events:
            self.core.lost(describe_loss(BlockingIOError()))
        for _, event in events:
            if event & select.POLLOUT:
                self._send()
            if event & ~select.POLLOUT:
                self._receive()

    def _receive(self, flags: int = 0) -> bool:
        """Wait for bytes and take them in; False where there are none (or will be none) any more.

        A payload is received to its end, which saves system calls.
        """
        if self.core.in_payload:
            flags |= socket.MSG_WAITALL
        try:
            receive_some(self._socket, self.core, flags)
        except ConnectionResetError:
            self.core.ended(unread=True)
        except BlockingIOError as error:
            if not flags & socket.MSG_DONTWAIT:
                self.core.lost(describe_loss(error))
            return False
        except OSError as error:
            self.core.lost(describe_loss(error))
        return not self.core.is_over


class _Unbroken:
    """Ends the connection when KeyboardInterrupt or the like comes between its bytes."""

    def __init__(self, core: ClientCore) -> None:
        self._core = core

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._core.interrupted("an exchange with the daemon was interrupted")


def set_timeout(sock: socket.socket, option: int, seconds: float) -> None:
    """Limit each wait in the kernel (SO_RCVTIMEO, SO_SNDTIMEO); 0 does not.

    The socket stays blocking, as MSG_WAITALL needs it.
    """
    whole, fraction = divmod(seconds, 1)
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(whole), int(fraction * 1e6)))
