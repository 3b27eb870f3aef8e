"""The trio client: any number of tasks call over one connection."""

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Self, TypeVar

import trio

from vuserd.client import calls
from vuserd.client.calls import PAGE_ENTRIES, Call, RemotePath, WritableBuffer
from vuserd.client.core import ClientCore, Ticket
from vuserd.client.errors import NotTaken
from vuserd.client.foreign import hang_up
from vuserd.client.image import Image
from vuserd.client.memory import SharedMemory, TrioAttachedMemory
from vuserd.client.procedure import (
    Abandon,
    Ask,
    Begin,
    Finish,
    Pause,
    Procedure,
    Step,
    Write,
    has_ended,
)
from vuserd.client.reaching import (
    PATIENCE,
    Approach,
    Search,
    breaks_protocol,
    connect_to,
    is_absent,
    is_bound,
    is_silent,
    queue_is_full,
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
from vuserd.client.relisting import Relisting
from vuserd.client.sinks import FileSink, StreamSink
from vuserd.client.trace import PAGE_EVENTS, TraceEvent, TracePage
from vuserd.client.trio_link import TrioLink
from vuserd.client.wholefile import Options, Progress, Sink, take
from vuserd.wire.address import Candidate, socket_candidates

T = TypeVar("T")

#: Whole files that are taken at once, fewer than a daemon lets a client have open by default (64).
_TRANSFERS: Final = 48


class TrioClient:
    """A connection to the daemon: ``async with TrioClient.connect() as client: ...``.

    Every call may raise a :class:`vuserd.client.errors.ClientError`, mostly a RemoteError with the
    daemon's answer.  A cancelled call leaves the connection and all other calls as they are.  Of
    whole files 48 are taken at once, and others wait for one of these.

    A restart of the daemon goes unnoticed, as with :class:`vuserd.client.Client`, which tells what
    becomes of a call then.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Talk over a connected stream socket, which is the client's from now on."""
        self._link = TrioLink(sock)
        #: Connections that answers are awaited on, and that take no more calls.
        self._former: list[TrioLink] = []
        self._address: Candidate | None = None
        self._patience = 0.0
        self._reconnecting = trio.Lock()
        self._transfers = trio.Semaphore(_TRANSFERS)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, address: str | None = None, *, reconnect: float = PATIENCE
    ) -> AsyncIterator[Self]:
        """Connect to the daemon at ``address``, by default where :mod:`vuserd.wire.address` says.

        ``reconnect`` is how many seconds a call may take to find the daemon's successor; with 0 it
        does not look for one. An address that is not named has to answer within one second, or
        else the next is tried. Raises CannotConnect.
        """
        await trio.lowlevel.checkpoint()
        approach = Approach(socket_candidates(address))
        for candidate, seconds in approach:
            try:
                client = cls(await _connect_within(seconds, candidate))
                if candidate.is_guessed:
                    await client._require_daemon(seconds)
            except OSError as error:
                approach.failed(candidate, error)
            else:
                client._address, client._patience = candidate, reconnect
                break
        else:
            raise approach.error()
        try:
            yield client
        finally:
            client.close()

    async def _require_daemon(self, seconds: float) -> None:
        """Have a first call answered, or close and raise OSError."""
        try:
            ticket = self._begin(calls.api_info())
            with trio.move_on_after(seconds):
                await self._link.wait(ticket)
            if not ticket.done:
                raise is_silent(seconds)
            if (error := breaks_protocol(self._link.core)) is not None:
                raise error
        except BaseException:
            self.close()
            raise

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
        """Give all entries of a directory, page by page, in the backend's order.

        What is there all the time comes once, also where the daemon is restarted meanwhile.
        """
        listing = Relisting(export, path, attrs=attrs)
        ticket = self._begin(listing.next_call())
        try:
            while True:
                try:
                    page = await self._finish(ticket)
                except NotTaken:
                    if not (listing.begin_again() and self._goes_on()):
                        raise
                    ticket = self._begin(listing.next_call())
                    continue
                if listing.take(page):  # the daemon reads on while these are taken
                    ticket = self._begin(listing.next_call(), ticket.core)
                for entry in listing.entries():
                    yield entry
                if listing.finished:
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
        self,
        export: str,
        path: RemotePath,
        fileno: int,
        *,
        progress: Progress | None = None,
        grows: bool = False,
    ) -> Stat:
        """Write a file, whole, to the regular file open at ``fileno``; return its attributes.

        As :meth:`vuserd.client.Client.download` does.
        """
        sink = FileSink(fileno)

        async def write(payload: memoryview, offset: int) -> None:
            await trio.to_thread.run_sync(sink.write, payload, offset)

        return await self._take(export, path, sink, write, progress, grows=grows)

    async def stream(
        self,
        export: str,
        path: RemotePath,
        write: Callable[[memoryview], Awaitable[object]],
        *,
        progress: Progress | None = None,
        grows: bool = True,
    ) -> Stat:
        """Hand a file's bytes to ``write``, in their order; return its attributes.

        As :meth:`vuserd.client.Client.stream` does.
        """
        return await self._take(
            export, path, StreamSink(), lambda payload, _: write(payload), progress, grows=grows
        )

    async def _take(
        self,
        export: str,
        path: RemotePath,
        sink: Sink,
        write: Callable[[memoryview, int], Awaitable[object]],
        progress: Progress | None,
        *,
        grows: bool,
    ) -> Stat:
        options = Options(progress, grows, self._patience, trio.current_time)
        async with self._transfers:
            return await self._do(take(export, path, sink, options), write)

    async def _do(
        self, procedure: Procedure[T], write: Callable[[memoryview, int], Awaitable[object]]
    ) -> T:
        """Take the steps of a procedure until it returns.

        It hears of all that happens, whenever that is, and cleans up.
        """
        resume: Callable[[Any], Step] = procedure.send
        outcome: Any = None
        try:
            while True:
                try:
                    step = resume(outcome)
                    outcome, resume = await self._take_step(step, write), procedure.send
                except BaseException as error:
                    if not has_ended(procedure):
                        outcome, resume = error, procedure.throw
                    elif isinstance(error, StopIteration):
                        result: T = error.value
                        return result
                    else:
                        raise
        finally:
            del outcome  # which its own traceback refers to, where it is an error

    async def _take_step(
        self, step: Step, write: Callable[[memoryview, int], Awaitable[object]]
    ) -> Any:
        match step:
            case Ask(call, core):
                return await self._ask(call, core)
            case Begin(call, core):
                return self._begin(call, core)
            case Finish(ticket):
                return await self._finish(ticket)
            case Abandon(ticket):
                ticket.core.abandon(ticket)
                self._link.send()  # what undoes its result, where that was there
                return None
            case Write(payload, offset):
                return await write(payload, offset)
            case Pause(seconds):
                await trio.sleep(seconds)
                return None
            case _:
                return self._goes_on()

    # -- calls in flight ---------------------------------------------------------------------------

    async def call(self, call: Call[T]) -> T:
        """Do one call of :mod:`vuserd.client.calls` and wait for it."""
        return await self._ask(call, None)

    async def _ask(self, call: Call[T], core: ClientCore | None) -> T:
        return await self._finish(self._begin(call, core))

    def _begin(self, call: Call[T], core: ClientCore | None = None) -> Ticket[T]:
        """Send one call over the connection that has what it is about; where that ended, fail."""
        ticket = (core or self._link.core).begin(call)
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
                ticket.fail(search.failed(address.address))
                break
            try:
                await self._connect_again(address, search, link)
            except OSError as error:
                search.error = error
                if not is_absent(error):
                    ticket.fail(search.failed(address.address))
        if ticket.refused is not None:
            ticket.fail(why_not_taken(ticket))

    async def _connect_again(self, address: Candidate, search: Search, ended: TrioLink) -> None:
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


async def _connect_within(seconds: float, candidate: Candidate) -> socket.socket:
    """Connect to one address in so many seconds; raise OSError."""
    with trio.move_on_after(seconds):
        return await _connect_to(candidate)
    raise queue_is_full(seconds)


async def _connect_to(candidate: Candidate) -> socket.socket:
    """Connect to one address; raise OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        while True:
            try:
                connect_to(sock, candidate)
            except BlockingIOError:  # the listener's backlog is full, and poll cannot tell
                await trio.sleep(0.01)
            else:
                return sock
    except BaseException:
        hang_up(sock, os.getpid())
        raise
