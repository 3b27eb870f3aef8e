"""Where a client's memory is mapped: by the backend of each export that it was loaded from.

A backend maps it at the first load from there, in one of its memory slots, and unmaps it when the
client detaches it or when other memory needs the slot. What the device may still write to is never
unmapped under it.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from weakref import WeakKeyDictionary

import trio

from memory.foreign import ForeignRegion
from memory.guest import GuestRegion
from vuserd.device.session import Session
from vuserd.errors import BackendError, CallError, ErrorCode


class ChangeLocks:
    """At each session, a lock for the changes that all memories of one client need.

    What changes a backend's memory is done in order, one change after the other. A client that has
    many to make queues for one at a time, so that others wait for one of its changes at most.
    """

    def __init__(self) -> None:
        self._locks: WeakKeyDictionary[Session, trio.Lock] = WeakKeyDictionary()

    def at(self, session: Session) -> trio.Lock:
        """Return the lock at this session."""
        return self._locks.setdefault(session, trio.Lock())


class Window:
    """The part of a placement that one READ goes to, as the lane wants to know it."""

    def __init__(self, placement: "Placement", offset: int, length: int) -> None:
        self.address = placement.region.guest_address(offset, length)
        #: Whether its load has failed, and left it to the device.
        self.given_up = False
        self._placement = placement
        self._begin = offset
        self._end = offset + length

    def overlaps(self, begin: int, end: int) -> bool:
        """Return whether it has bytes of a range of the memory."""
        return self._begin < end and begin < self._end

    def lend(self) -> None:
        """Count it among what the device may write to."""
        self._placement.lent.add(self)

    def reclaim(self) -> None:
        """Stop counting it there: the device has returned it."""
        self._placement.lent.remove(self)
        self._placement.session.slots.returned()


class Placement:
    """A client's memory as one session's backend has it mapped."""

    def __init__(self, memory: "Placements", session: Session, region: GuestRegion) -> None:
        self.session = session
        self.region = region
        #: What the device may write to now.
        self.lent: set[Window] = set()
        self._memory = memory

    @contextmanager
    def window(self, offset: int, length: int) -> Iterator[Window]:
        """Yield a place for one READ at a time; a block that raises leaves it to the device."""
        window = Window(self, offset, length)
        try:
            yield window
        except BaseException:
            window.given_up = True
            raise

    def late(self, begin: int, end: int) -> list[Window]:
        """Return what the device may still write to in a range, and no load waits for."""
        return [window for window in self.lent if window.given_up and window.overlaps(begin, end)]

    async def leave(self) -> bool:
        """Give the slot back; return False where the memory is in use."""
        return await self._memory.leave(self)

    async def removed(self) -> None:
        """Take the region from the backend once it has returned all that it was lent.

        It has the session's timeout for that and again for each change of memory, this one and
        those asked for before it. Over that it is lost, and all tasks that wait here go on at once.
        """
        await self.session.slots.wait_returned(lambda: self.lent)
        if self.session.lost:
            self.lent.clear()  # nothing comes back, and each refers to this
        else:
            await self.session.slots.remove(self.region)


class Placements:
    """The placements of one client's memory, and the loads that use them.

    Args:
        region: the memory, closed by :meth:`end`.
        changes: those of its client.

    """

    def __init__(self, region: ForeignRegion, changes: ChangeLocks) -> None:
        self._region = region
        self._changes = changes
        self._placements: list[Placement] = []
        #: Held while a backend begins or ceases to map the memory.
        self._placing = trio.Lock()
        self._ended = False
        self._loads = 0
        self._loads_ended = trio.lowlevel.ParkingLot()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the memory where it is mapped for the block's time, which is one load's.

        Raises:
            CallError: BAD_REQUEST: it was detached before.

        """
        if self._ended:
            raise CallError(
                ErrorCode.BAD_REQUEST, "there is no attached memory any more: it was detached"
            )
        self._loads += 1
        try:
            yield
        finally:
            self._loads -= 1
            if not self._loads:
                self._loads_ended.unpark_all()

    async def at(self, session: Session) -> Placement:
        """Let the session's backend map the memory, the first time that it is loaded from there.

        Raises:
            CallError: BUSY: the backend has no memory slot for it.
            BackendError: the backend refused it, or is lost.

        """
        if not self._placing.locked():  # which costs a pass of the scheduler
            for placement in self._placements:
                if placement.session is session and not session.lost:
                    session.slots.mark_used(placement)
                    return placement
        async with self._placing:
            for lost in [each for each in self._placements if each.session.lost]:
                self._placements.remove(lost)
                lost.lent.clear()
            for placement in self._placements:
                if placement.session is session:
                    break
            else:
                async with self._changes.at(session):
                    placement = Placement(self, session, await session.slots.add(self._region))
                self._placements.append(placement)
            session.slots.mark_used(placement)
            return placement

    async def wait_for_late_reads(self, begin: int, end: int) -> None:
        """Wait until no READ of a load that failed can write to a range any more.

        It would do so over what the next load is about to say stands there. Of each backend it is
        awaited as in :meth:`Placement.removed`.
        """
        for placement in list(self._placements):
            late = functools.partial(placement.late, begin, end)
            await placement.session.slots.wait_returned(late)

    async def leave(self, placement: Placement) -> bool:
        """Take the memory from one backend until it is loaded from there again.

        Return False where a load uses it.
        """
        if self._loads or self._placing.locked():
            return False
        async with self._placing:
            if self._loads or placement not in self._placements:  # end() has it
                return False
            self._placements.remove(placement)
            placement.session.slots.end_hold(placement)
            with (
                trio.CancelScope(shield=True),  # no other task would take it from the backend now
                suppress(BackendError),  # the next load is told
            ):
                await placement.removed()
        return True

    async def end(self) -> None:
        """Wait for loads in progress, take the memory from every backend, and close it.

        No load begins any more. Shielded, since what a backend still maps would keep its slot, and
        all of that ends in time: each backend has its session's timeout to return what it was lent
        and again for each change of memory that is asked of it, all backends at the same time; one
        that takes longer is lost. Loads in progress end when they are cancelled.
        """
        self._ended = True
        with trio.CancelScope(shield=True):
            try:
                while self._loads:
                    await self._loads_ended.park()
                # What leave() has begun to take from a backend is mapped there until it is done.
                async with self._placing, trio.open_nursery() as nursery:
                    while self._placements:
                        placement = self._placements.pop()
                        placement.session.slots.end_hold(placement)
                        nursery.start_soon(self._take_from_backend, placement)
            finally:
                self._region.close()

    async def _take_from_backend(self, placement: Placement) -> None:
        with suppress(BackendError):  # a backend that is lost maps nothing
            async with self._changes.at(placement.session):
                await placement.removed()
