"""The synchronous client: one blocking socket, several calls in flight."""

import socket
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from vuserd.client import calls, composite
from vuserd.client.calls import PAGE_ENTRIES, Call, RemotePath, WritableBuffer
from vuserd.client.core.conversation import Conversation
from vuserd.client.core.procedure import (
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
from vuserd.client.core.ticket import Ticket
from vuserd.client.image import Image
from vuserd.client.memory import AttachedMemory
from vuserd.client.records import (
    ApiInfo,
    DirectoryPage,
    Entry,
    ExportInfo,
    FsStat,
    PageToken,
    RigInfo,
    Stat,
    Status,
    WalkEntry,
    WalkPage,
)
from vuserd.client.sync_link import SyncLink
from vuserd.client.trace import PAGE_EVENTS, TraceEvent, TracePage

if TYPE_CHECKING:
    from vuserd.client.archive.members import Archived, ArchiveOptions
    from vuserd.client.files.tree_page import TreeEntry

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

    def __init__(self, sock: socket.socket | None = None, timeout: float = 0.0) -> None:
        """Talk over a connected stream socket, which is the client's from now on.

        ``timeout`` limits each of its waits, in seconds; 0 does not. :meth:`connect` makes a socket
        itself.
        """
        self._talk = Conversation(lambda made: SyncLink(made, timeout), time.monotonic)
        if sock is not None:
            self._talk.use(sock)

    @classmethod
    def connect(
        cls,
        address: str | None = None,
        *,
        timeout: float | None = None,
        reconnect: float = PATIENCE,
    ) -> Self:
        """Connect to the daemon at ``address``, by default where :mod:`vuserd.wire.address` says.

        With ``timeout`` the connection counts as lost when it stands still for so many seconds. An
        address that is not named has to answer within one second, or else the next is tried.
        ``reconnect`` is how many seconds a call may take to find the daemon's successor; with 0 it
        does not look for one. Raises CannotConnect.
        """
        limit = timeout or 0.0
        client = cls(None, limit)
        client._run(client._talk.connect(address, limit=limit, patience=reconnect))
        return client

    def close(self) -> None:
        """Close the connection; calls in flight fail with ConnectionLost."""
        self._talk.close()

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
        """Return the daemon's version, API level, methods and error names."""
        return self.call(calls.api_info())

    def exports(self) -> list[ExportInfo]:
        """Return the exports and their state."""
        return self.call(calls.exports())

    def stat(self, export: str, path: RemotePath, *, follow: bool = True) -> Stat:
        """Return a file's attributes; with ``follow`` those of what a symlink leads to."""
        return self.call(calls.stat(export, path, follow=follow))

    def readlink(self, export: str, path: RemotePath) -> str:
        """Return a symlink's target."""
        return self.call(calls.readlink(export, path))

    def readdir(
        self,
        export: str,
        path: RemotePath,
        *,
        attrs: bool = False,
        limit: int = PAGE_ENTRIES,
        after: PageToken | None = None,
    ) -> DirectoryPage:
        """Return one page of a directory: ``limit`` entries at most, after the token ``after``."""
        return self._run(
            composite.readdir(self._talk, export, path, attrs=attrs, limit=limit, after=after)
        )

    def iterdir(self, export: str, path: RemotePath, *, attrs: bool = False) -> Iterator[Entry]:
        """Return all entries of a directory, page by page, in the backend's order.

        What is there all the time comes once, also where the daemon is restarted meanwhile.
        """
        return self._iterate(composite.iterdir(self._talk, export, path, attrs=attrs))

    def walk(
        self,
        export: str,
        path: RemotePath,
        *,
        attrs: bool = False,
        limit: int = PAGE_ENTRIES,
        after: PageToken | None = None,
    ) -> WalkPage:
        """Return one page of the tree below a directory, parents before what is in them.

        Symlinks are entries and never followed. A walk belongs to its connection, where ``next`` of
        a page is the ``after`` of the following one; :meth:`iterwalk` does that.
        """
        return self._run(
            composite.walk(self._talk, export, path, attrs=attrs, limit=limit, after=after)
        )

    def iterwalk(
        self, export: str, path: RemotePath, *, attrs: bool = False
    ) -> Iterator[WalkEntry]:
        """Return all that is below a directory, page by page.

        Raises the RemoteError of a directory that cannot be read after all others were given.
        """
        return self._iterate(composite.iterwalk(self._talk, export, path, attrs=attrs))

    def tree(self, export: str, path: RemotePath) -> "Iterator[TreeEntry]":
        """Return all that is below a directory, with the bytes of its small files.

        Parents come before what is in them, and symlinks are entries and never followed. An
        entry's ``content`` is there until the next entry is asked for; a file without it and
        without an error is read by itself, with :meth:`download` for example.
        """
        return self._iterate(composite.tree(self._talk, export, path))

    def read(self, export: str, path: RemotePath, offset: int, length: int) -> bytes:
        """Return ``length`` bytes of a file, fewer only at its end."""
        return self._run(composite.read(self._talk, export, path, offset, length))

    def read_into(self, export: str, path: RemotePath, offset: int, buffer: WritableBuffer) -> int:
        """Fill ``buffer`` from a file; give the number of bytes, fewer only at its end."""
        return self.call(calls.read_into(export, path, offset, buffer))

    def statfs(self, export: str) -> FsStat:
        """Return the size and use of an export's file system."""
        return self.call(calls.statfs(export))

    def reload(self, export: str | None = None) -> list[str]:
        """Replace an export's backend by a new one; no call is lost.

        Without an export: have the configuration read again, and what differs applied. Gives a line
        for each thing that was done.
        """
        return self.call(calls.reload(export))

    def rigs(self) -> list[RigInfo]:
        """Return the rigs and their state."""
        return self.call(calls.rigs())

    def trace(self, export: str) -> Iterator[TraceEvent]:
        """Return the FUSE requests of an export as they happen, from the first ``next`` on.

        For those alone who manage the daemon. :meth:`trace_page` with ``end`` ends the trace.
        """
        return self._iterate(composite.trace(self._talk, export))

    def trace_page(
        self, export: str, *, limit: int = PAGE_EVENTS, wait: float = 1.0, end: bool = False
    ) -> TracePage:
        """Return the FUSE requests that ended since the page before; the first page begins a trace.

        Where there are none it waits ``wait`` seconds for some. A trace is its connection's, and is
        over with ``end``, with that, and when nobody asks for a minute.
        """
        return self.call(calls.trace(export, limit=limit, wait=wait, end=end))

    def metrics(self) -> str:
        """Return the daemon's metrics in Prometheus' text format."""
        return self.call(calls.metrics())

    def status(self) -> Status:
        """Return the daemon's state; more of it to those who manage the daemon."""
        return self.call(calls.status())

    # -- images and memory -------------------------------------------------------------------------

    def fetch(self, export: str, path: RemotePath) -> Image:
        """Return a file, whole, as an image in memory that the daemon shares, for you to close."""
        return self.call(calls.fetch(export, path))

    def attach(self, memfd: int | None = None, *, size: int | None = None) -> AttachedMemory:
        """Lend memory to the daemon, to load files into: a memfd of yours, or a new one.

        Yours has to be open for reading and writing and stays yours; the daemon seals it against
        shrinking and further seals, for as long as it exists. ``size`` is in bytes, of whole pages;
        by default all of your memfd.
        """
        memory, identifier = self._run(composite.attach(self._talk, memfd, size=size))
        return AttachedMemory(self.call, memory, identifier)

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
        return self._run(
            composite.download(self._talk, export, path, fileno, progress=progress, grows=grows)
        )

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
        return self._run(
            composite.stream(self._talk, export, path, write, progress=progress, grows=grows)
        )

    def archive(
        self,
        export: str,
        path: RemotePath,
        to: int | Callable[[memoryview], object],
        **options: "Unpack[ArchiveOptions]",
    ) -> "Archived":
        """Write an archive of a directory, with all below it, to a descriptor; tell what is in it.

        Instead of a descriptor ``to`` may be a function, as that of :meth:`stream`. For the options
        see :class:`vuserd.client.ArchiveOptions`.

        Names are sorted, parents before children, and inode numbers are the archive's own. Hard
        links stay links, holes become zeros, symlinks are never followed. Each file is one version
        of it. After the last byte the whole tree is looked at again: RemoteError CHANGED, with what
        differs as ``fields["paths"]``. A file that does not fit into the format (EFBIG, EOVERFLOW,
        ENAMETOOLONG) is told before the first byte.
        """
        return self._run(composite.archive(self._talk, export, path, to, **options))

    # -- calls in flight ---------------------------------------------------------------------------

    def call(self, call: Call[T]) -> T:
        """Do one call of :mod:`vuserd.client.calls` and wait for it."""
        ticket = self._talk.begin(call)
        try:
            return self.finish(ticket)
        except BaseException:
            self.abandon(ticket)
            raise

    def begin(self, call: Call[T]) -> Ticket[T]:
        """Send one call without waiting for its answer; :meth:`finish` or :meth:`abandon` it."""
        return self._talk.begin(call)

    def finish(self, ticket: Ticket[T]) -> T:
        """Wait for a call that was begun. Answers to others may come first, and are kept."""
        if not ticket.done:
            self._talk.link_of(ticket).wait(ticket)
        if ticket.refused is not None:
            self._run(self._talk.send_again(ticket))
        if self._talk.former:
            self._talk.leave_former()
        return ticket.result()

    def abandon(self, ticket: Ticket[Any]) -> None:
        """Forget a call that was begun; what its result holds is let go."""
        self._talk.abandon(ticket)

    # -- the steps of procedures -------------------------------------------------------------------

    def _run(self, procedure: Procedure[T]) -> T:
        """Take the steps of a procedure until it returns."""
        running = Running(procedure)
        while (step := running.next_step()) is not None:
            try:
                running.came(self._take(step))
            except BaseException as error:
                running.failed(error)
        return running.result

    def _iterate(self, stream: Stream[T]) -> Iterator[T]:
        """Take the steps of a procedure, and yield what it emits."""
        running = Running(stream)
        while (step := running.next_step()) is not None:
            try:
                if isinstance(step, Emit):
                    yield from step.values
                else:
                    running.came(self._take(step))
            except BaseException as error:
                running.failed(error)

    def _take(self, step: Step) -> object:
        match step:
            case Finish(ticket):
                return self.finish(ticket)
            case Wait(ticket, seconds):
                self._talk.link_of(ticket).wait(ticket, seconds)
            case Write(sink, payload, offset):
                return sink.write(payload, offset)
            case Pause(seconds):
                time.sleep(seconds)
        return None
