"""Payload buffers, for which callers wait in turn, first come, first served."""

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
        timeout: the longest wait of a caller, in seconds.
        lost: called with the reason if the backend keeps so many buffers that callers wait in vain.

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

    @property
    def size(self) -> int:
        """Bytes of each."""
        return self._pool.buffer_size

    async def take(self, count: int) -> list[Buffer]:
        """Take ``count`` buffers; the caller gives each back.

        Raises:
            BackendTimeout: not that many became free in time.
            BackendError: the backend is lost.

        """
        if not self._budget.try_take(count):
            with trio.move_on_after(self._timeout) as patience:
                await self._budget.take(count)
            if patience.cancelled_caught:
                self._find_kept(count)
                raise BackendTimeout(f"too few payload buffers were free for {self._timeout:g} s")
        return [self._pool.take() for _ in range(count)]

    def try_take(self) -> Buffer | None:
        """Take a buffer if more than half are free; the caller gives it back.

        The caller may hold it before it needs one: if what it asks for first hangs, half of the
        buffers are left to others.
        """
        if self._budget.available <= self._pool.count // 2 or not self._budget.try_take(1):
            return None
        return self._pool.take()

    def fail(self, reason: BackendError) -> None:
        """Fail current and future waiters: the backend is lost, with the buffers that it has."""
        self._budget.end(reason.again().again)
        self._lost = lambda _: None  # the session knows by now; keep no reference to it

    def _find_kept(self, wanted: int) -> None:
        """Give up a backend that keeps too many abandoned buffers for ``wanted`` to be had.

        It may answer everything else, and so would never be found silent.
        """
        kept = self._pool.quarantined
        if wanted > self._pool.count - kept:
            reason = f"the backend keeps {kept} of {self._pool.count} payload buffers"
            self._lost(BackendDown(reason, LossCause.SILENT))

    def _freed(self) -> None:
        self._budget.give_back(1)


@contextmanager
def given_back(buffers: list[Buffer]) -> Iterator[list[Buffer]]:
    """Give back the buffers that are still in the list at the end of the block."""
    try:
        yield buffers
    finally:
        while buffers:
            buffers.pop().give_back()
