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
