"""Lines of the log that clients cause: few of them, however often they do."""

import logging
from typing import Final, Protocol

import trio

_LOG = logging.getLogger(__name__)

#: Seconds between two lines about one user.
_PAUSE: Final = 60.0
#: Lines about all users together in that time, and users of whom a log remembers anything.
_MOST_LINES: Final = 60
_MOST_USERS: Final = 1024


class Client(Protocol):
    """The process at the other end of a connection."""

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def uid(self) -> int:
        """Its user."""


class PeerLog:
    """Logs what happens to clients: at once, then once a minute a user, with a count.

    Args:
        level: of its lines.
        line: what they say, with places for the client, the occasion and the count.

    """

    def __init__(self, level: int, line: str) -> None:
        self._level = level
        self._line = line
        #: By uid: when the next line is due, and what was not logged since the last one; the user
        #: of whom nothing happened for the longest time comes first.
        self._users: dict[int, tuple[float, int]] = {}
        #: When the minute ends that has so many lines.
        self._end = 0.0
        self._lines = 0
        self.count = 0

    def note(self, peer: Client, what: str, *, with_traceback: bool = False) -> None:
        """Count one occasion, and log it if a line is due."""
        self.count += 1
        now = trio.current_time()
        if now >= self._end:
            self._end, self._lines = now + _PAUSE, 0
        due, unsaid = self._users.pop(peer.uid, (now, 0))
        if len(self._users) >= _MOST_USERS:
            self._users.pop(next(iter(self._users)))
        if now < due or self._lines >= _MOST_LINES:
            self._users[peer.uid] = (due, unsaid + 1)
            return
        self._users[peer.uid] = (now + _PAUSE, 0)
        self._lines += 1
        _LOG.log(
            self._level,
            self._line,
            f"uid {peer.uid} (pid {peer.pid})",
            what,
            f", and {unsaid} times more since the last such line" if unsaid else "",
            exc_info=with_traceback or None,
            extra={"fields": {"VUSERD_UID": str(peer.uid), "VUSERD_PID": str(peer.pid)}},
        )
