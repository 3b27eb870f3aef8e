"""Pauses between looks for what somebody has to mend: short at first, then longer and longer."""

from collections.abc import Iterator
from typing import Final

#: Seconds before the second look, and at most.
_FIRST: Final = 1.0
_LONGEST: Final = 30.0


def pauses() -> Iterator[float]:
    """Yield the seconds before each next look, for ever."""
    pause = _FIRST
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST)
