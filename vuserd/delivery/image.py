"""Copy a file into a sealed memfd, which nothing can change afterwards."""

import errno
import fcntl
import functools
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import trio

from memory.arena import Buffer
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
#: READs in flight while one image is filled: the backend reads while the daemon copies.
_WINDOW: Final = 4
#: Bytes that are allocated at once.
_STEP: Final = 16 << 20
#: Bytes of an image that are examined at once: other tasks run in between.
_LOOK: Final = 1 << 20
#: The most bytes of a file of unknown size: far more than a file of procfs has.
_MOST_UNKNOWN: Final = 1 << 30
#: Extents that are requested at once.
_EXTENTS: Final = 64


class SealedImage:
    """A version of a file in a sealed memfd.

    It counts its holders: each ends its holding with :meth:`give_back`, and the last one closes the
    memfd. Each client gets a descriptor of its own by :meth:`reopen`.
    """

    def __init__(
        self, descriptor: int, size: int, version: Version, node: Node | None = None
    ) -> None:
        self.size = size
        #: The file's node, if the image may be given to every client that finds this version of the
        #: file; else None.
        self.node = node
        #: Bytes of memory that the image takes: holes take none.
        self.cost = os.fstat(descriptor).st_blocks * BLOCK
        self.version = version
        self._descriptor = descriptor
        self._holders = 1

    def hold(self) -> "SealedImage":
        """Add a holder, and return the image."""
        self._holders += 1
        return self

    def give_back(self) -> None:
        """Remove a holder; the last one closes the memfd."""
        self._holders -= 1
        if self._holders == 0:
            os.close(self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the image; fewer at its end."""
        return os.pread(self._descriptor, length, offset)

    async def is_blank(self, begin: int, end: int) -> bool:
        """Return whether a part of the image has only holes and zeros."""
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
        """Open the memfd anew, read-only, with a file offset for the receiver alone."""
        return os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)


def image_delivery() -> Delivery[SealedImage]:
    """Return the way to deliver a whole file in a new sealed memfd.

    Pages are allocated before they are written, so a full machine causes an error, not a signal.

    Raises:
        FileError: ENOMEM, ENOSPC or EMFILE of this machine, EFBIG for a file of unknown size that
            does not end, or what the backend says.
        CallError: BUSY: the user would have more images, or bytes of them, than allowed.

    """
    return Delivery(make_image, _agrees, SealedImage.give_back)


async def make_image(file: OpenFile) -> SealedImage:
    """Copy a whole file into a new sealed memfd: see :func:`image_delivery`."""
    descriptor = -1
    try:
        expected = min(file.size, file.attributes.blocks * BLOCK)
        descriptor, holding = CENSUS.create("vuserd-image", expected)
        _set_mode(descriptor, file.attributes.mode)
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


def _set_mode(descriptor: int, mode: int) -> None:
    """Let a receiver read an image and, where the file is a program, execute it.

    It cannot reopen it for writing, nor leave marks on it: user attributes and utime() need the
    right to write to the inode.
    """
    if mode & 0o111:
        with suppress(PermissionError):  # vm.memfd_noexec: no memory is a program here
            os.fchmod(descriptor, _MODE | 0o111)
            return
    os.fchmod(descriptor, _MODE)


class _Pages:
    """The memfd while it is filled, with its part of the user's share."""

    def __init__(self, descriptor: int, holding: Holding) -> None:
        self.descriptor = descriptor
        self._holding = holding

    def require(self, size: int) -> None:
        """Refuse ``size`` bytes if the user's share, the machine or the cgroups have no room."""
        HEADROOM.require(size, "an image")
        self._holding.grow(os.fstat(self.descriptor).st_blocks * BLOCK + size)


async def _fill(file: OpenFile, pages: _Pages) -> int:
    """Read the file into the memfd; return the offset of its end."""
    if not file.size:
        return await _fill_to_the_end(file, pages)
    position: int | None = 0
    while position is not None:
        extents, position = await file.extents(position, _EXTENTS)
        for extent in extents:
            if not await _fill_extent(file, pages, extent):
                return await _fill_untrue(file, pages)
    if await file.goes_on(file.size):
        return await _fill_untrue(file, pages)
    return file.size


async def _fill_untrue(file: OpenFile, pages: _Pages) -> int:
    """Read a file whose end is not where its size says, unless that is because it changed."""
    if not await file.unchanged():
        raise FileChanged
    os.ftruncate(pages.descriptor, 0)
    return await _fill_to_the_end(file, pages)


async def _fill_extent(file: OpenFile, pages: _Pages, extent: Extent) -> bool:
    """Read a part of the file into the memfd; return False if the file ends within it."""
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
    """Allocates an extent's pages in steps, so that other tasks run and can allocate as well."""

    def __init__(self, pages: _Pages, extent: Extent) -> None:
        self._pages = pages
        self._allocated, self._end = extent.offset, extent.offset + extent.length

    def allocate(self, end: int) -> None:
        """Make sure that pages are allocated up to ``end``."""
        while self._allocated < end:
            self._pages.require(self._end - self._allocated)
            step = min(_STEP, self._end - self._allocated)
            os.posix_fallocate(self._pages.descriptor, self._allocated, step)
            self._allocated += step


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
    """Read the file once more, but for holes; return whether it is the same as its image."""
    if image.size != file.size:
        end = Extent(0, image.size)
        return await _agrees_in(file, image, end) and not await file.goes_on(image.size)
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
    return await image.is_blank(done, image.size) and not await file.goes_on(image.size)


async def _agrees_in(file: OpenFile, image: SealedImage, extent: Extent) -> bool:
    """Read a part of the file once more; return whether it is the same as in the image."""
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
