"""Where the bytes of a file go: a regular file, which has them all in the end, or a stream."""

import errno
import fcntl
import io
import os
import stat
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from vuserd.client.records import Stat

#: Bytes that are looked at for zeros at once.
_BLOCK: Final = 64 << 10
_ZEROS: Final = bytes(_BLOCK)
#: The most bytes of one write: for a megabyte ext4 (Linux 6.18) took several times as long.
_WRITE: Final = 256 << 10
#: Bytes of one of ``Stat.blocks``.
_SECTOR: Final = 512
#: Linux 5.1; Python 3.11 has no name for it.
_F_SEAL_FUTURE_WRITE: Final = 0x10
_UNCHANGEABLE: Final = (
    fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | _F_SEAL_FUTURE_WRITE
)


def is_sparse(attributes: Stat) -> bool:
    """Return whether a file has holes, or may have."""
    return attributes.blocks * _SECTOR < attributes.size


class FileSink:
    """A regular file that is open for writing.

    Raises OSError where bytes would not stand at their offsets in it; nothing is written then.
    """

    #: Whether holes may be left out, and all of it written again.
    is_file = True
    #: Whether to write to it in a thread, where others wait in this one.
    blocks = True

    def __init__(self, fileno: int) -> None:
        self._fileno = fileno
        self._skips_zeros = False
        _require_file(fileno)

    def begin(self, attributes: Stat, *, has_holes_told: bool) -> None:
        """Empty it, for a file of these attributes, whose holes are told or are to be found."""
        self._skips_zeros = is_sparse(attributes) and not has_holes_told
        # Not to its size, which may be untrue. And not where nothing is there: ext4 takes that for
        # a replacement, and has close() wait until all the new bytes are on their way to the disk.
        if os.fstat(self._fileno).st_size:
            os.ftruncate(self._fileno, 0)

    def write(self, payload: memoryview, offset: int) -> None:
        """Write bytes at their offset."""
        if self._skips_zeros:
            self._write_but_zeros(payload, offset)
        else:
            write_at(self._fileno, payload, offset)

    def end(self, size: int) -> None:
        """Cut or extend it to ``size`` bytes."""
        os.ftruncate(self._fileno, size)

    def _write_but_zeros(self, payload: memoryview, offset: int) -> None:
        for at in range(0, len(payload), _BLOCK):
            block = payload[at : at + _BLOCK]
            if bytes(block) != _ZEROS[: len(block)]:
                write_at(self._fileno, block, offset + at)


class StreamSink:
    """Whatever takes bytes in their order; what it was given cannot be taken back.

    ``write`` may return what an asynchronous client has to await.
    """

    is_file = False
    blocks = False

    def __init__(self, write: Callable[[memoryview], object], *, blocks: bool = False) -> None:
        self._write = write
        self.blocks = blocks

    def write(self, payload: memoryview, _: int) -> object:
        """Hand bytes on, whose offset is where the last ones ended."""
        return self._write(payload)

    def begin(self, attributes: Stat, *, has_holes_told: bool) -> None:
        """Do nothing."""

    def end(self, size: int) -> None:
        """Do nothing."""


class MemorySink:
    """Bytes of this process."""

    is_file = True
    blocks = False

    def __init__(self) -> None:
        self._content = io.BytesIO()

    def content(self) -> bytes:
        """Return all of them."""
        return self._content.getvalue()

    def begin(self, attributes: Stat, *, has_holes_told: bool) -> None:  # noqa: ARG002
        """Begin anew."""
        self._content = io.BytesIO()

    def write(self, payload: memoryview, offset: int) -> None:
        """Write bytes at their offset; what is left out before it are zeros."""
        self._content.seek(offset)
        self._content.write(payload)

    def end(self, size: int) -> None:
        """Cut or extend them to ``size`` bytes."""
        end_at(self._content, size)


class WritableObject(Protocol):
    """An object like a file that is open for writing bytes, as the standard library has many."""

    def write(self, payload: memoryview, /) -> object:
        """Take bytes; return how many it took, where it may take fewer."""


class SeekableObject(WritableObject, Protocol):
    """One that can be written to again."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to an offset; return it."""

    def truncate(self, size: int | None = None, /) -> int:
        """Cut it off there."""


class ObjectSink:
    """A seekable object, from its beginning on."""

    is_file = True
    blocks = True

    def __init__(self, file: SeekableObject) -> None:
        self._file = file

    def begin(self, attributes: Stat, *, has_holes_told: bool) -> None:  # noqa: ARG002
        """Empty it."""
        self._file.seek(0)
        self._file.truncate(0)

    def write(self, payload: memoryview, offset: int) -> None:
        """Write bytes at their offset; what is left out before it are zeros."""
        self._file.seek(offset)
        write_all(self._file, payload)

    def end(self, size: int) -> None:
        """Cut or extend it to ``size`` bytes, and stand at its end."""
        end_at(self._file, size)


def write_all(file: WritableObject, payload: memoryview) -> None:
    """Write bytes to an object that may take fewer of them at once, as raw files do."""
    while payload:
        count = file.write(payload)
        payload = payload[count:] if isinstance(count, int) else payload[:0]


def end_at(file: SeekableObject, size: int) -> None:
    """Cut or extend an object to ``size`` bytes, with zeros, and stand at its end."""
    if file.seek(0, os.SEEK_END) < size:
        file.seek(size - 1)
        file.write(memoryview(b"\0"))
    else:
        file.truncate(size)
        file.seek(size)


Sink: TypeAlias = FileSink | StreamSink | MemorySink | ObjectSink


def _require_file(fileno: int) -> None:
    """Refuse a descriptor that would not have the bytes where they belong.

    Raises:
        OSError: EBADF, EISDIR, ESPIPE, EINVAL or EPERM, with what is wrong.

    """
    mode = os.fstat(fileno).st_mode
    flags = fcntl.fcntl(fileno, fcntl.F_GETFL)
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "the descriptor is of a directory")
    if not stat.S_ISREG(mode):
        raise OSError(errno.ESPIPE, "the descriptor is of no regular file; stream() writes there")
    if flags & os.O_PATH or flags & os.O_ACCMODE not in (os.O_WRONLY, os.O_RDWR):
        raise OSError(errno.EBADF, "the descriptor is not open for writing")
    if flags & os.O_APPEND:
        raise OSError(errno.EINVAL, "the descriptor is open for appending; stream() does that")
    if flags & os.O_DIRECT:
        raise OSError(errno.EINVAL, "the descriptor is open with O_DIRECT")
    try:
        os.pwrite(fileno, b"", 0)  # writes nothing; hugetlbfs takes no writes at all
    except OSError as error:
        raise OSError(
            error.errno, "the descriptor is of a file that cannot be written to"
        ) from None
    try:
        seals = fcntl.fcntl(fileno, fcntl.F_GET_SEALS)
    except OSError:
        return  # no memfd
    if seals & _UNCHANGEABLE:
        raise OSError(errno.EPERM, "the descriptor is of a memfd that is sealed")


def write_at(fileno: int, payload: memoryview, offset: int) -> None:
    """Write all of ``payload`` at ``offset``, in pieces that the page cache takes quickly."""
    while payload:
        count = os.pwrite(fileno, payload[:_WRITE], offset)
        payload, offset = payload[count:], offset + count
