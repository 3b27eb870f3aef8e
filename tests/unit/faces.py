"""All clients behind one face, that of the synchronous one: for tests of what they have in common.

An asynchronous client lives in a loop in a thread of its own, where each call of the face is done.
"""

from __future__ import annotations  # Outcome has no parameters before outcome 1.3

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar, cast

import trio
from outcome import Outcome, acapture, capture

from vuserd.client import Archived, AsyncFile, AsyncioClient, Client, TrioClient
from vuserd.client.async_client import AsyncClient
from vuserd.client.core.ticket import Ticket
from vuserd.client.memory import AsyncAttachedMemory, AttachedMemory
from vuserd.client.records import Stat

T = TypeVar("T")
Write = Callable[[memoryview], object]

KINDS: Final = ("sync", "trio", "asyncio")


class Connect(Protocol):
    """Connects a client, as ``Client.connect`` does."""

    def __call__(
        self, address: str | None = None, *, timeout: float | None = None, reconnect: float = 5.0
    ) -> Client: ...


def connecting(kind: str) -> Connect:
    """Return what connects clients of one kind."""
    if kind == "sync":
        return Client.connect
    loop = {"trio": _TrioLoop, "asyncio": _AsyncioLoop}[kind]
    return lambda address=None, **options: cast("Client", _Face(loop(), address, **options))


class _Loop(ABC):
    """A loop in a thread, in which others have something done."""

    client: type[AsyncClient]

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait()

    def do(self, function: Callable[..., Awaitable[T]], *arguments: Any, **options: Any) -> T:
        """Await something in the loop; an interruption does not end that."""

        async def captured() -> Outcome[T]:
            return await acapture(partial(function, *arguments, **options))

        return self._do(captured).unwrap()

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call something in the loop."""

        async def called() -> T:
            return function(*arguments)

        return self.do(called)

    def stop(self) -> None:
        """End it, and its thread."""
        self._stop()
        self._thread.join()

    @abstractmethod
    def _run(self) -> None: ...

    @abstractmethod
    def _do(self, captured: Callable[[], Awaitable[Outcome[T]]]) -> Outcome[T]: ...

    @abstractmethod
    def _stop(self) -> None: ...


class _TrioLoop(_Loop):
    client = TrioClient

    def _run(self) -> None:
        async def main() -> None:
            self._token, self._end = trio.lowlevel.current_trio_token(), trio.Event()
            self._ready.set()
            await self._end.wait()

        trio.run(main)

    def _do(self, captured: Callable[[], Awaitable[Outcome[T]]]) -> Outcome[T]:
        return trio.from_thread.run(captured, trio_token=self._token)

    def _stop(self) -> None:
        self._token.run_sync_soon(self._end.set)


class _AsyncioLoop(_Loop):
    client = AsyncioClient

    def _run(self) -> None:
        async def main() -> None:
            self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
            self._ready.set()
            await self._end.wait()

        asyncio.run(main())

    def _do(self, captured: Callable[[], Awaitable[Outcome[T]]]) -> Outcome[T]:
        async def run() -> Outcome[T]:
            return await captured()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)


class _Face:
    """An asynchronous client as a synchronous one."""

    def __init__(
        self,
        loop: _Loop,
        address: str | None,
        *,
        timeout: float | None = None,
        reconnect: float = 5.0,
    ) -> None:
        self._loop = loop
        self._manager = loop.client.connect(address, timeout=timeout, reconnect=reconnect)
        try:
            self._client = loop.do(self._manager.__aenter__)
        except BaseException:
            loop.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.do(self._manager.__aexit__, None, None, None)
        self._loop.stop()

    @property
    def _talk(self) -> Any:
        return self._client._talk

    def __getattr__(self, name: str) -> Any:
        return partial(self._loop.do, getattr(self._client, name))

    def close(self) -> None:
        self._loop.call(self._client.close)

    def begin(self, call: Any) -> Ticket[Any]:
        return self._loop.call(self._talk.begin, call)

    def finish(self, ticket: Ticket[Any]) -> Any:
        return self._loop.do(self._client._finish, ticket)

    def abandon(self, ticket: Ticket[Any]) -> None:
        self._loop.call(self._talk.abandon, ticket)

    def iterdir(self, *arguments: Any, **options: Any) -> Generator[Any, None, None]:
        return self._iterate(self._client.iterdir(*arguments, **options))

    def iterwalk(self, *arguments: Any, **options: Any) -> Generator[Any, None, None]:
        return self._iterate(self._client.iterwalk(*arguments, **options))

    def tree(self, *arguments: Any, **options: Any) -> Generator[Any, None, None]:
        return self._iterate(self._client.tree(*arguments, **options))

    def trace(self, *arguments: Any, **options: Any) -> Generator[Any, None, None]:
        return self._iterate(self._client.trace(*arguments, **options))

    def glob(self, *arguments: Any, **options: Any) -> Generator[Any, None, None]:
        return self._iterate(self._client.glob(*arguments, **options))

    def open(self, *arguments: Any, **options: Any) -> _FileFace:
        return _FileFace(self._loop, self._loop.do(self._client.open, *arguments, **options))

    def _iterate(self, found: Any) -> Generator[Any, None, None]:
        try:
            while True:
                try:
                    yield self._loop.do(found.__anext__)
                except StopAsyncIteration:
                    return
        finally:
            self._loop.do(found.aclose)

    def attach(self, *arguments: Any, **options: Any) -> AttachedMemory:
        attached = self._loop.do(self._client.attach, *arguments, **options)
        return cast("AttachedMemory", _AttachedFace(self._loop, attached))

    def stream(self, export: str, path: str, write: Write, **options: Any) -> Stat:
        """Let ``write`` block, and call the client itself."""
        return self._loop.do(self._client.stream, export, path, self._in_thread(write), **options)

    def archive(self, export: str, path: str, to: int | Write, **options: Any) -> Archived:
        """Let ``to`` do the same, if it is a function."""
        if not isinstance(to, int):
            to = self._in_thread(to)
        return self._loop.do(self._client.archive, export, path, to, **options)

    def _in_thread(self, write: Write) -> Callable[[memoryview], Awaitable[None]]:
        async def write_in_thread(payload: memoryview) -> None:
            written: list[Outcome[object]] = []
            await self._client._runtime.in_thread(lambda: written.append(capture(write, payload)))
            written.pop().unwrap()

        return write_in_thread


class _FileFace:
    def __init__(self, loop: _Loop, file: AsyncFile) -> None:
        self._loop, self._file = loop, file

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._file, name)
        return partial(self._loop.do, found) if callable(found) else found

    def close(self) -> None:
        self._loop.do(self._file.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _AttachedFace:
    def __init__(self, loop: _Loop, attached: AsyncAttachedMemory) -> None:
        self._loop, self._attached = loop, attached

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attached, name)

    def load(self, *arguments: Any, **options: Any) -> int:
        return self._loop.do(self._attached.load, *arguments, **options)

    def detach(self) -> None:
        self._loop.do(self._attached.detach)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.do(self._attached.__aexit__, kind, error, traceback)


class Taker:
    """A client that connects for each file that it takes."""

    def __init__(self, connect: Connect, address: str, *, reconnect: float = 5.0) -> None:
        self._connect = partial(connect, address, reconnect=reconnect)

    def download(self, path: str, fileno: int, **options: Any) -> Stat:
        with self._connect() as client:
            return client.download("kernels", path, fileno, **options)

    def stream(self, path: str, write: Write, **options: Any) -> Stat:
        with self._connect() as client:
            return client.stream("kernels", path, write, **options)
