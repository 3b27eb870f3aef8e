"""How both clients reach the daemon: where it is, and for how long to look when it restarts."""

import errno
import socket
import time
from typing import Any, Final

from vuserd.address import to_sockaddr
from vuserd.client.core import Ticket
from vuserd.client.errors import NotTaken, reason_of
from vuserd.client.listener import check_listener

#: Seconds for which a client looks for the daemon's successor, unless the caller says otherwise.
PATIENCE: Final = 10.0
#: Seconds between two looks.
PAUSE: Final = 0.05

#: What connect() says while one daemon has ended and the next one does not listen yet.
_ABSENT: Final = frozenset({errno.ECONNREFUSED, errno.ENOENT, errno.ECONNRESET})


def is_absent(error: OSError) -> bool:
    """Tell whether nobody listens, which another daemon may change."""
    return error.errno in _ABSENT


def connect_to(sock: socket.socket, address: str) -> None:
    """Connect a socket to one address; raise OSError."""
    sock.connect(to_sockaddr(address))
    check_listener(sock, address)


class Search:
    """The search for a connection that takes a call, over which others may come and go.

    Args:
        seconds: how long it may take.
        now: what time it is, from now on.

    """

    def __init__(self, seconds: float, now: float | None = None) -> None:
        self._seconds = seconds
        self.deadline = (time.monotonic() if now is None else now) + seconds
        self._looks = 0
        #: Why the last look found none.
        self.error: OSError | None = None

    def is_over(self, now: float | None = None) -> bool:
        """Tell whether the time is up."""
        return (time.monotonic() if now is None else now) >= self.deadline

    def next_pause(self) -> float:
        """Give how long to wait for the next look: not at all at first."""
        self._looks += 1
        return 0.0 if self._looks == 1 else PAUSE

    def failed(self, address: str) -> NotTaken:
        """Give the error for a call that nobody took."""
        words = f"no daemon took the call at {address}"
        if self.error is None or is_absent(self.error):
            words = f"no daemon took the call within {self._seconds:g} s at {address}"
        return NotTaken(words if self.error is None else f"{words}: {reason_of(self.error)}")


def is_bound(ticket: Ticket[Any]) -> bool:
    """Tell whether a call that was not taken is about something that its connection had."""
    return ticket.refused is not None and ticket.refused.needs is not None


def why_not_taken(ticket: Ticket[Any]) -> NotTaken:
    """Give the error for a call that was not taken and is not sent again."""
    core = ticket.core
    if core.ended_by_daemon and (core.held or is_bound(ticket)):
        return NotTaken(
            f"{core.reason}. What memory was attached and which walks went on ended with the"
            " connection; this call had no effect"
        )
    return NotTaken(core.reason)
