"""A client's own memory: the backend writes a file's bytes there itself, one copy in all."""

import contextlib
import functools
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, NamedTuple

from memory.foreign import ForeignRegion
from vuserd.delivery.headroom import HEADROOM
from vuserd.delivery.one_version import Delivery, FileChanged, deliver_whole
from vuserd.delivery.placements import ChangeLocks, Placements
from vuserd.device.payloads import given_back
from vuserd.errors import CallError, ErrorCode
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.openfile import OpenFile
from vuserd.tasks.gather import gather

#: READs that a load's task sends at once and waits for once, and batches in flight of one load.
_TOGETHER: Final = 4
_WINDOW: Final = 2


class Loaded(NamedTuple):
    """What became of a load."""

    length: int  #: bytes that stand in the memory now


class AttachedMemory:
    """One memfd of a client's, mapped by the backend of each export that it was loaded from.

    Args:
        region: the memfd.
        changes: those of its client.

    """

    def __init__(self, region: ForeignRegion, changes: ChangeLocks) -> None:
        self.region = region
        self._placements = Placements(region, changes)

    async def load(
        self, filesystem: FileSystem, path: bytes, address: int, offset: int, length: int | None
    ) -> int:
        """Load a file's bytes to ``address``, an offset in the memory.

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
        way = Delivery(
            functools.partial(self._load_version, address=address, offset=offset, length=length),
            functools.partial(self._agrees, address=address, offset=offset),
            lambda _: None,
        )
        with self._placements.in_use():
            return await deliver_whole(filesystem, path, way)

    async def load_open(self, file: OpenFile, address: int, offset: int, length: int | None) -> int:
        """Do the same as :meth:`load` with an open file, of whatever version.

        Raises:
            As that, but for CHANGED.

        """
        with self._placements.in_use():
            loaded = await self._load_by_size(file, address, offset, length)
            if loaded is not None:
                return loaded
            return await self._load_to_the_end(file, address, offset, length)

    async def detach(self) -> None:
        """Let go of the memory: see :meth:`~vuserd.delivery.placements.Placements.end`."""
        await self._placements.end()

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
        """Read the file once more; return whether that is what stands in the memory."""
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
            if not await file.goes_on(offset + room):
                return None
            raise CallError(
                ErrorCode.TOO_LARGE,
                f"{wanted} bytes do not fit: the memory ends {room} bytes after {address}",
                size=wanted,
                room=room,
            )
        if not wanted:
            return None if length != 0 and await file.goes_on(offset) else 0
        placement = await self._placements.at(file.session)
        await self._placements.wait_for_late_reads(address, address + wanted)
        part = file.max_read
        batch = part * _TOGETHER
        batches = iter(range(0, wanted, batch))
        is_true = True

        async def load_batches() -> None:
            nonlocal is_true
            for begin in batches:
                end = min(begin + batch, wanted)
                with self._pages(end - begin, wanted - begin), contextlib.ExitStack() as windows:
                    reads = []
                    for at in range(begin, end, part):
                        size = min(part, wanted - at)
                        window = windows.enter_context(placement.window(address + at, size))
                        reads.append((window, offset + at, size))
                    got = await file.read_all_into(reads)
                if sum(got) < end - begin:
                    is_true = False

        async def look_behind() -> None:
            nonlocal is_true
            if await file.goes_on(offset + wanted):
                is_true = False

        count = min(_WINDOW, -(-wanted // batch))
        jobs: list[Callable[[], Awaitable[None]]] = [load_batches] * count
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
        if length == 0 or not await file.goes_on(offset):
            return 0
        placement = await self._placements.at(file.session)
        for begin in range(0, wanted, file.max_read):
            size = min(file.max_read, wanted - begin)
            await self._placements.wait_for_late_reads(address + begin, address + begin + size)
            with self._pages(size, size), placement.window(address + begin, size) as window:
                got = await file.read_on_into(window, offset + begin, size)
            if got < size:
                return begin + got
        if wanted != length and await file.goes_on(offset + wanted):
            raise CallError(
                ErrorCode.TOO_LARGE,
                f"the file does not fit: the memory ends {room} bytes after {address}",
                room=room,
            )
        return wanted

    @contextlib.contextmanager
    def _pages(self, size: int, rest: int) -> Iterator[None]:
        """Let the backend take the pages of ``size`` bytes during the block: they are the daemon's.

        Raises:
            FileError: ENOMEM: those of the ``rest`` of the load, these among them, cannot be had.

        """
        missing = self.region.unallocated
        if missing:
            HEADROOM.require(min(rest, missing), "the attached memory")
        with HEADROOM.promise(min(size, missing)):
            yield
