"""How a client reaches the daemon: where, for how long it tries, and whom it believes there.

Which calls are sent again, and when, is decided in :mod:`vuserd.client.core.conversation`.
"""

import errno
import os
import pwd
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

from vuserd.client.core.connection import ClientCore
from vuserd.client.core.ticket import Ticket
from vuserd.client.descriptors import hang_up
from vuserd.client.errors import CannotConnect, NotTaken, reason_of
from vuserd.wire.address import Candidate, to_sockaddr

#: Seconds for which a client looks for the daemon's successor, unless the caller says otherwise.
PATIENCE: Final = 10.0
#: Seconds between two looks.
PAUSE: Final = 0.05
#: Seconds between two attempts to get into a full queue: poll cannot tell when it has room.
QUEUE_PAUSE: Final = 0.01

#: Seconds for an address that was guessed, and once more for those that were slow.
_FOR_GUESSES: Final = (1.0, 10.0)
#: Seconds for one that the user named, until it takes the connection; and for the first answer at
#: a path that was guessed, where nobody but the user or root listens, and may be starting it.
_FOR_NAMED: Final = 30.0

#: What connect() says while one daemon has ended and the next one does not listen yet.
_ABSENT: Final = frozenset({errno.ECONNREFUSED, errno.ENOENT, errno.ECONNRESET})

_UCRED: Final = struct.Struct("=iII")
_ROOT: Final = 0
#: The user of the system's daemon, as the package makes it.
_SERVICE: Final = "vuserd"
#: What the kernel calls all users that a user namespace has no number for, unless this says else.
_OVERFLOW_FILE: Final = "/proc/sys/kernel/overflowuid"
_OVERFLOW: Final = 65534


def connect_once(candidate: Candidate) -> socket.socket:
    """Return a non-blocking socket that is connected to an address, without waiting.

    Raises:
        OSError: no believed daemon listens there; BlockingIOError: its queue is full.

    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(to_sockaddr(candidate.address))
        check_listener(sock, candidate)
    except BaseException:
        hang_up(sock, os.getpid())
        raise
    return sock


def is_absent(error: OSError) -> bool:
    """Return whether no daemon listens, which may change."""
    return error.errno in _ABSENT


def queue_is_full(seconds: float) -> OSError:
    """Return the error for an address where connections wait to be accepted."""
    return TimeoutError(errno.ETIMEDOUT, f"its queue is full, and stayed so for {seconds:g} s")


class _SilentError(TimeoutError):
    """A connection was taken, and no call is answered."""


def is_silent(seconds: float) -> OSError:
    """Return the error for an address where a connection was taken and no call is answered."""
    return _SilentError(errno.ETIMEDOUT, f"there was no answer within {seconds:g} s")


def breaks_protocol(core: ClientCore) -> OSError | None:
    """Return the error for a connection to what is no daemon, None for one to a daemon.

    A daemon that has ended the connection is one: it may be about to be replaced.
    """
    if core.is_over and not core.ended_by_daemon:
        return OSError(errno.EPROTO, core.reason)
    return None


class Approach:
    """The addresses to try, each for a while, and why that was in vain.

    A guess has a short time; then it is the next one's turn, as anybody may hold an abstract name
    and never accept, or fill a queue. Guesses that were slow have a longer time after all others.
    What has taken the connection at a path is waited for, once, rather than another daemon asked: a
    service manager may be starting it. Iterating gives an address, seconds for connecting to it and
    seconds for its first answer.

    Args:
        candidates: in their order.
        limit: the most seconds for one of them; 0 for no such limit.

    """

    def __init__(self, candidates: Sequence[Candidate], limit: float = 0.0) -> None:
        self._candidates = candidates
        self._limit = limit
        self._errors: dict[Candidate, OSError] = {}

    def __iter__(self) -> Iterator[tuple[Candidate, float, float]]:
        left = list(self._candidates)
        for seconds in _FOR_GUESSES:
            for candidate in left:
                connecting = seconds if candidate.is_guessed else _FOR_NAMED
                answering = seconds if candidate.is_abstract else _FOR_NAMED
                limit = self._limit or _FOR_NAMED
                yield candidate, min(connecting, limit), min(answering, limit)
            left = [candidate for candidate in left if self._was_hurried(candidate)]

    def _was_hurried(self, candidate: Candidate) -> bool:
        """Return whether an address was slow, and had only a short time."""
        error = self._errors[candidate]
        if not candidate.is_guessed or not isinstance(error, TimeoutError):
            return False
        return candidate.is_abstract or not isinstance(error, _SilentError)

    def failed(self, candidate: Candidate, error: OSError) -> None:
        """Record why an address is not the one."""
        self._errors[candidate] = error

    def error(self) -> CannotConnect:
        """Return the error for all of them."""
        return CannotConnect([(each.address, error) for each, error in self._errors.items()])


class Search:
    """The search for a connection that takes a call, over which others may come and go.

    Args:
        address: where the daemon was.
        seconds: how long it may take.
        now: what time it is, from now on.

    """

    def __init__(self, address: str, seconds: float, now: float) -> None:
        self._address = address
        self._seconds = seconds
        self._deadline = now + seconds
        self._error: OSError | None = None
        #: Whether there was a look: one is taken, if this process was stopped for all of the time.
        self.has_begun = False

    def is_over(self, now: float) -> bool:
        """Return whether the time is up."""
        return self.has_begun and now >= self._deadline

    def failed(self, error: OSError) -> bool:
        """Record why a look found none; return whether to look again."""
        if isinstance(error, BlockingIOError):
            self._error = queue_is_full(self._seconds)
            return True
        self._error = error
        return is_absent(error)

    def error(self) -> NotTaken:
        """Return the error for a call that no daemon took."""
        words = f"no daemon took the call at {self._address}"
        if self._error is None or is_absent(self._error):
            words = f"no daemon took the call within {self._seconds:g} s at {self._address}"
        return NotTaken(words if self._error is None else f"{words}: {reason_of(self._error)}")


def is_bound(ticket: Ticket[Any]) -> bool:
    """Return whether a call that was not taken is about something that its connection had."""
    return ticket.refused is not None and ticket.refused.needs is not None


def why_not_taken(ticket: Ticket[Any]) -> NotTaken:
    """Return the error for a call that was not taken and is not sent again."""
    core = ticket.core
    if core.ended_by_daemon and (core.held or is_bound(ticket)):
        return NotTaken(
            f"{core.reason}. What memory was attached and which walks and trees went on ended with"
            " the connection; this call had no effect"
        )
    return NotTaken(core.reason)


def check_listener(sock: socket.socket, candidate: Candidate) -> None:
    """Refuse a daemon that may be another one than the user means.

    A path that the user named is in a folder whose owner the user trusts. An abstract name can be
    taken by any process of the network namespace, and what the environment says may be another
    user's (after ``su``, or ``sudo -E``). There root is believed, the service's user, and the
    client's own: those who called listen().

    Raises:
        PermissionError: another user did.

    """
    if not (candidate.is_guessed or candidate.is_abstract):
        return
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(credentials)
    if not _is_believed(uid):
        raise PermissionError(
            errno.EPERM, f"uid {uid} listens there, which is not root, {_SERVICE!r} or you"
        )


def _is_believed(uid: int) -> bool:
    if uid == _ROOT:
        return True
    return uid in (os.geteuid(), _service_user()) and uid != _overflow_user()


def _service_user() -> int | None:
    try:
        return pwd.getpwnam(_SERVICE).pw_uid
    except KeyError:
        return None


def _overflow_user() -> int:
    try:
        with open(_OVERFLOW_FILE) as file:
            return int(file.read())
    except (OSError, ValueError):
        return _OVERFLOW
