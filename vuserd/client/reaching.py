"""How both clients reach the daemon: where it is, and for how long to look when it restarts."""

import errno
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from vuserd.client.core import ClientCore, Ticket
from vuserd.client.errors import CannotConnect, NotTaken, reason_of
from vuserd.client.listener import check_listener
from vuserd.wire.address import Candidate, to_sockaddr

#: Seconds for which a client looks for the daemon's successor, unless the caller says otherwise.
PATIENCE: Final = 10.0
#: Seconds between two looks.
PAUSE: Final = 0.05

#: Seconds for an address that was guessed, and once more for those that were slow.
_FOR_GUESSES: Final = (1.0, 10.0)
#: Seconds for one that the user named, until it takes the connection.
_FOR_NAMED: Final = 30.0

#: What connect() says while one daemon has ended and the next one does not listen yet.
_ABSENT: Final = frozenset({errno.ECONNREFUSED, errno.ENOENT, errno.ECONNRESET})


def is_absent(error: OSError) -> bool:
    """Tell whether nobody listens, which another daemon may change."""
    return error.errno in _ABSENT


def connect_to(sock: socket.socket, candidate: Candidate) -> None:
    """Connect a socket to one address; raise OSError, BlockingIOError where its queue is full."""
    sock.connect(to_sockaddr(candidate.address))
    check_listener(sock, candidate)


def queue_is_full(seconds: float) -> OSError:
    """Return the error for an address where connections wait to be accepted."""
    return TimeoutError(errno.ETIMEDOUT, f"its queue is full, and stayed so for {seconds:g} s")


def is_silent(seconds: float) -> OSError:
    """Return the error for an address where a connection was taken and no call is answered."""
    return TimeoutError(errno.ETIMEDOUT, f"there was no answer within {seconds:g} s")


def breaks_protocol(core: ClientCore) -> OSError | None:
    """Return the error for a connection to what is no daemon, None for one to a daemon.

    A daemon that has ended the connection is one: it may be about to be replaced.
    """
    if core.is_over and not core.ended_by_daemon:
        return OSError(errno.EPROTO, core.reason)
    return None


class Approach:
    """The addresses to try, each for a while, and why that was in vain.

    A daemon has to answer at a guess in a short time; then it is the next one's turn, as anybody
    may hold a name and never accept. Guesses that were slow have a longer time after all others,
    in which a service manager starts a daemon. Iterating gives an address, and seconds for
    connecting to it and, at a guess, as many again for the answer.

    Args:
        candidates: in their order.
        limit: the most seconds for one of them; 0 for no such limit.

    """

    def __init__(self, candidates: Sequence[Candidate], limit: float = 0.0) -> None:
        self._candidates = candidates
        self._limit = limit
        self._errors: dict[Candidate, OSError] = {}

    def __iter__(self) -> Iterator[tuple[Candidate, float]]:
        left = list(self._candidates)
        for seconds in _FOR_GUESSES:
            for candidate in left:
                allowed = seconds if candidate.is_guessed else _FOR_NAMED
                yield candidate, min(allowed, self._limit or allowed)
            left = [
                candidate
                for candidate in left
                if candidate.is_guessed and isinstance(self._errors[candidate], TimeoutError)
            ]

    def failed(self, candidate: Candidate, error: OSError) -> None:
        """Note why an address is not the one."""
        self._errors[candidate] = error

    def error(self) -> CannotConnect:
        """Return the error for all of them."""
        return CannotConnect([(each.address, error) for each, error in self._errors.items()])


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
