"""What nobody uses is kept for a while, and ends when that is over."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import trio

Thing = TypeVar("Thing")


class IdleSet(Generic[Thing]):
    """Things that nobody uses now, in the order in which they were used last.

    Args:
        seconds: how long they stay.
        end: takes one that has left the set, because its time was over.

    """

    def __init__(self, seconds: float, end: Callable[[Thing], None]) -> None:
        self._seconds = seconds
        self._end = end
        self._since: OrderedDict[Thing, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._since)

    def __iter__(self) -> Iterator[Thing]:
        return iter(self._since)

    def add(self, thing: Thing) -> None:
        """Begin a thing's time, anew where it is in the set already."""
        self._since[thing] = trio.current_time()
        self._since.move_to_end(thing)

    def discard(self, thing: Thing) -> None:
        """Take a thing out: somebody uses it, or it has ended."""
        self._since.pop(thing, None)

    def pop_oldest(self) -> Thing:
        """Take out the thing that was used longest ago."""
        return self._since.popitem(last=False)[0]

    def due(self) -> float:
        """Return when the next thing ends: infinity where the set is empty."""
        for since in self._since.values():
            return since + self._seconds
        return math.inf

    def expire(self, now: float) -> None:
        """End those whose time is over."""
        while self.due() <= now:
            self._end(self.pop_oldest())

    def end_all(self) -> None:
        """End all of them now."""
        while self._since:
            self._end(self.pop_oldest())
