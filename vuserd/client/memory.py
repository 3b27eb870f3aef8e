"""Memory attached to the daemon: files are loaded into it with no copy on the client's side."""

import mmap
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self, TypeVar

from vuserd.client.calls import Call, RemotePath, detach, load
from vuserd.client.errors import ConnectionLost, TimedOut

T = TypeVar("T")


class SharedMemory:
    """A memfd to attach: the caller's, which stays so, or one made here, closed here.

    Args:
        memfd: the caller's; None makes one.
        size: bytes; by default all whole pages of the caller's memfd.

    Raises ValueError where neither is given, and OSError where no memfd can be made.

    """

    is_made = False  #: here, and so of no use once nobody has this

    def __init__(self, memfd: int | None, size: int | None) -> None:
        self._mapping: mmap.mmap | None = None
        self._descriptor = -1
        self.is_made = memfd is None
        if memfd is not None:
            there = os.fstat(memfd).st_size
            self.size = there - there % mmap.PAGESIZE if size is None else size
            self._descriptor = memfd
            return
        if size is None or size <= 0:
            raise ValueError("attach takes a memfd, or the size of one to make")
        self.size = size
        self._descriptor = os.memfd_create("vuserd-client", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._descriptor, size)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Return the memfd's descriptor; ValueError once one that was made here is closed."""
        if self._descriptor < 0:
            raise ValueError("the memory is closed")
        return self._descriptor

    def mapping(self) -> mmap.mmap:
        """Return all of it, mapped by the first call; that closes with the rest."""
        if self._mapping is None:
            self._mapping = mmap.mmap(self.fileno(), self.size)
        return self._mapping

    def close(self) -> None:
        """Let go of what was made here; a second call does nothing."""
        mapping, self._mapping = self._mapping, None
        if mapping is not None:
            with suppress(BufferError):  # views are left, and keep it
                mapping.close()
        if self.is_made and self._descriptor >= 0:
            # Whatever interrupts this closes no number twice, which may be another's by then.
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def __del__(self) -> None:
        if self.is_made and self._descriptor >= 0:
            warnings.warn("memory was not detached", ResourceWarning, source=self, stacklevel=2)
            self.close()


class _Attached:
    """What attached memory is with all clients. ``id`` is the daemon's name for it."""

    def __init__(
        self, tell: Callable[[Call[None]], None], memory: SharedMemory, identifier: int
    ) -> None:
        self.id = identifier
        self.size = memory.size
        self._tell = tell
        self._memory = memory
        self._detached = False

    def fileno(self) -> int:
        """Return the memfd's descriptor."""
        return self._memory.fileno()

    def __del__(self) -> None:
        if self._memory.is_made and not self._detached:  # which warns of that
            self._tell(detach(self.id))

    @property
    def buffer(self) -> mmap.mmap:
        """The memory, mapped for reading and writing by the first use, closed when it detaches."""
        return self._memory.mapping()

    def _let_go(self) -> None:
        """Tell the daemon that it is detached, and wait for no answer."""
        if self._detached:
            return
        self._detached = True
        try:
            self._tell(detach(self.id))
        finally:
            self._memory.close()


def _may_wait(kind: type[BaseException] | None) -> bool:
    """Return whether a block that ended so waits for the daemon: not after an interruption.

    Nor where a call in it has waited for too long: the detach ends after the load that it gave up.
    """
    return kind is None or (issubclass(kind, Exception) and not issubclass(kind, TimedOut))


class AttachedMemory(_Attached):
    """Memory that the daemon loads files into: ``with client.attach(memfd) as memory: ...``."""

    def __init__(
        self,
        call: "_Does",
        tell: Callable[[Call[None]], None],
        memory: SharedMemory,
        identifier: int,
    ) -> None:
        super().__init__(tell, memory, identifier)
        self._call = call

    def load(
        self,
        export: str,
        path: RemotePath,
        address: int,
        *,
        offset: int = 0,
        length: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """Load a file's bytes, from ``offset`` on, to ``address`` in the memory.

        Return how many they are: ``length``, or fewer where the file ends.
        """
        call = load(self.id, address, export, path, offset=offset, length=length)
        return self._call(call, timeout=timeout)

    def detach(self) -> None:
        """Take the memory back from the daemon, once loads into it have ended.

        A second call does nothing.
        """
        if self._detached:
            return
        self._detached = True
        try:
            self._call(detach(self.id))
        finally:
            self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not _may_wait(kind):
            self._let_go()
            return
        with suppress(ConnectionLost):  # which has detached it
            self.detach()


class AsyncAttachedMemory(_Attached):
    """The same for trio and asyncio: ``async with await client.attach(memfd) as memory: ...``."""

    def __init__(
        self,
        call: "_DoesAsync",
        tell: Callable[[Call[None]], None],
        memory: SharedMemory,
        identifier: int,
    ) -> None:
        super().__init__(tell, memory, identifier)
        self._call = call

    async def load(
        self,
        export: str,
        path: RemotePath,
        address: int,
        *,
        offset: int = 0,
        length: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """Load a file's bytes, from ``offset`` on, to ``address`` in the memory.

        Return how many they are: ``length``, or fewer where the file ends.
        """
        call = load(self.id, address, export, path, offset=offset, length=length)
        return await self._call(call, timeout=timeout)

    async def detach(self) -> None:
        """Take the memory back from the daemon, once loads into it have ended.

        The daemon is told also where this is cancelled. A second call does nothing.
        """
        if self._detached:
            return
        self._detached = True
        try:
            await self._call(detach(self.id))
        finally:
            self._memory.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not _may_wait(kind):
            self._let_go()
            return
        with suppress(ConnectionLost):  # which has detached it
            await self.detach()


class _Does(Protocol):
    def __call__(self, call: Call[T], /, *, timeout: float | None = None) -> T: ...


class _DoesAsync(Protocol):
    async def __call__(self, call: Call[T], /, *, timeout: float | None = None) -> T: ...
