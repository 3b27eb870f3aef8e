"""What ``open`` returns: one version of a file, for threads, and for tasks of a loop."""

import asyncio
import io
from typing import Any, Final, TypeVar

from fsspec.asyn import AbstractAsyncStreamedFile, sync

from vuserd.client import AsyncFile, Image
from vuserd.client.core.procedure import Procedure, Running
from vuserd.client.files.handles import VersionFile
from vuserd.client.files.opening import Sealed, Version
from vuserd.integrations.fsspec.errors import os_errors

T = TypeVar("T")

#: Bytes that are read ahead of an image, which is in memory.
_AHEAD_OF_IMAGE: Final = 64 << 10


def image_file(image: Image, name: str) -> io.BufferedReader:
    """Return a file for any thread that reads an image, and closes it."""
    return io.BufferedReader(VersionFile(Sealed(image), name, _at_once), _AHEAD_OF_IMAGE)


def file_in_parts(
    file: AsyncFile, size: int, loop: asyncio.AbstractEventLoop, ahead: int
) -> io.BufferedReader:
    """Return a file for any thread but the loop's, in which ``file`` is read in parts."""
    return io.BufferedReader(VersionFile(_InLoop(file, size, loop), file.name, _at_once), ahead)


def _at_once(procedure: Procedure[T]) -> T:
    """Return the result of a procedure that has no steps to wait for."""
    running = Running(procedure)
    step = running.next_step()
    assert step is None
    return running.result


class _InLoop(Version):
    """A version that a task of another thread's loop reads."""

    def __init__(self, file: AsyncFile, size: int, loop: asyncio.AbstractEventLoop) -> None:
        self.size = size
        self._file, self._loop = file, loop

    def read_into(self, buffer: memoryview, offset: int) -> Procedure[int]:
        """Read bytes, in the loop's thread, and wait for them."""
        yield from ()
        with os_errors(self._file.name):
            count: int = sync(self._loop, self._read_into, buffer, offset)
        return count

    async def _read_into(self, buffer: memoryview, offset: int) -> int:
        await self._file.seek(offset)
        return await self._file.readinto(buffer)

    def close(self) -> None:
        """Have it closed in the loop's thread, which may be this one, and wait for nothing."""
        closing = self._file.aclose()
        try:
            asyncio.run_coroutine_threadsafe(closing, self._loop)
        except RuntimeError:  # the loop has ended, and its client with it
            closing.close()


class StreamedFile(AbstractAsyncStreamedFile):  # type: ignore[misc]  # fsspec has no types
    """One version of a file, with ``read`` and ``close`` to await."""

    def __init__(self, filesystem: Any, path: str, file: AsyncFile, size: int) -> None:
        super().__init__(filesystem, path, "rb", cache_type="none", size=size)
        self._file = file

    async def _fetch_range(self, start: int, end: int) -> bytes:
        with os_errors(self.path):
            await self._file.seek(start)
            return await self._file.read(end - start)

    async def close(self) -> None:
        """Close it; a second call does nothing."""
        await self._file.aclose()
        await super().close()
