"""A file as a sealed memfd: filled once, then the same for everybody and for ever."""

import errno
import fcntl
import functools
import os
from collections.abc import Iterator
from typing import Final

import trio

from memory.arena import Buffer
from protocol.fuse import PAGE_SIZE
from vuserd.delivery.census import CENSUS, Holding
from vuserd.delivery.headroom import HEADROOM
from vuserd.delivery.one_version import Delivery, FileChanged
from vuserd.device.payloads import given_back
from vuserd.errors import FileError, os_reason
from vuserd.fs.nodes import Node
from vuserd.fs.openfile import BLOCK, Extent, OpenFile
from vuserd.fs.version import Version
from vuserd.tasks.gather import gather

_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_MODE: Final = 0o444
#: READs in flight while one image is filled: the backend reads ahead of the copying.
_WINDOW: Final = 4
#: Bytes that are allocated at once.
_STEP: Final = 16 << 20
#: Bytes of an image that are looked at at once: others are served in between.
_LOOK: Final = 1 << 20
#: Bytes of a file whose size is not known: far more than those of procfs have.
_MOST_UNKNOWN: Final = 1 << 30
#: Extents that are asked for at once.
_EXTENTS: Final = 64


class SealedImage:
    """A version of a file in a memfd that nobody can change any more.

    It is counted: who made it or holds it lets it go with :meth:`give_back`, and the last one
    closes it. Each client is given a descriptor of its own by :meth:`reopen`.
    """

    def __init__(
        self, descriptor: int, size: int, version: Version, node: Node | None = None
    ) -> None:
        self.size = size
        #: The file's, where the image is good for all who find it in this version; else None.
        self.node = node
        #: Bytes of memory that it takes: holes take none.
        self.cost = os.fstat(descriptor).st_blocks * BLOCK
        self.version = version
        self._descriptor = descriptor
        self._holders = 1

    def hold(self) -> "SealedImage":
        """Count one more holder."""
        self._holders += 1
        return self

    def give_back(self) -> None:
        """End one holding."""
        self._holders -= 1
        if self._holders == 0:
            os.close(self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of it; fewer at its end."""
        return os.pread(self._descriptor, length, offset)

    async def is_blank(self, begin: int, end: int) -> bool:
        """Tell whether there are only holes and zeros in a part of it."""
        while begin < end:
            try:
                begin = os.lseek(self._descriptor, begin, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return True  # there is no more data
            part = self.read(begin, min(_LOOK, end - begin)) if begin < end else b""
            if part.strip(b"\0"):
                return False
            begin += len(part)
            await trio.lowlevel.checkpoint()
        return True

    def reopen(self) -> int:
        """Open the memfd anew, read-only: its file offset is the receiver's alone."""
        return os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)


def image_delivery() -> Delivery[SealedImage]:
    """Return the way to deliver a whole file in a new sealed memfd.

    Pages are allocated before they are written, so a full machine is an error and no signal.

    Raises:
        FileError: ENOMEM, ENOSPC, EMFILE of this machine's, EFBIG for a file of unknown size that
            does not end, or what the backend says.
        CallError: BUSY: its user would have more of images than may be.

    """
    return Delivery(make_image, _agrees, SealedImage.give_back)


async def make_image(file: OpenFile) -> SealedImage:
    """Copy a whole file into a new sealed memfd: see :func:`image_delivery`."""
    descriptor = -1
    try:
        expected = min(file.size, file.attributes.blocks * BLOCK)
        descriptor, holding = CENSUS.create("vuserd-image", expected)
        # Who is given it opens it anew for nothing else, and leaves no mark on it: to write to the
        # inode is what user attributes and utime() ask for.
        os.fchmod(descriptor, _MODE)
        size = await _fill(file, _Pages(descriptor, holding))
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        node = file.node if file.settled else None
        image = SealedImage(descriptor, size, file.version, node)
        holding.settle(image.cost)
        descriptor = -1
        return image
    except OSError as error:
        number = error.errno or 0
        raise FileError(number, f"no room for the file's image: {os_reason(error)}") from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)


class _Pages:
    """The memfd while it is filled, and what it takes of its user's share."""

    def __init__(self, descriptor: int, holding: Holding) -> None:
        self.descriptor = descriptor
        self._holding = holding

    def require(self, size: int) -> None:
        """Refuse what its user may not have, or the machine or the daemon's cgroups cannot hold."""
        HEADROOM.require(size, "an image")
        self._holding.grow(os.fstat(self.descriptor).st_blocks * BLOCK + size)


async def _fill(file: OpenFile, pages: _Pages) -> int:
    """Read the file into the memfd; return where it ended."""
    if not file.size:
        return await _fill_to_the_end(file, pages)
    position: int | None = 0
    while position is not None:
        extents, position = await file.extents(position, _EXTENTS)
        for extent in extents:
            if not await _fill_extent(file, pages, extent):
                return await _fill_untrue(file, pages)
    if await _goes_on(file, file.size):
        return await _fill_untrue(file, pages)
    return file.size


async def _fill_untrue(file: OpenFile, pages: _Pages) -> int:
    """Read a file that ends elsewhere than its size says, unless that is because it changed."""
    if not await file.unchanged():
        raise FileChanged
    os.ftruncate(pages.descriptor, 0)
    return await _fill_to_the_end(file, pages)


async def _fill_extent(file: OpenFile, pages: _Pages, extent: Extent) -> bool:
    """Read a part of the file into the memfd; False where it ends before the part does."""
    end = extent.offset + extent.length
    parts = iter(range(extent.offset, end, file.max_read))
    count = min(_WINDOW, -(-extent.length // file.max_read))
    room = _Room(pages, extent)
    is_there = True

    async def copy_parts(buffer: Buffer, offsets: Iterator[int]) -> None:
        nonlocal is_there
        for offset in offsets:
            length = min(file.max_read, end - offset)
            got = await file.read_into(buffer, offset, length)
            if got < length:
                is_there = False
            if not is_there:
                return
            room.allocate(offset + length)
            _write(pages.descriptor, buffer.view[:got], offset)

    with given_back(await file.session.payloads.take(count)) as buffers:
        await gather([functools.partial(copy_parts, buffer, parts) for buffer in buffers])
    return is_there


class _Room:
    """Allocates an extent's pages, some at a time: others are served meanwhile, and have theirs."""

    def __init__(self, pages: _Pages, extent: Extent) -> None:
        self._pages = pages
        self._allocated, self._end = extent.offset, extent.offset + extent.length

    def allocate(self, end: int) -> None:
        """See to it that there are pages up to ``end``."""
        while self._allocated < end:
            self._pages.require(self._end - self._allocated)
            step = min(_STEP, self._end - self._allocated)
            os.posix_fallocate(self._pages.descriptor, self._allocated, step)
            self._allocated += step


async def _goes_on(file: OpenFile, offset: int) -> bool:
    """Tell whether a file whose size may be untrue has bytes from an offset on."""
    with given_back(await file.session.payloads.take(1)) as buffers:
        return await file.read_into(buffers[0], offset, PAGE_SIZE) > 0


async def _fill_to_the_end(file: OpenFile, pages: _Pages) -> int:
    """Read a file whose size is not known.

    Raises:
        FileError: EFBIG: it does not end.

    """
    end = 0
    with given_back(await file.session.payloads.take(1)) as buffers:
        while True:
            got = await file.read_on_into(buffers[0], end, file.max_read)
            if end + got > _MOST_UNKNOWN:
                raise FileError(errno.EFBIG, "a file of unknown size that does not end")
            pages.require(got)
            _write(pages.descriptor, buffers[0].view[:got], end)
            end += got
            if got < file.max_read:
                return end
            await trio.lowlevel.checkpoint()


async def _agrees(file: OpenFile, image: SealedImage) -> bool:
    """Read the file once more; tell whether its image is the same. Holes are not read."""
    if image.size != file.size:
        end = Extent(0, image.size)
        return await _agrees_in(file, image, end) and not await _goes_on(file, image.size)
    done = 0
    position: int | None = 0
    while position is not None:
        extents, position = await file.extents(position, _EXTENTS)
        for extent in extents:
            if not await image.is_blank(done, extent.offset):
                return False
            if not await _agrees_in(file, image, extent):
                return False
            done = extent.offset + extent.length
    return await image.is_blank(done, image.size) and not await _goes_on(file, image.size)


async def _agrees_in(file: OpenFile, image: SealedImage, extent: Extent) -> bool:
    """Read a part of the file once more; tell whether it is there as it is in the image."""
    end = extent.offset + extent.length
    with given_back(await file.session.payloads.take(1)) as buffers:
        for offset in range(extent.offset, end, file.max_read):
            length = min(file.max_read, end - offset)
            got = await file.read_on_into(buffers[0], offset, length)
            if got < length or bytes(buffers[0].view[:got]) != image.read(offset, length):
                return False
            await trio.lowlevel.checkpoint()
    return True


def _write(descriptor: int, view: memoryview, offset: int) -> None:
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written
