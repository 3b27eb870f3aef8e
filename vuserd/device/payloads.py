"""Payload buffers for callers who may have to wait for them, first come, first served."""

from collections.abc import Iterator
from contextlib import contextmanager

from memory.arena import Buffer, Pool
from vuserd.budget import Budget
from vuserd.errors import BackendError


class PayloadPool:
    """The payload buffers of one session."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._budget = Budget(pool.count)
        pool.on_free = self._freed

    @property
    def taken(self) -> int:
        """How many are not free: owned, lent to the device, or in quarantine."""
        return self._pool.count - self._pool.available

    async def take(self, count: int, owner: object) -> list[Buffer]:
        """Take ``count`` buffers; each is its owner's to give back.

        Raises:
            BackendError: the backend is lost.

        """
        await self._budget.take(count)
        return [self._pool.take(owner) for _ in range(count)]

    def fail(self, reason: BackendError) -> None:
        """Wake all who wait: the backend is lost, and what it has of the buffers stays away."""
        self._budget.end(reason.again)

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
