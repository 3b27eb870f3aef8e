"""What a client's ``open`` returns: a file of the standard library, or its like to await."""

import io
import os
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final, Protocol, Self, TypeVar

from vuserd.client.core.procedure import Procedure
from vuserd.client.files.opening import Parts, Sealed, Version

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

T = TypeVar("T")

#: Bytes that are read ahead.
_AHEAD: Final = 1 << 20
_AHEAD_OF_IMAGE: Final = 64 << 10


class Runs(Protocol):
    """Runs a procedure."""

    def __call__(self, procedure: Procedure[T], /) -> T:
        """Return its result."""


class RunsAsync(Protocol):
    """Runs a procedure, to be awaited."""

    def __call__(self, procedure: Procedure[T], /) -> Awaitable[T]:
        """Return what to await."""


def buffered(version: Sealed | Parts, name: str, run: Runs) -> io.BufferedReader:
    """Return a file of the standard library that reads a version, and closes it."""
    ahead = _AHEAD if isinstance(version, Parts) else _AHEAD_OF_IMAGE
    return io.BufferedReader(VersionFile(version, name, run), ahead)


class VersionFile(io.RawIOBase):
    """One version of a file."""

    mode = "rb"

    def __init__(self, version: Version, name: str, run: Runs) -> None:
        self.name = name  #: as ``EXPORT:PATH``
        self._version, self._run = version, run
        self._position = Position(version.size)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Fill a buffer; return how many bytes there are."""
        self._require_open()
        with memoryview(buffer) as whole, whole.cast("B") as view:
            count = self._run(self._version.read_into(view, self._position.at))
        self._position.at += count
        return count

    def readall(self) -> bytes:
        """Return what is left, in as few calls as it takes."""
        self._require_open()
        content = bytearray(self._position.left)
        there = 0
        with memoryview(content) as view:
            while there < len(view) and (count := self.readinto(view[there:])):
                there += count
        return bytes(content) if there == len(content) else bytes(content[:there])

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to an offset; return it, in bytes from the beginning."""
        self._require_open()
        return self._position.seek(offset, whence)

    def tell(self) -> int:
        """Return where it is."""
        self._require_open()
        return self._position.at

    def close(self) -> None:
        """Close it in the daemon."""
        if not self.closed:
            self._version.close()
        super().close()

    def _require_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


class AsyncFile:
    """One version of a file to read, seek and close: ``async with await client.open(...) as file``.

    Methods do what those of a binary file do.
    """

    mode = "rb"

    def __init__(self, version: Version, name: str, run: RunsAsync) -> None:
        self.name = name  #: as ``EXPORT:PATH``
        self.closed = False
        self._version, self._run = version, run
        self._position = Position(version.size)

    async def read(self, size: int | None = -1) -> bytes:
        """Return ``size`` bytes, fewer only at the end; all that are left for -1."""
        self._require_open()
        left = self._position.left
        wanted = left if size is None or size < 0 else min(size, left)
        content = bytearray(wanted)
        there = 0
        with memoryview(content) as view:
            while there < wanted and (count := await self.readinto(view[there:])):
                there += count
        return bytes(content[:there]) if there < wanted else bytes(content)

    async def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill a buffer, or a part of it; return how many bytes there are, 0 at the end."""
        self._require_open()
        with memoryview(buffer) as whole, whole.cast("B") as view:
            count = await self._run(self._version.read_into(view, self._position.at))
        self._position.at += count
        return count

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset; return it, in bytes from the beginning."""
        self._require_open()
        return self._position.seek(offset, whence)

    async def tell(self) -> int:
        """Return where it is."""
        self._require_open()
        return self._position.at

    async def aclose(self) -> None:
        """Close it; a second call does nothing."""
        if not self.closed:
            self.closed = True
            self._version.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _require_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


class Position:
    """Where in a file of ``size`` bytes the next one is read."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.at = 0

    @property
    def left(self) -> int:
        """How many bytes are from here to the end."""
        return max(0, self.size - self.at)

    def seek(self, offset: int, whence: int) -> int:
        """Go to an offset from the beginning, from here or from the end; return it."""
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}
        if whence not in bases:
            raise ValueError(f"whence is {whence!r}")
        if bases[whence] + offset < 0:
            raise ValueError(f"negative seek position {bases[whence] + offset}")
        self.at = bases[whence] + offset
        return self.at
