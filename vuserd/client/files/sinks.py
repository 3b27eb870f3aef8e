"""Where the bytes of a file go: a regular file, which has them all in the end, or a stream."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from typing import Final, TypeAlias

from vuserd.client.records import Stat

#: Bytes that are looked at for zeros at once.
_BLOCK: Final = 64 << 10
_ZEROS: Final = bytes(_BLOCK)
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

    def __init__(self, fileno: int) -> None:
        self._fileno = fileno
        self._skips_zeros = False
        _require_file(fileno)

    def begin(self, attributes: Stat, *, has_holes_told: bool) -> None:
        """Empty it, for a file of these attributes, whose holes are told or are to be found."""
        self._skips_zeros = is_sparse(attributes) and not has_holes_told
        os.ftruncate(self._fileno, 0)  # and not to its size, which may be untrue

    def write(self, payload: memoryview, offset: int) -> None:
        """Write bytes at their offset."""
        if self._skips_zeros:
            self._write_but_zeros(payload, offset)
        else:
            write_at(self._fileno, payload, offset)

    def end(self, size: int) -> None:
        """Have it end there."""
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

    def __init__(self, write: Callable[[memoryview], object]) -> None:
        self._write = write

    def write(self, payload: memoryview, _: int) -> object:
        """Hand bytes on, whose offset is where the last ones ended."""
        return self._write(payload)

    def begin(self, attributes: Stat, *, has_holes_told: bool) -> None:
        """Do nothing."""

    def end(self, size: int) -> None:
        """Do nothing."""


Sink: TypeAlias = FileSink | StreamSink


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
    """Write all of ``payload`` at ``offset``."""
    while payload:
        count = os.pwrite(fileno, payload, offset)
        payload, offset = payload[count:], offset + count
