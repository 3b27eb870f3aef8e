"""How backends were lost: why, for counting and for people."""

import signal
import time
from typing import Any, Final, NamedTuple

from protocol import Check
from vuserd.errors import BackendError, LossCause, VuserdError

#: Signals that a process gets for a fault of its own: of its memory, of its sandbox, by abort().
_CRASHES: Final = frozenset(
    {
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGILL,
        signal.SIGFPE,
        signal.SIGABRT,
        signal.SIGSYS,
        signal.SIGTRAP,
    }
)


class Loss(NamedTuple):
    """How a backend was lost."""

    cause: LossCause
    reason: str  #: for people
    when: float  #: seconds since 1970


class Losses:
    """The losses of one export's backends."""

    def __init__(self) -> None:
        #: Backends that another had to take the place of, by why.
        self.restarts = dict.fromkeys(LossCause, 0)
        self.last: Loss | None = None
        #: Sessions that ended because bytes were not to be believed, by the check that they failed.
        self.faults = dict.fromkeys(map(str, Check), 0)

    def note(self, cause: LossCause, reason: str) -> None:
        """Keep how a backend was lost just now."""
        self.last = Loss(cause, reason, time.time())

    def count_fault(self, check: str) -> None:
        """Count the check that a session's bytes failed; none where it is empty."""
        if check in self.faults:
            self.faults[check] += 1

    def describe(self) -> dict[str, Any]:
        """Return them as ``status`` shows them."""
        return {
            "restarts": sum(self.restarts.values()),
            "restarts_by_cause": {str(cause): n for cause, n in self.restarts.items() if n},
            "last_loss": self.last._asdict() if self.last is not None else None,
        }


def cause_of(error: VuserdError, end: int | None) -> LossCause:
    """Return why a backend was lost. What its process says comes before what its socket did.

    Args:
        error: what its session says.
        end: how its process ended by itself: a status, a signal's number negated, or None.

    """
    cause = error.cause if isinstance(error, BackendError) else LossCause.CLOSED
    if end is None or cause not in (LossCause.CLOSED, LossCause.EXITED):
        return cause
    if end >= 0:
        return LossCause.EXITED
    return LossCause.CRASHED if -end in _CRASHES else LossCause.KILLED
