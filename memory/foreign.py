"""A memfd that somebody else made: checked, for the backend to map, never mapped here."""

import fcntl
import mmap
import os


class UnfitMemoryError(Exception):
    """The descriptor cannot serve as shared memory; the message says why and what would."""


class ForeignRegion:
    """A client's memfd, sealed against shrinking so that nobody's access to it can fault.

    Takes over the descriptor, also when it raises.

    Args:
        descriptor: a memfd, open for reading and writing.
        size: how many of its bytes to use; whole pages.

    Raises:
        UnfitMemoryError: it is no memfd, read-only, too small, or cannot be kept from shrinking.

    """

    def __init__(self, descriptor: int, size: int) -> None:
        self.size = size
        self._descriptor = descriptor
        try:
            _check(descriptor, size)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Return the memfd's descriptor; it stays the region's. -1 once closed."""
        return self._descriptor

    @property
    def identity(self) -> tuple[int, int]:
        """What tells this memory from every other: device and inode number."""
        status = os.fstat(self._descriptor)
        return status.st_dev, status.st_ino

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _check(descriptor: int, size: int) -> None:
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError as error:
        raise UnfitMemoryError("the descriptor is no memfd: make one with memfd_create") from error
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        raise UnfitMemoryError("the memfd is not open for reading and writing")
    if seals & fcntl.F_SEAL_WRITE:
        raise UnfitMemoryError("the memfd is sealed against writing")
    if not seals & fcntl.F_SEAL_SHRINK:
        try:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        except OSError as error:
            raise UnfitMemoryError(
                "the memfd can be cut under its users, and cannot be sealed against that:"
                " make it with MFD_ALLOW_SEALING"
            ) from error
    if size <= 0 or size % mmap.PAGESIZE:
        raise UnfitMemoryError(f"{size} bytes are not a whole number of pages")
    there = os.fstat(descriptor).st_size
    if there < size:
        raise UnfitMemoryError(f"the memfd has {there} bytes, not {size}")
