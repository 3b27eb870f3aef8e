"""The synchronous client: one blocking socket, several calls in flight."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from vuserd.client import calls
from vuserd.client.calls import PAGE_ENTRIES, Call, RemotePath, WritableBuffer
from vuserd.client.core import ClientCore, Ticket
from vuserd.client.errors import NotTaken
from vuserd.client.foreign import hang_up
from vuserd.client.image import Image
from vuserd.client.memory import AttachedMemory, SharedMemory
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
from vuserd.client.sync_link import SyncLink, set_timeout
from vuserd.client.trace import PAGE_EVENTS, TraceEvent, TracePage
from vuserd.client.wholefile import Options, Progress, Sink, take
from vuserd.wire.address import Candidate, socket_candidates

T = TypeVar("T")


class Client:
    """A connection to the daemon, for one thread: ``with Client.connect() as client: ...``.

    Every call may raise a :class:`vuserd.client.errors.ClientError`, mostly a RemoteError with the
    daemon's answer.  For several calls in flight, :meth:`begin` them and :meth:`finish` each.

    A restart of the daemon goes unnoticed. It answers what it has taken before it ends; a call that
    it did not take is sent again to its successor, for which the client looks for ``reconnect``
    seconds. Where no successor comes, or it would lack what this connection carried (attached
    memory, a walk that goes on), the call raises :class:`vuserd.client.errors.NotTaken`: it had no
    effect. Once all memory is detached and the walk has ended, the next call reconnects. A daemon
    that did not end in good order may have taken a call without answering it: that one raises
    ConnectionLost, and the next one reconnects. A time-out, or an interruption such as Ctrl-C, ends
    the client for good.
    """

    def __init__(self, sock: socket.socket, timeout: float = 0.0) -> None:
        """Talk over a connected, blocking stream socket, which is the client's from now on.

        ``timeout`` is the limit of its waits that was set on it, in seconds.
        """
        self._link = SyncLink(sock, timeout)
        #: Connections that answers are awaited on, and that take no more calls.
        self._former: list[SyncLink] = []
        self._address: Candidate | None = None
        self._timeout = timeout
        self._patience = 0.0

    @classmethod
    def connect(
        cls,
        address: str | None = None,
        *,
        timeout: float | None = None,
        reconnect: float = PATIENCE,
    ) -> "Client":
        """Connect to the daemon at ``address``, by default where :mod:`vuserd.wire.address` says.

        With ``timeout`` the connection counts as lost when it stands still for so many seconds. An
        address that is not named has to answer within one second, or else the next is tried.
        ``reconnect`` is how many seconds a call may take to find the daemon's successor; with 0 it
        does not look for one. Raises CannotConnect.
        """
        limit = 0.0 if timeout is None else timeout
        approach = Approach(socket_candidates(address), limit)
        for candidate, seconds in approach:
            try:
                client = cls(_connect_to(candidate, seconds, limit), limit)
                if candidate.is_guessed:
                    client._require_daemon(seconds)
            except OSError as error:
                approach.failed(candidate, error)
            else:
                client._address, client._patience = candidate, reconnect
                return client
        raise approach.error()

    def _require_daemon(self, seconds: float) -> None:
        """Have a first call answered, or close and raise OSError."""
        try:
            if not self._link.is_answered(calls.api_info(), seconds):
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- the methods of the daemon -----------------------------------------------------------------

    def api_info(self) -> ApiInfo:
        """Give the daemon's version, API level, methods and error names."""
        return self.call(calls.api_info())

    def exports(self) -> list[ExportInfo]:
        """Give the exports and their state."""
        return self.call(calls.exports())

    def stat(self, export: str, path: RemotePath, *, follow: bool = True) -> Stat:
        """Give a file's attributes; with ``follow`` those of what a symlink leads to."""
        return self.call(calls.stat(export, path, follow=follow))

    def readlink(self, export: str, path: RemotePath) -> str:
        """Give a symlink's target."""
        return self.call(calls.readlink(export, path))

    def readdir(
        self,
        export: str,
        path: RemotePath,
        *,
        attrs: bool = False,
        limit: int = PAGE_ENTRIES,
        after: Any = None,
    ) -> DirectoryPage:
        """Give one page of a directory: ``limit`` entries at most, after the token ``after``."""
        return self.call(calls.readdir(export, path, attrs=attrs, limit=limit, after=after))

    def iterdir(self, export: str, path: RemotePath, *, attrs: bool = False) -> Iterator[Entry]:
        """Give all entries of a directory, page by page, in the backend's order.

        What is there all the time comes once, also where the daemon is restarted meanwhile.
        """
        listing = Relisting(export, path, attrs=attrs)
        ticket = self._begin(listing.next_call())
        try:
            while True:
                try:
                    page = self.finish(ticket)
                except NotTaken:
                    if not (listing.begin_again() and self._goes_on()):
                        raise
                    ticket = self._begin(listing.next_call())
                    continue
                if listing.take(page):  # the daemon reads on while these are taken
                    ticket = self._begin(listing.next_call(), ticket.core)
                yield from listing.entries()
                if listing.finished:
                    return
        finally:
            self.abandon(ticket)

    def walk(
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
        return self.call(calls.walk(export, path, attrs=attrs, limit=limit, after=after))

    def iterwalk(
        self, export: str, path: RemotePath, *, attrs: bool = False
    ) -> Iterator[WalkEntry]:
        """Give all that is below a directory, page by page.

        Raises the RemoteError of a directory that cannot be read after all others were given.
        """
        after, problems = None, list[WalkProblem]()
        try:
            while True:
                page = self.walk(export, path, attrs=attrs, after=after)
                after = page.next
                problems += page.problems
                yield from page.entries
                if after is None:
                    break
        finally:
            self._link.core.held.discard(calls.walk_going_on(after))
        if problems:
            raise problems[0].error

    def read(self, export: str, path: RemotePath, offset: int, length: int) -> bytes:
        """Give ``length`` bytes of a file, fewer only at its end."""
        buffer = bytearray(length)
        count = self.read_into(export, path, offset, buffer)
        return bytes(memoryview(buffer)[:count])

    def read_into(self, export: str, path: RemotePath, offset: int, buffer: WritableBuffer) -> int:
        """Fill ``buffer`` from a file; give the number of bytes, fewer only at its end."""
        return self.call(calls.read_into(export, path, offset, buffer))

    def statfs(self, export: str) -> FsStat:
        """Give the size and use of an export's file system."""
        return self.call(calls.statfs(export))

    def reload(self, export: str | None = None) -> list[str]:
        """Replace an export's backend by a new one; no call is lost.

        Without an export: have the configuration read again, and what differs applied. Gives a line
        for each thing that was done.
        """
        return self.call(calls.reload(export))

    def rigs(self) -> list[RigInfo]:
        """Give the rigs and their state."""
        return self.call(calls.rigs())

    def trace(self, export: str) -> Iterator[TraceEvent]:
        """Give the FUSE requests of an export as they happen, from the first ``next`` on, for ever.

        For those alone who manage the daemon. :meth:`trace_page` with ``end`` ends the trace.
        """
        page = self.trace_page(export, wait=0.0)
        while True:
            yield from page.events
            page = self.trace_page(export)

    def trace_page(
        self, export: str, *, limit: int = PAGE_EVENTS, wait: float = 1.0, end: bool = False
    ) -> TracePage:
        """Give the FUSE requests that ended since the page before; the first page begins a trace.

        Where there are none it waits ``wait`` seconds for some. A trace is its connection's, and is
        over with ``end``, with that, and when nobody asks for a minute.
        """
        return self.call(calls.trace(export, limit=limit, wait=wait, end=end))

    def metrics(self) -> str:
        """Give the daemon's metrics in Prometheus' text format."""
        return self.call(calls.metrics())

    def status(self) -> dict[str, Any]:
        """Give the daemon's own state, as it came."""
        return self.call(calls.status())

    # -- images and memory -------------------------------------------------------------------------

    def fetch(self, export: str, path: RemotePath) -> Image:
        """Give a file, whole, as an image in memory that the daemon shares; close it after use."""
        return self.call(calls.fetch(export, path))

    def attach(self, memfd: int | None = None, *, size: int | None = None) -> AttachedMemory:
        """Lend memory to the daemon, to load files into: a memfd of yours, or a new one.

        Yours has to be open for reading and writing and stays yours; the daemon seals it against
        shrinking and further seals, for as long as it exists. ``size`` is in bytes, of whole pages;
        by default all of your memfd.
        """
        memory = SharedMemory(memfd, size)
        try:
            return AttachedMemory(
                self, memory, self.call(calls.attach(memory.fileno(), memory.size))
            )
        except BaseException:
            memory.close()
            raise

    def load(
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
        return self.call(calls.load(memory, address, export, path, offset=offset, length=length))

    def detach(self, memory: int) -> None:
        """Take attached memory back from the daemon, once loads into it have ended."""
        self.call(calls.detach(memory))

    # -- whole files -------------------------------------------------------------------------------

    def download(
        self,
        export: str,
        path: RemotePath,
        fileno: int,
        *,
        progress: Progress | None = None,
        grows: bool = False,
    ) -> Stat:
        """Write a file, whole, to the regular file open at ``fileno``; return its attributes.

        What was there before is gone, and holes of the file are holes there. Their ``size`` is the
        number of bytes that there are.

        A file that changes meanwhile is fetched again, ``ATTEMPTS`` times in all; then RemoteError
        CHANGED. With ``grows`` a file that is only appended to is what it was in the beginning.

        Raises OSError, and writes nothing, where ``fileno`` is not open for writing, is open for
        appending, or is of no regular file.
        """
        sink = FileSink(fileno)
        return self._take(export, path, sink, sink.write, progress, grows=grows)

    def stream(
        self,
        export: str,
        path: RemotePath,
        write: Callable[[memoryview], object],
        *,
        progress: Progress | None = None,
        grows: bool = True,
    ) -> Stat:
        """Hand a file's bytes to ``write``, in their order; return its attributes.

        ``write`` has to take all it is given, and may take as long as it likes (a pager's pipe).
        What was written cannot be taken back: RemoteError CHANGED after the first change. A file
        that is only appended to is what it was in the beginning, unless ``grows`` is False.
        """
        return self._take(
            export, path, StreamSink(), lambda payload, _: write(payload), progress, grows=grows
        )

    def _take(
        self,
        export: str,
        path: RemotePath,
        sink: Sink,
        write: Callable[[memoryview, int], object],
        progress: Progress | None,
        *,
        grows: bool,
    ) -> Stat:
        options = Options(progress, grows, self._patience, time.monotonic)
        return self._do(take(export, path, sink, options), write)

    def _do(self, procedure: Procedure[T], write: Callable[[memoryview, int], object]) -> T:
        """Take the steps of a procedure until it returns.

        It hears of all that happens, whenever that is, and cleans up.
        """
        resume: Callable[[Any], Step] = procedure.send
        outcome: Any = None
        try:
            while True:
                try:
                    step = resume(outcome)
                    outcome, resume = self._take_step(step, write), procedure.send
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

    def _take_step(self, step: Step, write: Callable[[memoryview, int], object]) -> Any:
        match step:
            case Ask(call, core):
                return self._ask(call, core)
            case Begin(call, core):
                return self._begin(call, core)
            case Finish(ticket):
                return self.finish(ticket)
            case Abandon(ticket):
                return self.abandon(ticket)
            case Write(payload, offset):
                return write(payload, offset)
            case Pause(seconds):
                time.sleep(seconds)
                return None
            case _:
                return self._goes_on()

    # -- calls in flight ---------------------------------------------------------------------------

    def call(self, call: Call[T]) -> T:
        """Do one call of :mod:`vuserd.client.calls` and wait for it."""
        return self._ask(call, None)

    def begin(self, call: Call[T]) -> Ticket[T]:
        """Send one call without waiting for its answer; :meth:`finish` or :meth:`abandon` it."""
        return self._begin(call)

    def _ask(self, call: Call[T], core: ClientCore | None) -> T:
        ticket = self._begin(call, core)
        try:
            return self.finish(ticket)
        except BaseException:
            self.abandon(ticket)
            raise

    def _begin(self, call: Call[T], core: ClientCore | None = None) -> Ticket[T]:
        """Send one call over the connection that has what it is about; where that ended, fail."""
        ticket = (core or self._link.core).begin(call)
        self._link.send()
        return ticket

    def finish(self, ticket: Ticket[T]) -> T:
        """Wait for a call that was begun. Answers to others may come first, and are kept."""
        if not ticket.done:
            self._link_of(ticket).wait(ticket)
        if ticket.refused is not None:
            self._send_again(ticket)
        if self._former:
            self._leave_former_links()
        return ticket.result()

    def abandon(self, ticket: Ticket[Any]) -> None:
        """Forget a call that was begun; what its result holds is let go."""
        ticket.core.abandon(ticket)
        self._link.send()  # what undoes its result, where that was there

    def _link_of(self, ticket: Ticket[Any]) -> SyncLink:
        return next(link for link in (self._link, *self._former) if link.core is ticket.core)

    # -- the daemon's successor --------------------------------------------------------------------

    def _goes_on(self) -> bool:
        """Tell whether calls are taken, or may be by the daemon's successor."""
        core = self._link.core
        has_successor = self._address is not None and self._patience > 0 and core.can_be_replaced
        return core.takes_requests or has_successor

    def _send_again(self, ticket: Ticket[Any]) -> None:
        """Have a call answered that was not taken, over another connection if there can be one."""
        search = Search(self._patience)
        while ticket.refused is not None and not is_bound(ticket):
            link = self._link
            if link.core.takes_requests:
                link.core.begin_again(ticket)
                link.send()
                link.wait(ticket)
                continue
            link.hear()
            if not self._goes_on():
                break
            address = self._address
            assert address is not None
            if search.is_over():
                ticket.fail(search.failed(address.address))
                break
            try:
                time.sleep(search.next_pause())
                self._connect_again(address, search)
            except OSError as error:
                search.error = error
                if not is_absent(error):
                    ticket.fail(search.failed(address.address))
        if ticket.refused is not None:
            ticket.fail(why_not_taken(ticket))

    def _connect_again(self, address: Candidate, search: Search) -> None:
        sock = _connect_to(address, max(search.deadline - time.monotonic(), 0.001), self._timeout)
        self._former.append(self._link)
        self._link = SyncLink(sock, self._timeout)

    def _leave_former_links(self) -> None:
        """Close the connections that nobody awaits an answer on."""
        for link in self._former:
            if not link.core.is_awaited:
                link.close()
        self._former = [link for link in self._former if link.core.is_awaited]


def _connect_to(candidate: Candidate, seconds: float, timeout: float) -> socket.socket:
    """Connect to one address in so many seconds, with a time-out from then on; raise OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _limit_waits(sock, seconds)
        connect_to(sock, candidate)
        _limit_waits(sock, timeout)
    except BlockingIOError:
        sock.close()
        raise queue_is_full(seconds) from None
    except BaseException:
        hang_up(sock, os.getpid())
        raise
    return sock


def _limit_waits(sock: socket.socket, seconds: float) -> None:
    set_timeout(sock, socket.SO_RCVTIMEO, seconds)
    set_timeout(sock, socket.SO_SNDTIMEO, seconds)
