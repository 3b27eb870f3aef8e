"""A file as ``fetch`` gives it: a sealed memfd that nobody can change, mapped when it is used."""

import mmap
import os
import warnings
from contextlib import suppress
from types import TracebackType
from typing import Self

from vuserd.client.records import ImageInfo


class Image:
    """One version of a file, whole and read-only: ``with client.fetch(...) as image: ...``.

    The memory is shared with all who fetched the same version, and the file offset is not.
    """

    def __init__(self, info: ImageInfo, descriptor: int) -> None:
        """Take over the descriptor that came with the answer."""
        self.size = info.size
        self.mtime_ns = info.mtime_ns
        self.ino = info.ino
        self.cached = info.cached  #: the daemon had it already
        self._descriptor = descriptor
        self._mapping: mmap.mmap | None = None

    def fileno(self) -> int:
        """Return the memfd's descriptor, which stays the image's; ValueError once it is closed."""
        if self._descriptor < 0:
            raise ValueError("the image is closed")
        return self._descriptor

    def buffer(self) -> memoryview:
        """Return the bytes, read-only, without a copy; they are mapped by the first call.

        A view may outlive :meth:`close`: the memory stays until the last one is let go.
        """
        descriptor = self.fileno()
        if not self.size:  # nothing cannot be mapped
            return memoryview(b"")
        if self._mapping is None:
            self._mapping = mmap.mmap(descriptor, self.size, mmap.MAP_SHARED, mmap.PROT_READ)
        return memoryview(self._mapping)

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        mapping, self._mapping = self._mapping, None
        if descriptor >= 0:
            os.close(descriptor)
        if mapping is not None:
            with suppress(BufferError):  # views are left, and keep it
                mapping.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._descriptor < 0 else f"descriptor {self._descriptor}"
        return f"<Image of {self.size} bytes, {state}>"
