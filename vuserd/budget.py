"""An amount that many share: whoever wants a part waits for it in turn."""

from collections import deque

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

    async def take(self, amount: int) -> None:
        """Take ``amount`` units, all at once, so that nobody holds some and waits for more."""
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

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.available:
            amount, task = self._waiting.popleft()
            self.available -= amount
            trio.lowlevel.reschedule(task)
