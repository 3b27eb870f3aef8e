"""What one client has attached: its memories by their ids, within its limits and its user's."""

import functools
from typing import Final

import trio

from memory.foreign import ForeignRegion, UnfitMemoryError
from vuserd.delivery.attached import AttachedMemory
from vuserd.delivery.placements import ChangeLocks
from vuserd.errors import CallError, ErrorCode
from vuserd.users.foreign_descriptors import ForeignDescriptors
from vuserd.users.holdings import Holdings

#: Seconds for a memfd to be sealed, which waits for the client that fills it or changes its length.
_SEALING: Final = 2.0


class MemoryTable:
    """What one client has attached, by the ids that it was given.

    Args:
        most: how many memories.
        most_bytes: how many bytes of them in all.
        foreign: the descriptors of its user.
        holdings: those of its user, among which these count.

    """

    def __init__(
        self, most: int, most_bytes: int, foreign: ForeignDescriptors, holdings: Holdings
    ) -> None:
        self._holdings = holdings
        self._most = most
        self._most_bytes = most_bytes
        self._foreign = foreign
        self._memories: dict[int, AttachedMemory] = {}
        self._changes = ChangeLocks()
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._memories)

    async def attach(self, descriptor: int, size: int) -> int:
        """Take over a descriptor; return the memory's id.

        Raises:
            CallError: BAD_REQUEST for what is no fit memfd or attached already, TOO_LARGE over the
                client's limits or its user's, TIMEOUT while others change the memory.

        """
        try:
            region = await self._foreign.call(
                functools.partial(ForeignRegion, descriptor, size, self._foreign.close),
                ForeignRegion.close,
                _SEALING,
            )
        except UnfitMemoryError as error:
            raise CallError(ErrorCode.BAD_REQUEST, f"attach: {error}") from error
        try:
            self._check(region)
            self._holdings.take()
        except CallError:
            region.close()
            raise
        self._last_id += 1
        self._memories[self._last_id] = AttachedMemory(region, self._changes)
        return self._last_id

    def find(self, memory: int) -> AttachedMemory:
        """Return the memory of this id.

        Raises:
            CallError: BAD_REQUEST: there is none.

        """
        found = self._memories.get(memory)
        if found is None:
            raise CallError(ErrorCode.BAD_REQUEST, f"there is no attached memory {memory}")
        return found

    async def detach(self, memory: int) -> None:
        """Let go of a memory; its id means nothing from here on.

        Raises:
            CallError: BAD_REQUEST: there is none of this id.

        """
        found = self.find(memory)
        del self._memories[memory]
        try:
            await found.detach()
        finally:
            self._holdings.give_back()

    async def close(self) -> None:
        """Let go of all of them, at the same time: see :meth:`AttachedMemory.detach`."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for memory in list(self._memories):
                    nursery.start_soon(self.detach, memory)

    def _check(self, region: ForeignRegion) -> None:
        regions = [memory.region for memory in self._memories.values()]
        if any(region.identity == other.identity for other in regions):
            raise CallError(ErrorCode.BAD_REQUEST, "attach: this memory is attached already")
        if len(regions) >= self._most:
            raise CallError(
                ErrorCode.TOO_LARGE, f"a client may attach {self._most} memories", limit=self._most
            )
        total = region.size + sum(other.size for other in regions)
        if total > self._most_bytes:
            raise CallError(
                ErrorCode.TOO_LARGE,
                f"a client may attach {self._most_bytes} bytes in all, this would make {total}",
                limit=self._most_bytes,
            )
