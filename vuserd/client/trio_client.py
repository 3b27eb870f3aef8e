"""The trio client: any number of tasks call over one connection."""

import os
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Self, TypeVar

import trio

from vuserd.address import socket_candidates
from vuserd.client import calls
from vuserd.client.calls import PAGE_ENTRIES, Call, RemotePath, WritableBuffer
from vuserd.client.core import Ticket
from vuserd.client.errors import CannotConnect, ConnectionLost, NotTaken, RemoteError
from vuserd.client.image import Image
from vuserd.client.memory import SharedMemory, TrioAttachedMemory
from vuserd.client.reaching import (
    PATIENCE,
    Search,
    connect_to,
    is_absent,
    is_bound,
    why_not_taken,
)
from vuserd.client.records import (
    ApiInfo,
    DirectoryPage,
    Entry,
    ExportInfo,
    FsStat,
    RigInfo,
    Stat,
    WalkEntry,
    WalkPage,
    WalkProblem,
)
from vuserd.client.trace import PAGE_EVENTS, TraceEvent, TracePage
from vuserd.client.transfer import (
    ATTEMPTS,
    NOT_LENT,
    TICK_SECONDS,
    Chunk,
    FileChanged,
    Place,
    Progress,
    Resumption,
    Transfer,
    changed,
    is_settled,
    lent_places,
    lent_size,
    own_places,
    write_at,
)
from vuserd.client.trio_link import TrioLink

T = TypeVar("T")


class TrioClient:
    """A connection to the daemon: ``async with TrioClient.connect() as client: ...``.

    Every call may raise a :class:`vuserd.client.errors.ClientError`, mostly a RemoteError with the
    daemon's answer.  A cancelled call leaves the connection and all other calls as they are.

    A restart of the daemon goes unnoticed, as with :class:`vuserd.client.Client`, which tells what
    becomes of a call then.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Talk over a connected stream socket, which is the client's from now on."""
        self._link = TrioLink(sock)
        #: Connections that answers are awaited on, and that take no more calls.
        self._former: list[TrioLink] = []
        self._address: str | None = None
        self._patience = 0.0
        self._reconnecting = trio.Lock()

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, address: str | None = None, *, reconnect: float = PATIENCE
    ) -> AsyncIterator[Self]:
        """Connect to the daemon at ``address``, by default where :mod:`vuserd.address` says.

        ``reconnect`` is how many seconds a call may take to find the daemon's successor; with 0 it
        does not look for one. Raises CannotConnect.
        """
        found, sock = await _connect(address)
        client = cls(sock)
        client._address, client._patience = found, reconnect
        try:
            yield client
        finally:
            client.close()

    def close(self) -> None:
        """Close the connection; calls in flight fail with ConnectionLost."""
        self._address = None
        for link in (self._link, *self._former):
            link.close()
        self._former.clear()

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
            ticket.core.abandon(ticket)

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
        try:
            while True:
                page = await self.walk(export, path, attrs=attrs, after=after)
                after = page.next
                problems += page.problems
                for entry in page.entries:
                    yield entry
                if after is None:
                    break
        finally:
            self._link.core.held.discard(calls.walk_going_on(after))
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

    async def reload(self, export: str | None = None) -> list[str]:
        """Replace an export's backend by a new one; no call is lost.

        Without an export: have the configuration read again, and what differs applied. Gives a line
        for each thing that was done.
        """
        return await self.call(calls.reload(export))

    async def rigs(self) -> list[RigInfo]:
        """Give the rigs and their state."""
        return await self.call(calls.rigs())

    async def trace(self, export: str) -> AsyncIterator[TraceEvent]:
        """Give the FUSE requests of an export as they happen, from the first step on, for ever.

        For those alone who manage the daemon. :meth:`trace_page` with ``end`` ends the trace.
        """
        page = await self.trace_page(export, wait=0.0)
        while True:
            for event in page.events:
                yield event
            page = await self.trace_page(export)

    async def trace_page(
        self, export: str, *, limit: int = PAGE_EVENTS, wait: float = 1.0, end: bool = False
    ) -> TracePage:
        """Give the FUSE requests that ended since the page before; the first page begins a trace.

        Where there are none it waits ``wait`` seconds for some. A trace is its connection's, and is
        over with ``end``, with that, and when nobody asks for a minute.
        """
        return await self.call(calls.trace(export, limit=limit, wait=wait, end=end))

    async def metrics(self) -> str:
        """Give the daemon's metrics in Prometheus' text format."""
        return await self.call(calls.metrics())

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
        shrinking and further seals, for as long as it exists. ``size`` is in bytes, of whole pages;
        by default all of your memfd.
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
        resumption = Resumption(self._patience)
        while True:
            transfer = None
            try:
                async with self._places(export, path, size) as places:
                    transfer = Transfer(export, path, size, places, resumption.begin)
                    await self._run(transfer, size, write, progress, unhurried=unhurried)
            except NotTaken:
                if not (self._goes_on() and resumption.after(transfer, trio.current_time())):
                    raise
            else:
                return

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
                with suppress(ConnectionLost):  # which has detached it
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
                ticket.core.abandon(ticket)

    # -- calls in flight ---------------------------------------------------------------------------

    async def call(self, call: Call[T]) -> T:
        """Do one call of :mod:`vuserd.client.calls` and wait for it."""
        return await self._finish(self._begin(call))

    def _begin(self, call: Call[T]) -> Ticket[T]:
        ticket = self._link.core.begin(call)
        self._link.send()
        return ticket

    async def _finish(self, ticket: Ticket[T]) -> T:
        """Wait for a call that was begun."""
        try:
            await trio.lowlevel.checkpoint()
            if not ticket.done:
                await self._link_of(ticket).wait(ticket)
            if ticket.refused is not None:
                await self._send_again(ticket)
        except BaseException:
            ticket.core.abandon(ticket)
            self._link.send()  # what undoes its result, where that was there
            raise
        if self._former:
            self._leave_former_links()
        return ticket.result()

    def _link_of(self, ticket: Ticket[Any]) -> TrioLink:
        return next(link for link in (self._link, *self._former) if link.core is ticket.core)

    # -- the daemon's successor --------------------------------------------------------------------

    def _goes_on(self) -> bool:
        """Tell whether calls are taken, or may be by the daemon's successor."""
        core = self._link.core
        has_successor = self._address is not None and self._patience > 0 and core.can_be_replaced
        return core.takes_requests or has_successor

    async def _send_again(self, ticket: Ticket[Any]) -> None:
        """Have a call answered that was not taken, over another connection if there can be one."""
        search = Search(self._patience, trio.current_time())
        while ticket.refused is not None and not is_bound(ticket):
            link = self._link
            if link.core.takes_requests:
                link.core.begin_again(ticket)
                link.send()
                await link.wait(ticket)
                continue
            link.hear()
            if not self._goes_on():
                break
            address = self._address
            assert address is not None
            if search.is_over(trio.current_time()):
                ticket.fail(search.failed(address))
                break
            try:
                await self._connect_again(address, search, link)
            except OSError as error:
                search.error = error
                if not is_absent(error):
                    ticket.fail(search.failed(address))
        if ticket.refused is not None:
            ticket.fail(why_not_taken(ticket))

    async def _connect_again(self, address: str, search: Search, ended: TrioLink) -> None:
        """Look once for the successor of a connection; several tasks may want it."""
        with trio.move_on_at(search.deadline):
            async with self._reconnecting:
                if self._link is not ended:
                    return
                await trio.sleep(search.next_pause())
                sock = await _connect_to(address)
                if self._address is None:
                    sock.close()  # the client was closed meanwhile
                    return
                self._former.append(self._link)
                self._link = TrioLink(sock)

    def _leave_former_links(self) -> None:
        """Close the connections that nobody awaits an answer on."""
        for link in self._former:
            if not link.core.is_awaited:
                link.close()
        self._former = [link for link in self._former if link.core.is_awaited]


async def _connect(address: str | None) -> tuple[str, socket.socket]:
    """Connect to the first address that can be had; give it, too."""
    await trio.lowlevel.checkpoint()
    attempts = []
    for candidate in socket_candidates(address):
        try:
            return candidate, await _connect_to(candidate)
        except OSError as error:
            attempts.append((candidate, error))
    raise CannotConnect(attempts)


async def _connect_to(address: str) -> socket.socket:
    """Connect to one address; raise OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        while True:
            try:
                connect_to(sock, address)
            except BlockingIOError:  # the listener's backlog is full, and poll cannot tell
                await trio.sleep(0.01)
            else:
                return sock
    except BaseException:
        sock.close()
        raise
