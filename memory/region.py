"""One sized, sealed and mapped memfd."""

import fcntl
import mmap
import os

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Region:
    """A memfd of fixed size that this process and the backend both map.

    It is sized first, then sealed against shrinking and growing, so that no holder of the
    descriptor can make an access fault. Pages are allocated when they are first touched.
    ``view`` is the whole of ``mapping`` as bytes.
    """

    def __init__(self, size: int, name: str = "vuserd") -> None:
        if size <= 0 or size % mmap.PAGESIZE:
            raise ValueError(f"a region of {size} bytes is not a whole number of pages")
        self.size = size
        self._descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._descriptor, size)
            fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _SEALS)
            self.mapping = mmap.mmap(self._descriptor, size)
            self.view = memoryview(self.mapping)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Return the memfd's descriptor; it stays the region's. -1 once closed."""
        return self._descriptor

    def close(self) -> None:
        """Close the descriptor and release the mapping; a second call does nothing.

        The pages stay mapped, and the mapping's own descriptor open, until the last memoryview that
        was cut from ``view`` is gone: a payload on its way to a client outlives the backend that
        wrote it.
        """
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
            self.view = memoryview(b"")
            vars(self).pop("mapping", None)
