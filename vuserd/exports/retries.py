"""How long an export waits before it tries the next backend, and when it tries none any more."""

from typing import Final

#: Seconds between two tries to connect to an adopted socket: at first, at most while a call waits
#: for it, and at most.
_ADOPT_PAUSE: Final = 0.1
_LONGEST_WAITED_PAUSE: Final = 0.5
_LONGEST_ADOPT_PAUSE: Final = 10.0
#: The most seconds before the next try where calls were put to the backend that was lost.
_LONGEST_AFTER_CALLS: Final = 0.5


class Retries:
    """The backends of one export that were lost in a row, and what follows from their number."""

    def __init__(self) -> None:
        #: Backends in a row that were lost before any call was served.
        self._failures = 0
        #: Those in a row that did not start, or ended before any call was put to them.
        self._failed_starts = 0

    def note_answer(self) -> None:
        """Begin to count anew: a call was served."""
        self._failures = 0

    def note_failure(self, *, asked: bool) -> None:
        """Count a backend that is lost; one that was ``asked``, by calls, did start."""
        self._failures += 1
        self._failed_starts = 0 if asked else self._failed_starts + 1

    def are_over(self, most: int) -> bool:
        """Return whether more than ``most`` starts in a row have failed."""
        return self._failed_starts > most

    def delay(self, least: float, most: float, *, asked: bool) -> float:
        """Return the seconds before the next start: none at first, then longer and longer.

        A backend that was ``asked`` has calls that wait for the next one, and these are not kept
        waiting for ``most``.
        """
        longest = min(most, _LONGEST_AFTER_CALLS) if asked else most
        doublings = min(self._failures - 2, 40)
        return 0.0 if doublings < 0 else min(least * 2**doublings, longest)

    def adopt_delay(self, *, waited_for: bool) -> float:
        """Return the seconds before the next try to connect to an adopted socket.

        They are fewer where a call waits for it.
        """
        longest = _LONGEST_WAITED_PAUSE if waited_for else _LONGEST_ADOPT_PAUSE
        return min(_ADOPT_PAUSE * 1.2 ** min(self._failures, 40), longest)
