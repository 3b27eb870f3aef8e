"""What the asynchronous clients have in common: any number of tasks call over one connection."""

import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial, wraps
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Literal,
    ParamSpec,
    Self,
    TypeVar,
    cast,
    overload,
)

from vuserd.client import calls, composite
from vuserd.client.async_link import AsyncLink
from vuserd.client.calls import Call, RemotePath
from vuserd.client.core.conversation import Conversation
from vuserd.client.core.procedure import (
    Do,
    Emit,
    Finish,
    Pause,
    Procedure,
    Progress,
    Running,
    Step,
    Stream,
    Wait,
    Write,
)
from vuserd.client.core.reconnect import PATIENCE
from vuserd.client.core.seconds import limit_of
from vuserd.client.core.ticket import Ticket
from vuserd.client.errors import TimedOut
from vuserd.client.memory import AsyncAttachedMemory
from vuserd.client.records import Entry, Stat, WalkEntry
from vuserd.client.runtime import Runtime
from vuserd.client.sync_client import Client
from vuserd.client.trace import TraceEvent

if TYPE_CHECKING:
    from vuserd.client.files.attributes import StatEntry
    from vuserd.client.files.destinations import Destination
    from vuserd.client.files.handles import AsyncFile
    from vuserd.client.files.tree_page import TreeEntry

P = ParamSpec("P")
T = TypeVar("T")

#: Whole files that are taken at once, fewer than a daemon lets a client have open by default (64).
_TRANSFERS: Final = 48


def _asks(
    method: Callable[Concatenate[Client, P], T], make: Callable[..., Call[T]]
) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, T]]:
    """Return a method of the synchronous client, that does one call, as one to await."""

    @wraps(method)
    async def asks(self: "AsyncClient", /, *args: P.args, **options: P.kwargs) -> T:
        timeout = _timeout_of(options)
        return await self._finish(self._talk.begin(make(*args, **options)), timeout)

    return asks


def _runs(
    method: Callable[Concatenate[Client, P], T],
    make: Callable[..., Procedure[T]],
) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, T]]:
    """Return a method of the synchronous client, that runs a procedure, as one to await."""

    @wraps(method)
    async def runs(self: "AsyncClient", /, *args: P.args, **options: P.kwargs) -> T:
        timeout = _timeout_of(options)
        return await self._run(make(self._talk, *args, **options), timeout)

    return runs


def _timeout_of(options: dict[str, Any]) -> float | None:
    """Take the time that a call has for each answer out of its options."""
    timeout: float | None = options.pop("timeout", None)
    return timeout


class AsyncClient:
    """A connection to the daemon, with all that :class:`vuserd.client.Client` has, to await.

    Use it as the client of a library: :class:`vuserd.client.TrioClient` or
    :class:`vuserd.client.AsyncioClient`.
    """

    _make_runtime: Callable[[], Runtime]

    def __init__(self, sock: socket.socket | None = None, timeout: float | None = None) -> None:
        """Talk over a connected stream socket, which is the client's from now on.

        ``timeout`` is the seconds for each answer, where a call has none of its own; None is any
        number. :meth:`connect` makes a socket itself.
        """
        self._limit = limit_of(timeout, None)
        runtime = self._runtime = self._make_runtime()
        self._talk = Conversation(lambda made: AsyncLink(made, runtime), runtime.now)
        self._transfers = runtime.semaphore(_TRANSFERS)
        if sock is not None:
            self._talk.use(sock)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        address: str | None = None,
        *,
        timeout: float | None = None,
        reconnect: float = PATIENCE,
    ) -> AsyncIterator[Self]:
        """Connect to the daemon at ``address``, by default where :mod:`vuserd.wire.address` says.

        ``timeout`` is the seconds for each answer, where a call has none of its own; None is any
        number. ``reconnect`` is how many seconds a call may take to find the daemon's successor;
        with 0 it does not look for one. An address that is not named has to answer within one
        second, or else the next is tried. Raises CannotConnect.
        """
        client = cls(None, timeout)
        await client._runtime.checkpoint()
        await client._run(client._talk.connect(address, limit=timeout or 0.0, patience=reconnect))
        try:
            yield client
        finally:
            client.close()

    def close(self) -> None:
        """Close the connection; calls in flight fail with ConnectionLost."""
        self._talk.close()

    # -- the methods of the daemon, as the synchronous client has them -----------------------------

    api_info = _asks(Client.api_info, calls.api_info)
    exports = _asks(Client.exports, calls.exports)
    stat = _asks(Client.stat, calls.stat)
    readlink = _asks(Client.readlink, calls.readlink)
    readdir = _runs(Client.readdir, composite.readdir)
    walk = _runs(Client.walk, composite.walk)
    read = _runs(Client.read, composite.read)
    read_bytes = _runs(Client.read_bytes, composite.read_bytes)
    read_text = _runs(Client.read_text, composite.read_text)
    read_into = _asks(Client.read_into, calls.read_into)
    statfs = _asks(Client.statfs, calls.statfs)
    reload = _asks(Client.reload, calls.reload)
    rigs = _asks(Client.rigs, calls.rigs)
    trace_page = _asks(Client.trace_page, calls.trace)
    metrics = _asks(Client.metrics, calls.metrics)
    status = _asks(Client.status, calls.status)
    fetch = _asks(Client.fetch, calls.fetch)
    load = _asks(Client.load, calls.load)
    detach = _asks(Client.detach, calls.detach)
    archive = _runs(Client.archive, composite.archive)

    @overload
    def iterdir(
        self,
        export: str,
        path: RemotePath,
        *,
        attrs: Literal[True],
        timeout: float | None = None,
    ) -> "AsyncGenerator[StatEntry, None]": ...

    @overload
    def iterdir(
        self,
        export: str,
        path: RemotePath,
        *,
        attrs: bool = False,
        timeout: float | None = None,
    ) -> AsyncGenerator[Entry, None]: ...

    def iterdir(
        self,
        export: str,
        path: RemotePath,
        *,
        attrs: bool = False,
        timeout: float | None = None,
    ) -> AsyncGenerator[Entry, None]:
        """Return all entries of a directory, as :meth:`vuserd.client.Client.iterdir` does."""
        return self._iterate(composite.listed(self._talk, export, path, attrs=attrs), timeout)

    def glob(
        self, export: str, pattern: RemotePath, *, timeout: float | None = None
    ) -> AsyncGenerator[str, None]:
        """Return the paths that a pattern matches, as :meth:`vuserd.client.Client.glob` does."""
        return self._iterate(composite.glob(self._talk, export, pattern), timeout)

    def iterwalk(
        self, export: str, path: RemotePath, *, attrs: bool = False, timeout: float | None = None
    ) -> AsyncGenerator[WalkEntry, None]:
        """Return all that is below a directory, as :meth:`vuserd.client.Client.iterwalk` does."""
        return self._iterate(composite.iterwalk(self._talk, export, path, attrs=attrs), timeout)

    def tree(
        self, export: str, path: RemotePath, *, timeout: float | None = None
    ) -> "AsyncGenerator[TreeEntry, None]":
        """Return a tree with the bytes in it, as :meth:`vuserd.client.Client.tree` does."""
        return self._iterate(composite.tree(self._talk, export, path), timeout)

    def trace(
        self, export: str, *, timeout: float | None = None
    ) -> AsyncGenerator[TraceEvent, None]:
        """Return the FUSE requests of an export, as :meth:`vuserd.client.Client.trace` does."""
        return self._iterate(composite.trace(self._talk, export), timeout)

    async def attach(
        self, memfd: int | None = None, *, size: int | None = None, timeout: float | None = None
    ) -> AsyncAttachedMemory:
        """Lend memory to the daemon, as :meth:`vuserd.client.Client.attach` does."""
        lent = await self._run(composite.attach(self._talk, memfd, size=size), timeout)
        return AsyncAttachedMemory(self.call, self._talk.tell, *lent)

    async def open(
        self, export: str, path: RemotePath, *, timeout: float | None = None
    ) -> "AsyncFile":
        """Open one version of a file: ``async with await client.open(...) as file: ...``.

        As :meth:`vuserd.client.Client.open` does, with ``read``, ``seek`` and ``aclose`` to await.
        """
        from vuserd.client.files.handles import AsyncFile

        version = await self._run(composite.open_version(self._talk, export, path), timeout)
        name = calls.filename_of(export, path)
        return AsyncFile(version, name, lambda procedure: self._run(procedure, timeout))

    async def download(
        self,
        export: str,
        path: RemotePath,
        to: "Destination",
        *,
        progress: Progress | None = None,
        grows: bool = False,
        timeout: float | None = None,
    ) -> Stat:
        """Write a file to a local one, as :meth:`vuserd.client.Client.download` does.

        It is written to in a thread.
        """
        procedure = composite.download(self._talk, export, path, to, progress=progress, grows=grows)
        async with self._transfers:
            return await self._run(procedure, timeout)

    async def stream(
        self,
        export: str,
        path: RemotePath,
        write: Callable[[memoryview], Awaitable[object]],
        *,
        progress: Progress | None = None,
        grows: bool = True,
        timeout: float | None = None,
    ) -> Stat:
        """Hand a file's bytes to ``write``, as :meth:`vuserd.client.Client.stream` does."""
        procedure = composite.stream(
            self._talk, export, path, write, progress=progress, grows=grows
        )
        async with self._transfers:
            return await self._run(procedure, timeout)

    async def call(self, call: Call[T], *, timeout: float | None = None) -> T:
        """Do one call of :mod:`vuserd.client.calls` and wait for it."""
        return await self._finish(self._talk.begin(call), timeout)

    # -- the steps of procedures -------------------------------------------------------------------

    async def _finish(self, ticket: Ticket[T], timeout: float | None = None) -> T:
        """Wait for a call that was begun; where that is cancelled or too long, forget it."""
        talk = self._talk
        try:
            limit = limit_of(timeout, self._limit)
            await self._runtime.checkpoint()
            if not ticket.done:
                await self._wait(ticket, limit)
            if ticket.refused is not None:
                await self._run(talk.send_again(ticket, limit), timeout)
        except BaseException:
            talk.abandon(ticket)
            raise
        if talk.former:
            talk.leave_former()
        return ticket.result()

    async def _wait(self, ticket: Ticket[Any], limit: float | None) -> None:
        """Wait for an answer, for ``limit`` seconds; TimedOut where it does not come."""
        wait = partial(self._talk.link_of(ticket).wait, ticket)
        if limit is None:
            await wait()
            return
        await self._runtime.within(limit, wait)
        if not ticket.done:
            raise ticket.timed_out(limit)

    async def _run(self, procedure: Procedure[T], timeout: float | None = None) -> T:
        """Take the steps of a procedure until it returns."""
        running = Running(procedure)
        while (step := running.next_step()) is not None:
            await self._take(step, running, timeout)
            step = None  # the memory that it names is not to outlive its use
        return running.result

    async def _iterate(
        self, stream: Stream[T], timeout: float | None = None
    ) -> AsyncGenerator[T, None]:
        """Take the steps of a procedure, and yield what it emits."""
        running = Running(stream)
        while (step := running.next_step()) is not None:
            if not isinstance(step, Emit):
                await self._take(step, running, timeout)
                continue
            try:
                for value in step.values:
                    yield value
            except BaseException as error:
                running.failed(error)

    async def _take(self, step: Step, running: Running[Any, Any], timeout: float | None) -> None:
        """Take one step, and let its procedure hear what comes of it.

        One that was cancelled, or met a daemon that was silent for too long, waits for nothing
        more, while it cleans up: of a cancellation trio sees to that by itself, asyncio tells a
        task once.
        """
        if running.cancelled is not None:
            running.failed(running.cancelled)
            return
        try:
            running.came(await self._outcome(step, timeout))
        except (self._runtime.cancelled, TimedOut) as ended:
            running.cancelled = ended
            running.failed(ended)
        except BaseException as error:
            running.failed(error)

    async def _outcome(self, step: Step, timeout: float | None) -> object:
        match step:
            case Finish(ticket):
                return await self._finish(ticket, timeout)
            case Wait(ticket, None):
                await self._wait(ticket, limit_of(timeout, self._limit))
            case Wait(ticket, seconds):
                wait = partial(self._talk.link_of(ticket).wait, ticket)
                await self._runtime.within(cast("float", seconds), wait)
            case Write(sink, payload, offset) if sink.blocks:
                await self._runtime.in_thread(partial(sink.write, payload, offset))
            case Write(sink, payload, offset):
                written = cast("Awaitable[object] | None", sink.write(payload, offset))
                return None if written is None else await written
            case Do(function):
                return await self._called(function)
            case Pause(seconds):
                await self._runtime.sleep(seconds)
        return None

    async def _called(self, function: Callable[[], T]) -> T:
        """Call a function in a thread; return what it does."""
        found: list[T] = []
        await self._runtime.in_thread(lambda: found.append(function()))
        return found[0]
