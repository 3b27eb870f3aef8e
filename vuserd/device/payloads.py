"""Payload buffers for callers who may have to wait for them, first come, first served."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from memory.arena import Buffer, Pool
from vuserd.errors import BackendDown, BackendError, BackendTimeout, LossCause
from vuserd.tasks.budget import Budget


class PayloadPool:
    """The payload buffers of one session.

    Args:
        pool: the buffers.
        timeout: seconds that a caller waits for some.
        lost: called with the reason when the backend keeps so many that callers wait in vain.

    """

    def __init__(self, pool: Pool, timeout: float, lost: Callable[[BackendError], None]) -> None:
        self._pool = pool
        self._timeout = timeout
        self._lost = lost
        self._budget = Budget(pool.count)
        pool.on_free = self._freed

    @property
    def taken(self) -> int:
        """How many are not free: owned, lent to the device, or in quarantine."""
        return self._pool.count - self._pool.available

    async def take(self, count: int) -> list[Buffer]:
        """Take ``count`` buffers; each is the caller's to give back.

        Raises:
            BackendTimeout: there were not as many in time.
            BackendError: the backend is lost.

        """
        if not self._budget.try_take(count):
            with trio.move_on_after(self._timeout) as patience:
                await self._budget.take(count)
            if patience.cancelled_caught:
                self._find_kept(count)
                raise BackendTimeout(f"too few payload buffers were free for {self._timeout:g} s")
        return [self._pool.take() for _ in range(count)]

    def fail(self, reason: BackendError) -> None:
        """Wake all who wait: the backend is lost, and what it has of the buffers stays away."""
        self._budget.end(reason.again().again)
        self._lost = lambda _: None  # who is told knows by now, and is not kept from here

    def _find_kept(self, wanted: int) -> None:
        """Give up a backend that keeps what nobody waits for, and leaves less than is wanted.

        It may answer all else, and as long as it does nobody would ever get that many.
        """
        kept = self._pool.quarantined
        if wanted > self._pool.count - kept:
            reason = f"the backend keeps {kept} of {self._pool.count} payload buffers"
            self._lost(BackendDown(reason, LossCause.SILENT))

    def _freed(self) -> None:
        self._budget.give_back(1)


@contextmanager
def given_back(buffers: list[Buffer]) -> Iterator[list[Buffer]]:
    """Give the buffers back at the end of the block, those that are still in the list."""
    try:
        yield buffers
    finally:
        while buffers:
            buffers.pop().give_back()
