"""Keep unused things for a while, in order of their last use."""

import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

import trio

Thing = TypeVar("Thing")


class Alarm:
    """Wakes the task that ends idle things as soon as one is due, and not before."""

    def __init__(self) -> None:
        #: Minus infinity while the task is awake, since it looks again before it waits.
        self._at = -math.inf
        self._waiting = trio.lowlevel.ParkingLot()

    def set(self, at: float) -> None:
        """Make the task look at this time, if it would look later."""
        if at < self._at:
            self._waiting.unpark_all()

    async def wait(self, at: float) -> None:
        """Wait until this time, or an earlier one that is set meanwhile."""
        self._at = at
        try:
            with trio.move_on_at(at):
                await self._waiting.park()
        finally:
            self._at = -math.inf


class IdleSet(Generic[Thing]):
    """Unused things, in the order of their last use.

    The owner of the set ends what leaves it. So the set has no reference to its owner, and the
    memory of a session is freed as soon as it is over.

    Args:
        seconds: how long things stay.

    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: OrderedDict[Thing, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._since)

    def __iter__(self) -> Iterator[Thing]:
        return iter(self._since)

    def add(self, thing: Thing, since: float | None = None) -> None:
        """Add a thing; its time begins now or at ``since``, anew if it is in the set already."""
        self._since[thing] = trio.current_time() if since is None else since
        self._since.move_to_end(thing)

    def discard(self, thing: Thing) -> None:
        """Remove a thing that is used again or has ended."""
        self._since.pop(thing, None)

    def pop_oldest(self) -> Thing:
        """Remove and return the thing that was used longest ago."""
        return self._since.popitem(last=False)[0]

    def due(self) -> float:
        """Return when the next thing is due; infinity if the set is empty."""
        for since in self._since.values():
            return since + self._seconds
        return math.inf

    def pop_due(self, now: float = math.inf) -> Iterator[Thing]:
        """Remove and yield the things whose time is over by ``now``; by default all of them."""
        while self._since and self.due() <= now:
            yield self.pop_oldest()
