"""Take turns at long work, of which each pass of the scheduler does a little."""

import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final, Protocol

import trio

from vuserd.tasks.short_work import do_short_work

#: Seconds without a request after which a user or client no longer counts as sharing the daemon.
_MEMORY: Final = 0.1
#: Processor time that a pass of the scheduler should not exceed, seconds; and the most turns of it.
_PASS: Final = 0.0003
_MOST: Final = 16


class Sharer(Protocol):
    """A client that shares the daemon with others."""

    def is_alone(self) -> bool:
        """Return whether no other client wants anything, as :meth:`Turns.is_alone` does."""

    async def take_turn(self) -> None:
        """Wait for a turn of its user's, as :meth:`Turns.take` does."""


#: On whose turns a task works; set once for each connection, None for what the daemon does itself.
SHARER: Final[ContextVar[Sharer | None]] = ContextVar("SHARER", default=None)


def is_alone() -> bool:
    """Return whether no client but the one on whose behalf this task works wants anything."""
    sharer = SHARER.get()
    return sharer is None or sharer.is_alone()


def give_way() -> None:
    """Let short work be done before a long step, if another client wants anything."""
    if not is_alone():
        do_short_work()


async def take_turn() -> None:
    """Wait for a turn of the user on whose behalf this task works."""
    sharer = SHARER.get()
    if sharer is not None:
        await sharer.take_turn()


class Turns:
    """Gives each holder in its order a turn, which is for one step of long work.

    In a pass of trio's scheduler every task that is ready runs. Where each of them did a step of
    long work, a short request would wait for all of these steps, and that in each pass that it
    needs. So a pass has as many turns as it lately had time for, but one at least; and while
    several holders want any, each has one at most. :meth:`run` has to run.

    Holders are the users. Of one user's clients none has a turn before the others, but each is to
    know whether it is alone: then nobody waits for its steps, and they may be long.

    Args:
        clock: the processor time of this thread in seconds, which is what a pass takes of others.

    """

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        self._clock = clock
        #: Tasks that wait, by holder; the holder that has waited longest comes first.
        self._waiting: dict[object, deque[trio.lowlevel.Task]] = {}
        #: Turns that a pass may have, and who has had one in this pass.
        self._most = 1
        self._given: list[object] = []
        self._something = trio.lowlevel.ParkingLot()
        self._latest: object = None
        #: Whether several holders have wanted turns lately, and when the turn last changed hands.
        self._shared = False
        self._switched = 0.0
        #: The client that asked last, and from when on it counts as being alone.
        self._asking: object = None
        self._alone_from = 0.0

    def hear(self, client: object) -> None:
        """Count ``client`` among those who want something now."""
        if client is not self._asking:
            if self._asking is not None:
                self._alone_from = trio.current_time() + _MEMORY
            self._asking = client

    def is_alone(self, client: object) -> bool:
        """Return whether no other client than ``client``, which asks now, has asked lately."""
        self.hear(client)
        return trio.current_time() >= self._alone_from

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
        """Wait for a turn; go on at once if the pass has one left and no other task waits."""
        self.want(holder)
        if not self._waiting and self._has_turn(holder):
            self._given.append(holder)
            self._something.unpark_all()
            return
        queue = self._waiting.setdefault(holder, deque())
        task = trio.lowlevel.current_task()

        def abort(_: Any) -> trio.lowlevel.Abort:
            queue.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        queue.append(task)
        await trio.lowlevel.wait_task_rescheduled(abort)

    async def run(self) -> None:
        """Give the turns of one pass after the other, until cancelled."""
        took = 0.0  # on average, the last passes first
        while True:
            if not self._given:
                await self._rest()
            began = self._clock()
            await trio.lowlevel.cancel_shielded_checkpoint()
            took = (took + self._clock() - began) / 2
            if took > _PASS:
                self._most = max(1, self._most // 2)
            else:
                self._most = min(self._most + 1, _MOST)
            self._given.clear()
            for holder in [*self._waiting]:
                self._give(holder)
            while self._waiting and not self._shared and len(self._given) < self._most:
                self._give(next(iter(self._waiting)))
            if self._shared and len(self._waiting) <= 1 and self._is_over():
                self._shared = False

    def _has_turn(self, holder: object) -> bool:
        """Return whether this pass has a turn for the holder."""
        return len(self._given) < self._most and not (self._shared and holder in self._given)

    def _give(self, holder: object) -> None:
        """Give a holder the turn that it waits for, if the pass has one; its next comes last."""
        if not self._has_turn(holder):
            return
        queue = self._waiting.pop(holder)
        if queue:
            trio.lowlevel.reschedule(queue.popleft())
            self._given.append(holder)
        if queue:
            self._waiting[holder] = queue

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
