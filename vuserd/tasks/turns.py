"""Take turns: while several users keep the daemon busy, each has one turn a round."""

from collections import deque
from contextvars import ContextVar
from typing import Any, Final, Protocol

import trio

#: Seconds without a request after which a user no longer counts as sharing the daemon.
_MEMORY: Final = 0.1


class Sharer(Protocol):
    """A user who shares the daemon with others."""

    def is_only_user(self) -> bool:
        """Return whether no other user wants anything."""

    async def take_turn(self) -> None:
        """Wait for a turn, as :meth:`Turns.take` does."""


#: On whose turns a task works; set once for each connection, None for what the daemon does itself.
SHARER: Final[ContextVar[Sharer | None]] = ContextVar("SHARER", default=None)


async def take_turn() -> bool:
    """Wait for a turn of the user on whose behalf this task works; return whether it is alone."""
    sharer = SHARER.get()
    if sharer is None or sharer.is_only_user():
        return True
    await sharer.take_turn()
    return sharer.is_only_user()


class Turns:
    """Gives turns: at once to a holder that is alone, else one to each holder in each round.

    A round is a pass of trio's scheduler, in which every task that is ready runs. Without turns the
    requests of one user's thousand connections would all run in one pass, and another user's single
    request would wait for all of them. :meth:`run` has to run.
    """

    def __init__(self) -> None:
        self._waiting: dict[object, deque[trio.lowlevel.Task]] = {}
        #: The holders that have had a turn in this round.
        self._served: set[object] = set()
        self._something = trio.lowlevel.ParkingLot()
        self._latest: object = None
        #: Whether several holders have wanted turns lately, and when the turn last changed hands.
        self._shared = False
        self._switched = 0.0

    def is_free(self, holder: object) -> bool:
        """Return whether ``holder`` is alone and may go on without :meth:`take`."""
        return holder is self._latest and not self._shared

    def want(self, holder: object) -> None:
        """Count ``holder`` among those who want something now."""
        if holder is self._latest:
            return
        if self._latest is not None:
            self._switched = trio.current_time()
            if not self._shared:
                self._shared = True
                self._something.unpark_all()
        self._latest = holder

    async def take(self, holder: object) -> None:
        """Wait for a turn; a holder that is alone goes on at once, without a checkpoint."""
        self.want(holder)
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
        """Begin one round after the other while any task waits, until cancelled."""
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
                # Tasks that wait already keep their order: all at once they would delay the next
                # holder that comes.
                self._shared = False

    def _is_over(self) -> bool:
        """Return whether one holder has been alone for ``_MEMORY`` seconds."""
        return trio.current_time() >= self._switched + _MEMORY

    async def _rest(self) -> None:
        """Wait until a task wants a turn, or one holder has been alone for ``_MEMORY`` seconds."""
        if self._shared:
            with trio.move_on_at(self._switched + _MEMORY) as soon:
                await self._something.park()
            if soon.cancelled_caught and self._is_over():
                self._shared = False
        else:
            await self._something.park()
