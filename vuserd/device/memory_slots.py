"""A backend's memory slots: which regions it maps, which holder gives one up, and what it was lent.

The session's own region takes one slot. The others are for memory of clients, which the backend
maps as long as there are slots enough: the memory that was used longest ago makes room.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from memory.guest import GuestMemory, GuestRegion, Shareable
from protocol.vhost_user import Request, encode_memory_region, encode_memory_table
from vuserd.device.connection import VhostUserConnection
from vuserd.errors import (
    BackendDown,
    BackendError,
    BackendRefused,
    CallError,
    ErrorCode,
    LossCause,
)


class SlotHolder(Protocol):
    """The holder of a memory slot, for memory that may not be in use all the time."""

    async def leave(self) -> bool:
        """Give the slot back; return False, at once, where it is in use."""


class MemorySlots:
    """The regions that one session's backend maps.

    Args:
        connection: to the backend that serves now; see :meth:`move`.
        memory: the regions, the session's own first.
        timeout: seconds for the device to return what it was lent.
        lost: called with the reason when the backend is lost by what it does here.

    """

    def __init__(
        self,
        connection: VhostUserConnection,
        memory: GuestMemory,
        timeout: float,
        lost: Callable[[BackendError], None],
    ) -> None:
        #: Regions that the backend can map.
        self.limit = 1
        #: Held while regions come or go, and while the session goes on with another backend.
        self.turn = trio.Lock()
        self._connection = connection
        self._memory = memory
        self._timeout = timeout
        self._lost = lost
        self._reason: BackendError | None = None
        #: The one whose slot was used longest ago first.
        self._holders: dict[SlotHolder, None] = {}
        #: Tasks that wait for what the device was lent.
        self._lenders = trio.lowlevel.ParkingLot()

    async def share(self, connection: VhostUserConnection) -> None:
        """Let a backend, to which the session has just connected, map all regions.

        Raises:
            BackendError: it refused, or is lost.

        """
        own, *added = self._memory
        table = encode_memory_table([own.wire()])
        await connection.tell(Request.SET_MEM_TABLE, table, [own.region.fileno()])
        for placed in added:
            payload = encode_memory_region(placed.wire())
            await connection.tell(Request.ADD_MEM_REG, payload, [placed.region.fileno()])

    def move(self, connection: VhostUserConnection) -> None:
        """Go on with another backend, which maps all regions already."""
        self._connection = connection

    async def add(self, region: Shareable) -> GuestRegion:
        """Let the backend map one more region, which stays the caller's.

        Where all slots are taken, an idle one is taken from its holder.

        Raises:
            CallError: BUSY when the backend has no slot left for it.
            BackendError: the backend refused it, or is lost, be it while a slot was waited for.

        """
        while True:
            async with self.turn:
                if len(self._memory) < self.limit:
                    return await self._add(region)
            await self._free_one()

    async def _add(self, region: Shareable) -> GuestRegion:
        placed = self._memory.add(region)
        try:
            await self._change(Request.ADD_MEM_REG, placed, [region.fileno()])
        except BaseException:
            self._memory.remove(placed)
            raise
        return placed

    async def remove(self, placed: GuestRegion) -> None:
        """Have the backend unmap a region; no request that is in flight may touch it.

        Raises:
            BackendError: the backend refused, or is lost.

        """
        async with self.turn:
            self._memory.remove(placed)
            try:
                await self._change(Request.REM_MEM_REG, placed)
            except BackendError as error:
                self._lost(error)  # it may still be mapped
                raise

    def mark_used(self, holder: SlotHolder) -> None:
        """Mark this holder's slot most recently used."""
        self._holders.pop(holder, None)
        if self._reason is None:
            self._holders[holder] = None

    def end_hold(self, holder: SlotHolder) -> None:
        """Stop asking a holder for its slot: it gives that back."""
        self._holders.pop(holder, None)

    def returned(self) -> None:
        """Have :meth:`wait_returned` look again: the device returned some of what it was lent."""
        self._lenders.unpark_all()

    async def wait_returned(self, keeps: Callable[[], object]) -> None:
        """Wait while the device ``keeps`` what it was lent; a lost backend returns nothing.

        It has the session's timeout for that. Over that it is lost: what it keeps is memory that it
        may write to at any time.
        """
        if not keeps():
            return
        with trio.move_on_after(self._timeout):
            while keeps() and self._reason is None:
                await self._lenders.park()
        if keeps():
            self._lost(BackendDown("the backend keeps a request", LossCause.SILENT))

    def fail(self, reason: BackendError) -> None:
        """Wake all tasks that wait: the backend is lost, and returns nothing that it was lent."""
        self._reason = reason.again()
        # Neither the session nor its memory is kept from here: the session knows by now, and there
        # are no slots to give back.
        self._lost = lambda _: None
        self._holders.clear()
        self._lenders.unpark_all()

    async def _free_one(self) -> None:
        for holder in list(self._holders):
            if await holder.leave():
                return
        if self._reason is not None:  # the next backend has slots of its own
            raise self._reason.again()
        raise CallError(
            ErrorCode.BUSY,
            f"the backend has {self.limit} memory slots, and all are in use",
            limit=self.limit,
        )

    async def _change(
        self, request: Request, placed: GuestRegion, descriptors: Sequence[int] = ()
    ) -> None:
        payload = encode_memory_region(placed.wire())
        try:
            await self._connection.tell(request, payload, descriptors)
        except BackendRefused:
            raise
        except BackendError as error:
            self._lost(error)  # known here before the task that watches the connection has its turn
            raise
