"""An amount that many share: whoever wants a part waits for it in turn."""

from collections import deque
from collections.abc import Callable

import outcome
import trio


class Budget:
    """``total`` units to take and to give back, first come, first served.

    A large part is not overtaken by small ones that come later. Unlike trio's own primitives,
    :meth:`take` does not yield to other tasks when it need not wait.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.available = total
        self._waiting: deque[tuple[int, trio.lowlevel.Task]] = deque()
        self._end: Callable[[], Exception] | None = None

    def try_take(self, amount: int) -> bool:
        """Take ``amount`` units if nobody has to wait for them; tell whether that was so."""
        if self._waiting or amount > self.available or self._end is not None:
            return False
        self.available -= amount
        return True

    async def take(self, amount: int) -> None:
        """Take ``amount`` units, all at once, so that nobody holds some and waits for more.

        Raises:
            Exception: what :meth:`end` was told to raise.

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
        """Give units back that were taken."""
        self.available += amount
        self._serve()

    def end(self, error: Callable[[], Exception]) -> None:
        """Let nobody wait any more: whoever does, or wants a part later, has ``error()`` raised."""
        self._end = error
        while self._waiting:
            trio.lowlevel.reschedule(self._waiting.popleft()[1], outcome.Error(error()))

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.available:
            amount, task = self._waiting.popleft()
            self.available -= amount
            trio.lowlevel.reschedule(task)


class Share:
    """What one holder may use of a common budget: ``most`` units at a time."""

    def __init__(self, most: int, common: Budget) -> None:
        self._own = Budget(min(most, common.total))
        self._common = common

    @property
    def total(self) -> int:
        """The most that can be taken."""
        return self._own.total

    @property
    def taken(self) -> int:
        """What is taken now, or waited for."""
        return self._own.total - self._own.available

    def try_take(self, amount: int) -> bool:
        """Take ``amount`` units if nobody has to wait for them; tell whether that was so."""
        if not self._own.try_take(amount):
            return False
        if self._common.try_take(amount):
            return True
        self._own.give_back(amount)
        return False

    async def take(self, amount: int) -> None:
        """Take ``amount`` units, first of the holder's own ones, then of those of all."""
        await self._own.take(amount)
        try:
            await self._common.take(amount)
        except BaseException:
            self._own.give_back(amount)
            raise

    def give_back(self, amount: int) -> None:
        """Give units back that were taken."""
        self._own.give_back(amount)
        self._common.give_back(amount)

    async def wait_unused(self) -> None:
        """Wait until all that was taken is given back."""
        await self._own.take(self._own.total)
        self._own.give_back(self._own.total)

    def close(self) -> None:
        """Give back what is still taken; no task waits for more."""
        self.give_back(self.taken)
