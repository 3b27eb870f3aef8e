"""A shared amount of something: tasks that want a part of it wait for it in turn."""

from collections import deque
from collections.abc import Callable

import outcome
import trio


class Budget:
    """``total`` units to take and to give back, first come, first served.

    Small requests never overtake an earlier large one. Unlike trio's own primitives, :meth:`take`
    does not yield to other tasks when it need not wait.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.available = total
        self._waiting: deque[tuple[int, trio.lowlevel.Task]] = deque()
        self._end: Callable[[], Exception] | None = None

    def try_take(self, amount: int) -> bool:
        """Take ``amount`` units if they are free and no task waits; return whether it did."""
        if self._waiting or amount > self.available or self._end is not None:
            return False
        self.available -= amount
        return True

    async def take(self, amount: int) -> None:
        """Take ``amount`` units, all at once: no task holds some while it waits for more.

        Raises:
            Exception: the error that :meth:`end` was given.
            ValueError: ``amount`` is negative or more than the total.

        """
        if self._end is not None:
            raise self._end()
        if not 0 <= amount <= self.total:
            raise ValueError(f"{amount} units of a budget of {self.total}")
        if not self._waiting and amount <= self.available:
            self.available -= amount
            return
        turn = (amount, trio.lowlevel.current_task())

        def abort(_: object) -> trio.lowlevel.Abort:
            self._waiting.remove(turn)
            self._serve()
            return trio.lowlevel.Abort.SUCCEEDED

        self._waiting.append(turn)
        await trio.lowlevel.wait_task_rescheduled(abort)

    def give_back(self, amount: int) -> None:
        """Give back units that were taken."""
        self.available += amount
        self._serve()

    def end(self, error: Callable[[], Exception]) -> None:
        """Fail current and future waiters with ``error()``."""
        self._end = error
        while self._waiting:
            trio.lowlevel.reschedule(self._waiting.popleft()[1], outcome.Error(error()))

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.available:
            amount, task = self._waiting.popleft()
            self.available -= amount
            trio.lowlevel.reschedule(task)


class Share:
    """One holder's share of a common budget: ``most`` units at a time."""

    def __init__(self, most: int, common: Budget) -> None:
        self._own = Budget(min(most, common.total))
        self._common = common

    @property
    def total(self) -> int:
        """The most units that can be taken."""
        return self._own.total

    @property
    def taken(self) -> int:
        """The units that are taken now, or waited for."""
        return self._own.total - self._own.available

    def try_take(self, amount: int) -> bool:
        """Take ``amount`` units if they are free and no task waits; return whether it did."""
        if not self._own.try_take(amount):
            return False
        if self._common.try_take(amount):
            return True
        self._own.give_back(amount)
        return False

    async def take(self, amount: int) -> None:
        """Take ``amount`` units: from the holder's own share, then from the common budget."""
        await self._own.take(amount)
        try:
            await self._common.take(amount)
        except BaseException:
            self._own.give_back(amount)
            raise

    def give_back(self, amount: int) -> None:
        """Give back units that were taken."""
        self._own.give_back(amount)
        self._common.give_back(amount)

    def close(self) -> None:
        """Give back all units that are still taken; no task may be waiting for more."""
        self.give_back(self.taken)
