"""Whose turn it is, while several users keep the daemon busy: one of each after the other."""

from collections import deque
from typing import Any, Final

import trio

#: Seconds after which a user who asks for nothing is no longer one that others share with.
_MEMORY: Final = 0.1


class Turns:
    """Gives turns: at once to whoever is alone, else one to each holder in each round.

    A round is a pass of trio's scheduler, in which every task that can go on does. Without turns
    the requests of a thousand connections would all go on in one pass, and whoever comes then with
    a single request would wait for all of them. :meth:`run` has to run.
    """

    def __init__(self) -> None:
        self._waiting: dict[object, deque[trio.lowlevel.Task]] = {}
        #: Who has had a turn in this round.
        self._served: set[object] = set()
        self._something = trio.lowlevel.ParkingLot()
        self._latest: object = None
        #: Whether several holders have wanted turns of late, and when they took turns last.
        self._shared = False
        self._switched = 0.0

    def is_free(self, holder: object) -> bool:
        """Tell whether ``holder`` is alone, and may go on without :meth:`take`."""
        return holder is self._latest and not self._shared

    async def take(self, holder: object) -> None:
        """Wait for a turn; without others, go on at once, and without yielding to other tasks."""
        if holder is not self._latest:
            if self._latest is not None:
                self._shared = True
                self._switched = trio.current_time()
                self._something.unpark_all()
            self._latest = holder
        if not self._shared:
            return
        if holder not in self._waiting and holder not in self._served:
            self._served.add(holder)
            self._something.unpark_all()
            return
        queue = self._waiting.setdefault(holder, deque())
        task = trio.lowlevel.current_task()

        def abort(_: Any) -> trio.lowlevel.Abort:
            queue.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        queue.append(task)
        self._something.unpark_all()
        await trio.lowlevel.wait_task_rescheduled(abort)

    async def run(self) -> None:
        """Begin one round after the other while somebody waits; until cancelled."""
        while True:
            if not self._waiting and not self._served:
                await self._rest()
            await trio.lowlevel.cancel_shielded_checkpoint()
            self._served.clear()
            for holder, queue in list(self._waiting.items()):
                if queue:
                    trio.lowlevel.reschedule(queue.popleft())
                    self._served.add(holder)
                if not queue:
                    del self._waiting[holder]
            if self._shared and len(self._waiting) <= 1 and self._is_over():
                # Those who wait still have their turns one after the other: all at once they would
                # be in the way of the next who comes.
                self._shared = False

    def _is_over(self) -> bool:
        """Tell whether one holder has been alone for long."""
        return trio.current_time() >= self._switched + _MEMORY

    async def _rest(self) -> None:
        """Wait until there is something to do, or one holder has been alone for long."""
        if self._shared:
            with trio.move_on_at(self._switched + _MEMORY) as soon:
                await self._something.park()
            if soon.cancelled_caught and self._is_over():
                self._shared = False
        else:
            await self._something.park()
