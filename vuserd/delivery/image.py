"""A file as a sealed memfd: filled once, then the same for everybody and for ever."""

import errno
import fcntl
import functools
import os
from collections.abc import Iterator
from typing import Final

import trio

from memory.arena import Buffer
from vuserd.delivery.headroom import HEADROOM
from vuserd.device.payloads import given_back
from vuserd.errors import FileError, os_reason
from vuserd.fs.openfile import OpenFile
from vuserd.fs.version import Version
from vuserd.gather import gather

_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
#: READs in flight while one image is filled: the backend reads ahead of the copying.
_WINDOW: Final = 4
#: Bytes that are allocated at once.
_STEP: Final = 16 << 20
#: Bytes of a file whose size is not known: far more than those of procfs have.
_MOST_UNKNOWN: Final = 64 << 20


class SealedImage:
    """A version of a file in a memfd that nobody can change any more.

    It is counted: who made it or holds it lets it go with :meth:`give_back`, and the last one
    closes it. Each client is given a descriptor of its own by :meth:`reopen`.
    """

    def __init__(self, descriptor: int, size: int, version: Version) -> None:
        self.size = size
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

    def reopen(self) -> int:
        """Open the memfd anew, read-only: its file offset is the receiver's alone."""
        return os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)


async def make_image(file: OpenFile) -> SealedImage:
    """Copy a whole file into a new sealed memfd.

    Pages are allocated before they are written, so a full machine is an error and no signal.

    Raises:
        FileError: ENOMEM, ENOSPC, EMFILE of this machine's, EFBIG for a file of unknown size that
            does not end, or what the backend says.

    """
    descriptor = -1
    try:
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        descriptor = os.memfd_create("vuserd-image", flags)
        await _allocate(descriptor, file.size)
        size = await _fill(file, descriptor)
        if size != file.size:
            os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        image = SealedImage(descriptor, size, file.version)
        descriptor = -1
        return image
    except OSError as error:
        number = error.errno or 0
        raise FileError(number, f"no room for the file's image: {os_reason(error)}") from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)


async def _allocate(descriptor: int, size: int) -> None:
    """Allocate the pages, some at a time: others are served meanwhile, and allocate theirs."""
    for offset in range(0, size, _STEP):
        _require_memory(size - offset)
        os.posix_fallocate(descriptor, offset, min(_STEP, size - offset))
        await trio.lowlevel.checkpoint()


async def _fill(file: OpenFile, descriptor: int) -> int:
    """Read the file into the memfd; return where it ended."""
    if not file.size:
        return await _fill_to_the_end(file, descriptor)
    parts = iter(range(0, file.size, file.max_read))
    count = min(_WINDOW, -(-file.size // file.max_read))
    ends = [file.size]

    async def copy_parts(buffer: Buffer, offsets: Iterator[int]) -> None:
        for offset in offsets:
            length = min(file.max_read, file.size - offset)
            got = await file.read_into(buffer, offset, length)
            _write(descriptor, buffer.view[:got], offset)
            if got < length:
                ends.append(offset + got)

    with given_back(await file.session.payloads.take(count)) as buffers:
        await gather([functools.partial(copy_parts, buffer, parts) for buffer in buffers])
    return min(ends)


async def _fill_to_the_end(file: OpenFile, descriptor: int) -> int:
    """Read a file whose size of 0 may be untrue.

    Raises:
        FileError: EFBIG: it does not end.

    """
    end = 0
    with given_back(await file.session.payloads.take(1)) as buffers:
        while True:
            got = await file.read_on_into(buffers[0], end, file.max_read)
            if end + got > _MOST_UNKNOWN:
                raise FileError(errno.EFBIG, "a file of unknown size that does not end")
            _require_memory(got)
            _write(descriptor, buffers[0].view[:got], end)
            end += got
            if got < file.max_read:
                return end
            await trio.lowlevel.checkpoint()


def _write(descriptor: int, view: memoryview, offset: int) -> None:
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


def _require_memory(size: int) -> None:
    """Refuse what the machine or the daemon's cgroups cannot hold."""
    HEADROOM.require(size, "an image")
