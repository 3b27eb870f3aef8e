"""The trio client: any number of tasks call over one connection.

There is no task in the background. Of the tasks that wait for an answer one exchanges bytes with
the daemon, for all; when it has its own answer, or is cancelled, it passes that duty on.
"""

import os
import select
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

import trio

from vuserd.address import socket_candidates, to_sockaddr
from vuserd.client import calls
from vuserd.client.calls import PAGE_ENTRIES, Call, RemotePath, WritableBuffer
from vuserd.client.core import ClientCore, Ticket
from vuserd.client.errors import CannotConnect, RemoteError, describe_loss
from vuserd.client.exchange import receive_some, send_some
from vuserd.client.image import Image
from vuserd.client.memory import SharedMemory, TrioAttachedMemory
from vuserd.client.records import (
    ApiInfo,
    DirectoryPage,
    Entry,
    ExportInfo,
    FsStat,
    Stat,
    WalkEntry,
    WalkPage,
    WalkProblem,
)
from vuserd.client.transfer import (
    ATTEMPTS,
    NOT_LENT,
    TICK_SECONDS,
    Chunk,
    FileChanged,
    Place,
    Progress,
    Transfer,
    changed,
    is_settled,
    lent_places,
    lent_size,
    own_places,
    write_at,
)

T = TypeVar("T")


class TrioClient:
    """A connection to the daemon: ``async with TrioClient.connect() as client: ...``.

    Every call may raise a :class:`vuserd.client.errors.ClientError`, mostly a RemoteError with the
    daemon's answer.  A cancelled call leaves the connection and all other calls as they are.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Talk over a connected stream socket, which is the client's from now on."""
        sock.settimeout(0)
        self._socket = sock
        self._core = ClientCore()
        self._exchanging = False
        self._waiting: dict[Ticket[Any], trio.Event] = {}
        # An epoll descriptor is readable when what it watches for has come: so one task can wait
        # for the socket to give or to take, whichever is first.
        self._epoll = select.epoll()
        self._watched = select.EPOLLIN
        self._epoll.register(sock, self._watched)

    @classmethod
    @asynccontextmanager
    async def connect(cls, address: str | None = None) -> AsyncIterator[Self]:
        """Connect to the daemon at ``address``, by default where :mod:`vuserd.address` says.

        Raises CannotConnect.
        """
        client = cls(await _connect(address))
        try:
            yield client
        finally:
            client.close()

    def close(self) -> None:
        """Close the connection; calls in flight fail with ConnectionLost."""
        self._wake(self._core.lost("the client was closed"))
        if not self._epoll.closed:
            trio.lowlevel.notify_closing(self._epoll)
            self._epoll.close()
            self._socket.close()

    # -- the methods of the daemon -----------------------------------------------------------------

    async def api_info(self) -> ApiInfo:
        """Give the daemon's version, API level, methods and error names."""
        return await self.call(calls.api_info())

    async def exports(self) -> list[ExportInfo]:
        """Give the exports and their state."""
        return await self.call(calls.exports())

    async def stat(self, export: str, path: RemotePath, *, follow: bool = True) -> Stat:
        """Give a file's attributes; with ``follow`` those of what a symlink leads to."""
        return await self.call(calls.stat(export, path, follow=follow))

    async def readlink(self, export: str, path: RemotePath) -> str:
        """Give a symlink's target."""
        return await self.call(calls.readlink(export, path))

    async def readdir(
        self,
        export: str,
        path: RemotePath,
        *,
        attrs: bool = False,
        limit: int = PAGE_ENTRIES,
        after: Any = None,
    ) -> DirectoryPage:
        """Give one page of a directory: ``limit`` entries at most, after the token ``after``."""
        return await self.call(calls.readdir(export, path, attrs=attrs, limit=limit, after=after))

    async def iterdir(
        self, export: str, path: RemotePath, *, attrs: bool = False
    ) -> AsyncIterator[Entry]:
        """Give all entries of a directory, page by page, in the backend's order."""
        ticket = self._begin(calls.readdir_raw(export, path, attrs=attrs, after=None))
        try:
            while True:
                page = await self._finish(ticket)
                if page.next is not None:  # the daemon reads on while these are taken
                    call = calls.readdir_raw(export, path, attrs=attrs, after=page.next)
                    ticket = self._begin(call)
                for entry in page.decoded().entries:
                    yield entry
                if page.next is None:
                    return
        finally:
            self._core.abandon(ticket)

    async def walk(
        self,
        export: str,
        path: RemotePath,
        *,
        attrs: bool = False,
        limit: int = PAGE_ENTRIES,
        after: Any = None,
    ) -> WalkPage:
        """Give one page of the tree below a directory, parents before what is in them.

        Symlinks are entries and never followed. A walk belongs to its connection, where ``next`` of
        a page is the ``after`` of the following one; :meth:`iterwalk` does that.
        """
        return await self.call(calls.walk(export, path, attrs=attrs, limit=limit, after=after))

    async def iterwalk(
        self, export: str, path: RemotePath, *, attrs: bool = False
    ) -> AsyncIterator[WalkEntry]:
        """Give all that is below a directory, page by page.

        Raises the RemoteError of a directory that cannot be read after all others were given.
        """
        after, problems = None, list[WalkProblem]()
        while True:
            page = await self.walk(export, path, attrs=attrs, after=after)
            problems += page.problems
            for entry in page.entries:
                yield entry
            if (after := page.next) is None:
                break
        if problems:
            raise problems[0].error

    async def read(self, export: str, path: RemotePath, offset: int, length: int) -> bytes:
        """Give ``length`` bytes of a file, fewer only at its end."""
        buffer = bytearray(length)
        count = await self.read_into(export, path, offset, buffer)
        return bytes(memoryview(buffer)[:count])

    async def read_into(
        self, export: str, path: RemotePath, offset: int, buffer: WritableBuffer
    ) -> int:
        """Fill ``buffer`` from a file; give the number of bytes, fewer only at its end."""
        return await self.call(calls.read_into(export, path, offset, buffer))

    async def statfs(self, export: str) -> FsStat:
        """Give the size and use of an export's file system."""
        return await self.call(calls.statfs(export))

    async def reload(self, export: str) -> None:
        """Replace an export's backend by a new one; no call is lost."""
        await self.call(calls.reload(export))

    async def status(self) -> dict[str, Any]:
        """Give the daemon's own state, as it came."""
        return await self.call(calls.status())

    # -- images and memory -------------------------------------------------------------------------

    async def fetch(self, export: str, path: RemotePath) -> Image:
        """Give a file, whole, as an image in memory that the daemon shares; close it after use."""
        return await self.call(calls.fetch(export, path))

    async def attach(
        self, memfd: int | None = None, *, size: int | None = None
    ) -> TrioAttachedMemory:
        """Lend memory to the daemon, to load files into: a memfd of yours, or a new one.

        Yours has to be open for reading and writing and stays yours; the daemon seals it against
        shrinking, for as long as it exists. ``size`` is in bytes, of whole pages; by default all of
        your memfd.
        """
        memory = SharedMemory(memfd, size)
        try:
            identifier = await self.call(calls.attach(memory.fileno(), memory.size))
        except BaseException:
            memory.close()
            raise
        return TrioAttachedMemory(self, memory, identifier)

    async def load(
        self,
        memory: int,
        address: int,
        export: str,
        path: RemotePath,
        *,
        offset: int = 0,
        length: int | None = None,
    ) -> int:
        """Have a file's bytes, from ``offset`` on, written at ``address`` of attached memory.

        Gives how many they are: ``length``, or fewer where the file ends.
        """
        return await self.call(
            calls.load(memory, address, export, path, offset=offset, length=length)
        )

    async def detach(self, memory: int) -> None:
        """Take attached memory back from the daemon, once loads into it have ended."""
        await self.call(calls.detach(memory))

    # -- whole files -------------------------------------------------------------------------------

    async def download(
        self, export: str, path: RemotePath, fileno: int, *, progress: Progress | None = None
    ) -> Stat:
        """Write a file, whole, to the regular file open at ``fileno``; give its attributes.

        A file that changes meanwhile is fetched again, ``ATTEMPTS`` times in all; then RemoteError
        CHANGED.
        """

        async def write(payload: memoryview, offset: int) -> None:
            await trio.to_thread.run_sync(write_at, fileno, payload, offset)

        for _ in range(ATTEMPTS):
            before = await self._settled_stat(export, path)
            if before is None:
                continue
            os.ftruncate(fileno, before.size)
            try:
                await self._transfer(export, path, before.size, write, progress)
            except FileChanged:
                continue
            after = await self.stat(export, path)
            if after.same_file(before):
                return after
        raise changed()

    async def stream(
        self,
        export: str,
        path: RemotePath,
        write: Callable[[memoryview], Awaitable[object]],
        *,
        progress: Progress | None = None,
    ) -> Stat:
        """Hand a file's bytes to ``write``, in their order; give its attributes.

        ``write`` has to take all it is given, and may take as long as it likes (a pager's pipe).
        What was written cannot be taken back: RemoteError CHANGED after the first change.
        """
        before = await self._settled_stat(export, path)
        if before is None:
            raise changed()
        try:
            await self._transfer(
                export,
                path,
                before.size,
                lambda payload, _offset: write(payload),
                progress,
                unhurried=True,
            )
        except FileChanged:
            raise changed() from None
        after = await self.stat(export, path)
        if not after.same_file(before):
            raise changed()
        return after

    async def _settled_stat(self, export: str, path: RemotePath) -> Stat | None:
        """Stat a file, once more a tick later where it is too young; None if it still is."""
        for _ in range(2):
            asked_ns = time.time_ns()
            stat = await self.stat(export, path)
            if is_settled(stat, asked_ns, time.time_ns()):
                return stat
            await trio.sleep(TICK_SECONDS)
        return None

    async def _transfer(
        self,
        export: str,
        path: RemotePath,
        size: int,
        write: Callable[[memoryview, int], Awaitable[object]],
        progress: Progress | None,
        *,
        unhurried: bool = False,
    ) -> None:
        """Hand each chunk to ``write``; if that is ``unhurried``, with nothing on its way.

        For the daemon drops a client that does not take what it asked for.
        """
        async with self._places(export, path, size) as places:
            transfer = Transfer(export, path, size, places)
            await self._run(transfer, size, write, progress, unhurried=unhurried)

    @asynccontextmanager
    async def _places(
        self, export: str, path: RemotePath, size: int
    ) -> AsyncIterator[Sequence[Place]]:
        """Give room for chunks: memory that is lent to the daemon where that pays and it can."""
        room = lent_size(size)
        memory = await self._lend(room, export, path) if room else None
        if memory is None:
            yield own_places(size)
            return
        async with memory:
            yield lent_places(memory.id, memoryview(memory.buffer))

    async def _lend(self, size: int, export: str, path: RemotePath) -> TrioAttachedMemory | None:
        """Lend memory to the daemon for a file; None where it or its backend has no room for it."""
        try:
            memory = await self.attach(size=size)
            try:
                await memory.load(export, path, 0, length=1)  # its backend's room shows with this
            except BaseException:
                await memory.detach()
                raise
        except RemoteError as error:
            if error.code not in NOT_LENT:
                raise
        except OSError:
            pass  # no descriptor or memory left here
        else:
            return memory
        return None

    async def _run(
        self,
        transfer: Transfer,
        size: int,
        write: Callable[[memoryview, int], Awaitable[object]],
        progress: Progress | None,
        *,
        unhurried: bool,
    ) -> None:
        in_flight: deque[tuple[Chunk, Ticket[int]]] = deque()
        try:
            while True:
                while (chunk := transfer.next_chunk()) is not None:
                    in_flight.append((chunk, self._begin(chunk.call)))
                if not in_flight:
                    return
                chunk, ticket = in_flight.popleft()
                payload = transfer.arrived(chunk, await self._finish(ticket))
                if unhurried:
                    for _, other in in_flight:
                        await self._finish(other)
                await write(payload, chunk.offset)
                there = transfer.release(chunk)
                if progress is not None:
                    progress(there, size)
        finally:
            for _, ticket in in_flight:
                self._core.abandon(ticket)

    # -- calls in flight ---------------------------------------------------------------------------

    async def call(self, call: Call[T]) -> T:
        """Do one call of :mod:`vuserd.client.calls` and wait for it."""
        return await self._finish(self._begin(call))

    def _begin(self, call: Call[T]) -> Ticket[T]:
        ticket = self._core.begin(call)
        self._send()
        return ticket

    async def _finish(self, ticket: Ticket[T]) -> T:
        """Wait for a call that was begun; while nobody else exchanges bytes, do that."""
        try:
            await trio.lowlevel.checkpoint()
            while not ticket.done:
                if self._exchanging:
                    await self._wait_turn(ticket)
                else:
                    await self._exchange_until(ticket)
        except BaseException:
            self._core.abandon(ticket)
            self._send()  # what undoes its result, where that was there
            raise
        finally:
            self._pass_on()
        return ticket.result()

    async def _wait_turn(self, ticket: Ticket[Any]) -> None:
        """Wait until the call is done, or it is this task's turn to exchange."""
        self._waiting[ticket] = event = trio.Event()
        try:
            await event.wait()
        finally:
            del self._waiting[ticket]

    def _wake(self, tickets: list[Ticket[Any]]) -> None:
        for ticket in tickets:
            if (event := self._waiting.get(ticket)) is not None:
                event.set()

    def _pass_on(self) -> None:
        """See to it that somebody exchanges bytes while anybody waits."""
        if not self._exchanging and self._waiting:
            next(iter(self._waiting.values())).set()

    async def _exchange_until(self, ticket: Ticket[Any]) -> None:
        """Send and receive for all until ``ticket`` is done.

        The buffer is asked for anew for each attempt: while this task waits, the caller that it
        belongs to may be cancelled.
        """
        self._exchanging = True
        try:
            while not ticket.done:
                self._send()
                try:
                    done = receive_some(self._socket, self._core)
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(self._epoll)
                    continue
                self._wake(done)
                if done:
                    await trio.lowlevel.checkpoint()
        except OSError as error:
            self._wake(self._core.lost(describe_loss(error)))
        except trio.ClosedResourceError:
            self._wake(self._core.lost("the client was closed"))
        finally:
            self._exchanging = False

    def _send(self) -> None:
        """Send what the socket takes at once; the rest is sent by whoever exchanges."""
        if self._epoll.closed:
            return
        try:
            while self._core.outgoing:
                send_some(self._socket, self._core, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._core.outgoing.clear()  # what it said before it went away can still be received
        except OSError as error:
            self._wake(self._core.lost(describe_loss(error)))
        watched = select.EPOLLIN | (select.EPOLLOUT if self._core.outgoing else 0)
        if watched != self._watched:
            self._watched = watched
            self._epoll.modify(self._socket, watched)


async def _connect(address: str | None) -> socket.socket:
    await trio.lowlevel.checkpoint()
    attempts = []
    for candidate in socket_candidates(address):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            while True:
                try:
                    sock.connect(to_sockaddr(candidate))
                except BlockingIOError:  # the listener's backlog is full, and poll cannot tell
                    await trio.sleep(0.01)
                else:
                    return sock
        except OSError as error:
            sock.close()
            attempts.append((candidate, error))
        except BaseException:
            sock.close()
            raise
    raise CannotConnect(attempts)
