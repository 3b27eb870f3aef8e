"""A client's own memory: the backend writes a file's bytes there itself, one copy in all."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Final

import trio

from memory.foreign import ForeignRegion, UnfitMemoryError
from memory.guest import GuestRegion
from vuserd.delivery.whole import deliver_whole
from vuserd.device.session import Session
from vuserd.errors import BackendDown, BackendError, CallError, ErrorCode
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.openfile import OpenFile
from vuserd.gather import gather

#: READs in flight of one load.
_WINDOW: Final = 8


class _Placed:
    """Attached memory as one session's backend has it mapped."""

    def __init__(self, session: Session, region: GuestRegion) -> None:
        self.session = session
        self.region = region
        self._lent = 0
        self._returned = trio.lowlevel.ParkingLot()

    def lend(self) -> None:
        self._lent += 1

    def reclaim(self) -> None:
        self._lent -= 1
        if not self._lent:
            self._returned.unpark_all()

    async def removed(self) -> None:
        """Take the region from the backend once it has returned all that it was lent.

        One that keeps any of it for longer than it may take for a reply is lost.
        """
        deadline = trio.current_time() + self.session.timeout
        while self._lent and not self.session.lost:
            with trio.move_on_after(1):  # a lost backend returns nothing
                await self._returned.park()
            if self._lent and trio.current_time() >= deadline:
                self.session.lose(BackendDown("the backend keeps a request"))
        if not self.session.lost:
            await self.session.remove_region(self.region)


class _Window:
    """Where one READ goes, as the channel wants to know it."""

    def __init__(self, placed: _Placed, offset: int, length: int) -> None:
        self.address = placed.region.guest_address(offset, length)
        self.lend = placed.lend
        self.reclaim = placed.reclaim


class AttachedMemory:
    """One memfd of a client's, mapped by the backend of each export that it was loaded from."""

    def __init__(self, region: ForeignRegion) -> None:
        self.region = region
        self._placed: list[_Placed] = []
        self._placing = trio.Lock()
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
                changing: then what stands there is of no use.
            FileError: what the file system says.

        """
        self._loads += 1
        try:
            deliver = functools.partial(
                self._load_version, address=address, offset=offset, length=length
            )
            return await deliver_whole(filesystem, path, deliver, lambda _: None)
        finally:
            self._loads -= 1
            if not self._loads:
                self._loads_ended.unpark_all()

    async def detach(self) -> None:
        """Wait for loads in progress, take the memory from every backend, and close it."""
        try:
            while self._loads:
                await self._loads_ended.park()
            while self._placed:
                placed = self._placed[-1]
                placed.session.attached.pop(self, None)
                with contextlib.suppress(BackendError):  # a backend that is lost maps nothing
                    await placed.removed()
                self._placed.remove(placed)
        finally:
            self.region.close()

    async def _load_version(
        self, file: OpenFile, address: int, offset: int, length: int | None
    ) -> int:
        there = max(file.size - offset, 0)
        wanted = there if length is None else min(length, there)
        room = self.region.size - address
        if wanted > room:
            raise CallError(
                ErrorCode.TOO_LARGE,
                f"{wanted} bytes do not fit: the memory ends {max(room, 0)} bytes after {address}",
                size=wanted,
                room=max(room, 0),
            )
        if not wanted:
            return 0
        placed = await self._place(file.session)
        part = file.max_read
        parts = iter(range(0, wanted, part))
        ends = [wanted]

        async def load_parts(at: Iterator[int]) -> None:
            for begin in at:
                size = min(part, wanted - begin)
                window = _Window(placed, address + begin, size)
                got = await file.read_into(window, offset + begin, size)
                if got < size:
                    ends.append(begin + got)

        count = min(_WINDOW, -(-wanted // part))
        await gather([functools.partial(load_parts, parts)] * count)
        return min(ends)

    async def _place(self, session: Session) -> _Placed:
        """Let the session's backend map the memory, the first time that it is loaded from there."""
        async with self._placing:
            self._placed = [placed for placed in self._placed if not placed.session.lost]
            for placed in self._placed:
                if placed.session is session:
                    session.attached[self] = session.attached.pop(self)  # the last to go
                    return placed
            try:
                region = await session.add_region(self.region)
            except CallError as full:
                if full.code != ErrorCode.BUSY or not await _take_idle_slot(session):
                    raise
                region = await session.add_region(self.region)
            placed = _Placed(session, region)
            self._placed.append(placed)
            session.attached[self] = placed
            return placed

    async def leave(self, placed: _Placed) -> bool:
        """Take the memory from one backend until it is loaded from there again; False if in use."""
        if self._loads or self._placing.locked():
            return False
        async with self._placing:
            if self._loads or placed not in self._placed:
                return False
            self._placed.remove(placed)
            placed.session.attached.pop(self, None)
            with contextlib.suppress(BackendError):  # whoever loads next is told
                await placed.removed()
        return True


async def _take_idle_slot(session: Session) -> bool:
    """Free the slot of the memory that was loaded into longest ago, of those that are not now."""
    for memory, placed in list(session.attached.items()):
        if await memory.leave(placed):
            return True
    return False


class MemoryTable:
    """What one client has attached, by the ids that it was given.

    Args:
        most: how many memories.
        most_bytes: how many bytes of them in all.

    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._memories: dict[int, AttachedMemory] = {}
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._memories)

    def attach(self, descriptor: int, size: int) -> int:
        """Take over a descriptor; return the memory's id.

        Raises:
            CallError: BAD_REQUEST for what is no fit memfd or attached already, TOO_LARGE over the
                client's limits.

        """
        try:
            region = ForeignRegion(descriptor, size)
        except UnfitMemoryError as error:
            raise CallError(ErrorCode.BAD_REQUEST, f"attach: {error}") from error
        try:
            self._check(region)
        except CallError:
            region.close()
            raise
        self._last_id += 1
        self._memories[self._last_id] = AttachedMemory(region)
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
        await found.detach()

    async def close(self) -> None:
        """Let go of all of them."""
        while self._memories:
            await self._memories.popitem()[1].detach()

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
