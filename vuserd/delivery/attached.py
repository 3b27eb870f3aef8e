"""A client's own memory: the backend writes a file's bytes there itself, one copy in all."""

import contextlib
import functools
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

import trio

from memory.foreign import ForeignRegion, UnfitMemoryError
from memory.guest import GuestRegion
from protocol.fuse import PAGE_SIZE
from vuserd.delivery.headroom import HEADROOM
from vuserd.delivery.one_version import Delivery, FileChanged, deliver_whole
from vuserd.device.payloads import given_back
from vuserd.device.session import Session
from vuserd.errors import BackendError, CallError, ErrorCode
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.openfile import OpenFile
from vuserd.tasks.gather import gather
from vuserd.users.foreign_descriptors import ForeignDescriptors
from vuserd.users.holdings import Holdings

#: Seconds for a memfd to be sealed, which waits for whoever fills it or changes its length.
_SEALING: Final = 2.0
#: READs in flight of one load.
_WINDOW: Final = 8
#: Bytes of a load after which the memory that the rest takes is looked at again.
_STEP: Final = 4 << 20


class Loaded(NamedTuple):
    """What became of a load."""

    length: int  #: bytes that stand in the memory now


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


class _Placed:
    """Attached memory as one session's backend has it mapped."""

    def __init__(self, memory: "AttachedMemory", session: Session, region: GuestRegion) -> None:
        self.session = session
        self.region = region
        #: What the device may write to now.
        self.lent: set[_Window] = set()
        self._memory = memory

    @contextlib.contextmanager
    def window(self, offset: int, length: int) -> "Iterator[_Window]":
        """Give a place for one READ at a time; whoever leaves with an exception wants no more."""
        window = _Window(self, offset, length)
        try:
            yield window
        except BaseException:
            window.given_up = True
            raise

    def late(self, begin: int, end: int) -> list["_Window"]:
        """Return what the device may still write to in a range, and no load waits for."""
        return [window for window in self.lent if window.given_up and window.overlaps(begin, end)]

    async def leave(self) -> bool:
        """Give the slot back, unless the memory is in use."""
        return await self._memory.leave(self)

    async def removed(self) -> None:
        """Take the region from the backend once it has returned all that it was lent.

        It has the session's timeout for that and again for each change of memory, this one and
        those asked for before it. Over that it is lost, and all who wait here go on at once.
        """
        await self.session.slots.wait_returned(lambda: self.lent)
        if self.session.lost:
            self.lent.clear()  # nothing comes back, and each refers to this
        else:
            await self.session.slots.remove(self.region)


class _Window:
    """Where one READ goes, as the channel wants to know it."""

    def __init__(self, placed: _Placed, offset: int, length: int) -> None:
        self.address = placed.region.guest_address(offset, length)
        #: Whether its load has failed, and left it to the device.
        self.given_up = False
        self._placed = placed
        self._begin = offset
        self._end = offset + length

    def overlaps(self, begin: int, end: int) -> bool:
        """Tell whether it has bytes of a range of the memory."""
        return self._begin < end and begin < self._end

    def lend(self) -> None:
        self._placed.lent.add(self)

    def reclaim(self) -> None:
        self._placed.lent.remove(self)
        self._placed.session.slots.returned()


class AttachedMemory:
    """One memfd of a client's, mapped by the backend of each export that it was loaded from.

    Args:
        region: the memfd.
        changes: those of its client.

    """

    def __init__(self, region: ForeignRegion, changes: ChangeLocks) -> None:
        self.region = region
        self._changes = changes
        self._placed: list[_Placed] = []
        self._placing = trio.Lock()
        self._detached = False
        self._loads = 0
        self._loads_ended = trio.lowlevel.ParkingLot()

    async def load(
        self, filesystem: FileSystem, path: bytes, address: int, offset: int, length: int | None
    ) -> int:
        """Have a file's bytes written to ``address``, an offset in the memory.

        Args:
            filesystem: where the file is.
            path: a regular file.
            address: where its bytes go.
            offset: the first byte of the file that is wanted.
            length: how many; None for all up to the file's end.

        Returns:
            How many bytes stand there now: fewer than ``length`` only where the file ends.

        Raises:
            CallError: TOO_LARGE when they would leave the memory, CHANGED when the file went on
                changing: then what stands there is of no use; BAD_REQUEST when the memory was
                detached before this, such as while the call waited for a backend.
            FileError: what the file system says, or ENOMEM when pages that the memory does not
                have yet cannot be had.

        """
        self._begin_load()
        try:
            way = Delivery(
                functools.partial(
                    self._load_version, address=address, offset=offset, length=length
                ),
                functools.partial(self._agrees, address=address, offset=offset),
                lambda _: None,
            )
            return await deliver_whole(filesystem, path, way)
        finally:
            self._end_load()

    async def load_open(self, file: OpenFile, address: int, offset: int, length: int | None) -> int:
        """Do the same as :meth:`load` with an open file, of whatever version.

        Raises:
            As that, but for CHANGED.

        """
        self._begin_load()
        try:
            loaded = await self._load_by_size(file, address, offset, length)
            if loaded is not None:
                return loaded
            return await self._load_to_the_end(file, address, offset, length)
        finally:
            self._end_load()

    def _begin_load(self) -> None:
        if self._detached:
            raise CallError(
                ErrorCode.BAD_REQUEST, "there is no attached memory any more: it was detached"
            )
        self._loads += 1

    def _end_load(self) -> None:
        self._loads -= 1
        if not self._loads:
            self._loads_ended.unpark_all()

    async def detach(self) -> None:
        """Wait for loads in progress, take the memory from every backend, and close it.

        No load begins any more. Shielded, since what a backend still maps would keep its slot, and
        all of that ends in time: each backend has its session's timeout to return what it was lent
        and again for each change of memory that is asked of it, all backends at the same time; one
        that takes longer is lost. Loads in progress end when they are cancelled.
        """
        self._detached = True
        with trio.CancelScope(shield=True):
            await self._detach()

    async def _detach(self) -> None:
        try:
            while self._loads:
                await self._loads_ended.park()
            async with trio.open_nursery() as nursery:
                while self._placed:
                    placed = self._placed.pop()
                    placed.session.slots.end_hold(placed)
                    nursery.start_soon(self._take_from_backend, placed)
        finally:
            self.region.close()

    async def _take_from_backend(self, placed: _Placed) -> None:
        with contextlib.suppress(BackendError):  # a backend that is lost maps nothing
            async with self._changes.at(placed.session):
                await placed.removed()

    async def _load_version(
        self, file: OpenFile, address: int, offset: int, length: int | None
    ) -> int:
        loaded = await self._load_by_size(file, address, offset, length)
        if loaded is not None:
            return loaded
        if not await file.unchanged():
            raise FileChanged
        return await self._load_to_the_end(file, address, offset, length)

    async def _agrees(self, file: OpenFile, loaded: int, address: int, offset: int) -> bool:
        """Read the file once more; tell whether that is what stands in the memory."""
        with given_back(await file.session.payloads.take(1)) as buffers:
            for begin in range(0, loaded, file.max_read):
                size = min(file.max_read, loaded - begin)
                got = await file.read_on_into(buffers[0], offset + begin, size)
                there = os.pread(self.region.fileno(), size, address + begin)
                if bytes(buffers[0].view[:got]) != there:
                    return False
        return True

    async def _load_by_size(
        self, file: OpenFile, address: int, offset: int, length: int | None
    ) -> int | None:
        """Load what there is by the file's size; None where that proves to be untrue."""
        if not file.size:
            return None
        there = max(file.size - offset, 0)
        wanted = there if length is None else min(length, there)
        room = max(self.region.size - address, 0)
        if wanted > room:
            if not await _goes_on(file, offset + room):
                return None
            raise CallError(
                ErrorCode.TOO_LARGE,
                f"{wanted} bytes do not fit: the memory ends {room} bytes after {address}",
                size=wanted,
                room=room,
            )
        if not wanted:
            return None if length != 0 and await _goes_on(file, offset) else 0
        self._require_pages(wanted)
        placed = await self._place(file.session)
        await self._wait_for_late_reads(address, address + wanted)
        part = file.max_read
        parts = iter(range(0, wanted, part))
        is_true = True

        async def load_parts(at: Iterator[int]) -> None:
            nonlocal is_true
            for begin in at:
                size = min(part, wanted - begin)
                if begin % _STEP < part:
                    self._require_pages(wanted - begin)
                with placed.window(address + begin, size) as window:
                    got = await file.read_into(window, offset + begin, size)
                if got < size:
                    is_true = False

        async def look_behind() -> None:
            nonlocal is_true
            if await _goes_on(file, offset + wanted):
                is_true = False

        count = min(_WINDOW, -(-wanted // part))
        jobs: list[Callable[[], Awaitable[None]]] = [functools.partial(load_parts, parts)] * count
        if wanted == there and wanted != length:
            jobs.append(look_behind)
        await gather(jobs)
        return wanted if is_true else None

    async def _load_to_the_end(
        self, file: OpenFile, address: int, offset: int, length: int | None
    ) -> int:
        """Load a file whose size is not known, one READ after the other."""
        room = max(self.region.size - address, 0)
        wanted = room if length is None else min(length, room)
        if length == 0 or not await _goes_on(file, offset):
            return 0
        placed = await self._place(file.session)
        for begin in range(0, wanted, file.max_read):
            size = min(file.max_read, wanted - begin)
            self._require_pages(size)
            await self._wait_for_late_reads(address + begin, address + begin + size)
            with placed.window(address + begin, size) as window:
                got = await file.read_on_into(window, offset + begin, size)
            if got < size:
                return begin + got
        if wanted != length and await _goes_on(file, offset + wanted):
            raise CallError(
                ErrorCode.TOO_LARGE,
                f"the file does not fit: the memory ends {room} bytes after {address}",
                room=room,
            )
        return wanted

    def _require_pages(self, size: int) -> None:
        """Refuse what has no room: pages that the backend touches first are the daemon's."""
        missing = min(size, self.region.unallocated)
        if missing:
            HEADROOM.require(missing, "the attached memory")

    async def _wait_for_late_reads(self, begin: int, end: int) -> None:
        """Wait until no READ of a load that failed can write to a range any more.

        It would do so over what the next load is about to say stands there. Of each backend it is
        awaited as in :meth:`_Placed.removed`.
        """
        for placed in list(self._placed):
            await placed.session.slots.wait_returned(functools.partial(placed.late, begin, end))

    async def _place(self, session: Session) -> _Placed:
        """Let the session's backend map the memory, the first time that it is loaded from there."""
        async with self._placing:
            for placed in [placed for placed in self._placed if placed.session.lost]:
                self._placed.remove(placed)
                placed.lent.clear()
            for placed in self._placed:
                if placed.session is session:
                    break
            else:
                async with self._changes.at(session):
                    placed = _Placed(self, session, await session.slots.add(self.region))
                self._placed.append(placed)
            session.slots.mark_used(placed)
            return placed

    async def leave(self, placed: _Placed) -> bool:
        """Take the memory from one backend until it is loaded from there again; False if in use."""
        if self._loads or self._placing.locked():
            return False
        async with self._placing:
            if self._loads or placed not in self._placed:  # detach() has it
                return False
            self._placed.remove(placed)
            placed.session.slots.end_hold(placed)
            with (
                trio.CancelScope(shield=True),  # nobody else would take it from the backend now
                contextlib.suppress(BackendError),  # whoever loads next is told
            ):
                await placed.removed()
        return True


async def _goes_on(file: OpenFile, offset: int) -> bool:
    """Tell whether a file whose size is not known has bytes from an offset on."""
    with given_back(await file.session.payloads.take(1)) as buffers:
        return await file.read_into(buffers[0], offset, PAGE_SIZE) > 0


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
