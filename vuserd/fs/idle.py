"""What nobody uses is kept for a while, and ends when that is over."""

import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

import trio

Thing = TypeVar("Thing")


class Alarm:
    """When the task that ends what is idle looks next: as soon as something is due, not before."""

    def __init__(self) -> None:
        #: Before every time while the task is awake: it looks again before it waits.
        self._at = -math.inf
        self._waiting = trio.lowlevel.ParkingLot()

    def set(self, at: float) -> None:
        """Have the task look at this time, where it would look later."""
        if at < self._at:
            self._waiting.unpark_all()

    async def wait(self, at: float) -> None:
        """Wait until this time, or until something is due before it."""
        self._at = at
        try:
            with trio.move_on_at(at):
                await self._waiting.park()
        finally:
            self._at = -math.inf


class IdleSet(Generic[Thing]):
    """Things that nobody uses now, in the order in which they were used last.

    Whoever has the set ends what leaves it: so it refers to nobody, and a session that is over goes
    with its memory at once.

    Args:
        seconds: how long they stay.

    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
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

    def pop_due(self, now: float = math.inf) -> Iterator[Thing]:
        """Take out one by one those whose time is over by ``now``; by default all of them."""
        while self._since and self.due() <= now:
            yield self.pop_oldest()
