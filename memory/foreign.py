"""A client's memfd: checked here, mapped by the backend, and never mapped by the daemon."""

import contextlib
import fcntl
import mmap
import os
from collections.abc import Callable
from typing import Final

#: No new writable mapping (Linux 5.1); Python 3.11 has no name for it.
_F_SEAL_FUTURE_WRITE: Final = 0x10
#: The memory can no longer shrink or get other seals.
_SEALED: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class UnfitMemoryError(Exception):
    """The descriptor cannot serve as shared memory; the message says why and what would."""


class ForeignRegion:
    """A client's memfd, sealed against shrinking so that no access to it can fault.

    It is sealed against further seals, too: a backend that is told to map memory which was sealed
    against writing meanwhile would end, and so would the next one, with which the load is repeated.

    Takes over the descriptor, even if it raises.

    Args:
        descriptor: a memfd, open for reading and writing.
        size: how many of its bytes to use; whole pages.
        close: closes the descriptor; that may take long if it frees many pages.

    Raises:
        UnfitMemoryError: it is no memfd, read-only, too small, or cannot be kept from shrinking.

    """

    def __init__(self, descriptor: int, size: int, close: Callable[[int], None] = os.close) -> None:
        """Check the memory; this waits for a process that changes its length or allocates pages."""
        self.size = size
        self._descriptor = descriptor
        self._close = close
        try:
            status = _checked(descriptor, size)
        except BaseException:
            self.close()
            raise
        #: What identifies this memory: device and inode number.
        self.identity = status.st_dev, status.st_ino

    def fileno(self) -> int:
        """Return the memfd's descriptor; it stays the region's. -1 once closed."""
        return self._descriptor

    @property
    def unallocated(self) -> int:
        """How many of its bytes may have no page yet: the first write to them takes memory.

        What the memfd has behind them may have pages first. Huge pages count as allocated: they are
        set aside, and no limit of memory covers them.
        """
        if _page_of(self._descriptor) > mmap.PAGESIZE:
            return 0
        status = os.fstat(self._descriptor)
        behind = max(status.st_size - self.size, 0)
        return min(max(self.size + behind - status.st_blocks * 512, 0), self.size)

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._close(descriptor)


def _checked(descriptor: int, size: int) -> os.stat_result:
    """Seal the memory and check it; of a file that is not a memfd nothing else is touched."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        # Sealed before it is checked: another process that has it could add seals in between.
        with contextlib.suppress(OSError):  # sealed already, or none that can be
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALED)
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError as error:
        raise UnfitMemoryError("the descriptor is no memfd: make one with memfd_create") from error
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        raise UnfitMemoryError("the memfd is not open for reading and writing")
    if seals & (fcntl.F_SEAL_WRITE | _F_SEAL_FUTURE_WRITE):
        raise UnfitMemoryError("the memfd is sealed against writing")
    if seals & _SEALED != _SEALED:
        raise UnfitMemoryError(
            "the memfd can be cut under its users, and cannot be sealed against that:"
            " make it with MFD_ALLOW_SEALING"
        )
    status = os.fstat(descriptor)
    page = _page_of(descriptor)
    if size <= 0 or size % page:
        raise UnfitMemoryError(f"{size} bytes are not a whole number of pages of {page} bytes")
    if status.st_size < size:
        raise UnfitMemoryError(f"the memfd has {status.st_size} bytes, not {size}")
    return status


def _page_of(descriptor: int) -> int:
    """Return the bytes of a memfd's pages: with MFD_HUGETLB of huge ones.

    Not ``st_blksize``: where shared memory may be in transparent huge pages that is theirs, and the
    memory is mapped in small ones all the same.
    """
    return max(mmap.PAGESIZE, os.fstatvfs(descriptor).f_bsize)
