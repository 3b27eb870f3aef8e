"""The synchronous client: one blocking socket, several calls in flight."""

import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, Self, overload

from vuserd.client import calls, composite
from vuserd.client.calls import PAGE_ENTRIES, RemotePath, WritableBuffer
from vuserd.client.core.reconnect import PATIENCE
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
from vuserd.client.sync.wholefiles import WholeFiles
from vuserd.client.trace import PAGE_EVENTS, TraceEvent, TracePage

if TYPE_CHECKING:
    from vuserd.client.files.attributes import StatEntry
    from vuserd.client.files.tree_page import TreeEntry


class Client(WholeFiles):
    """A connection to the daemon, for one thread: ``with Client.connect() as client: ...``.

    Every call may raise a :class:`vuserd.client.errors.ClientError`, mostly a RemoteError with the
    daemon's answer.  For several calls in flight, :meth:`begin` them and :meth:`finish` each.

    ``timeout`` of a call, or else of the client, is the seconds for each answer of the daemon: a
    listing has as many for each page, a whole file for each part. The call that has none in them
    raises TimedOut, a TimeoutError. That, and an interruption such as Ctrl-C, ends the call and not
    the client: a late answer is dropped. Only what interrupts the few microseconds in which an
    answer is taken apart costs the connection, and the next call makes a new one.

    A client is its thread's: where another one calls it, or the child of a fork, that is a
    RuntimeError. Give each thread a client of its own, or share a
    :class:`vuserd.client.ClientPool`.

    A restart of the daemon goes unnoticed. It answers what it has taken before it ends; a call that
    it did not take is sent again to its successor, for which the client looks for ``reconnect``
    seconds. Where no successor comes, or it would lack what this connection carried (attached
    memory, a walk that goes on), the call raises :class:`vuserd.client.errors.NotTaken`: it had no
    effect. Once all memory is detached and the walk has ended, the next call reconnects. A daemon
    that did not end in good order may have taken a call without answering it: that one raises
    ConnectionLost, and the next one reconnects.
    """

    def __init__(self, sock: socket.socket | None = None, timeout: float | None = None) -> None:
        """Talk over a connected stream socket, which is the client's from now on.

        ``timeout`` is the seconds for each answer, where a call has none of its own; None is any
        number. :meth:`connect` makes a socket itself.
        """
        super().__init__(timeout)
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

        ``timeout`` is the seconds for each answer, where a call has none of its own; None is any
        number. An address that is not named has to answer within one second, or else the next is
        tried.
        ``reconnect`` is how many seconds a call may take to find the daemon's successor; with 0 it
        does not look for one. Raises CannotConnect.
        """
        client = cls(None, timeout)
        client._run(client._talk.connect(address, limit=timeout or 0.0, patience=reconnect))
        return client

    # -- the methods of the daemon -----------------------------------------------------------------

    def api_info(self, *, timeout: float | None = None) -> ApiInfo:
        """Return the daemon's version, API level, methods and error names."""
        return self.call(calls.api_info(), timeout=timeout)

    def exports(self, *, timeout: float | None = None) -> list[ExportInfo]:
        """Return the exports and their state."""
        return self.call(calls.exports(), timeout=timeout)

    def stat(
        self, export: str, path: RemotePath, *, follow: bool = True, timeout: float | None = None
    ) -> Stat:
        """Return a file's attributes; with ``follow`` those of what a symlink leads to."""
        return self.call(calls.stat(export, path, follow=follow), timeout=timeout)

    def readlink(self, export: str, path: RemotePath, *, timeout: float | None = None) -> str:
        """Return a symlink's target."""
        return self.call(calls.readlink(export, path), timeout=timeout)

    def readdir(
        self,
        export: str,
        path: RemotePath,
        *,
        attrs: bool = False,
        limit: int = PAGE_ENTRIES,
        after: PageToken | None = None,
        timeout: float | None = None,
    ) -> DirectoryPage:
        """Return one page of a directory: ``limit`` entries at most, after the token ``after``."""
        return self._run(
            composite.readdir(self._talk, export, path, attrs=attrs, limit=limit, after=after),
            timeout,
        )

    @overload
    def iterdir(
        self,
        export: str,
        path: RemotePath,
        *,
        attrs: Literal[True],
        timeout: float | None = None,
    ) -> "Iterator[StatEntry]": ...

    @overload
    def iterdir(
        self,
        export: str,
        path: RemotePath,
        *,
        attrs: bool = False,
        timeout: float | None = None,
    ) -> Iterator[Entry]: ...

    def iterdir(
        self,
        export: str,
        path: RemotePath,
        *,
        attrs: bool = False,
        timeout: float | None = None,
    ) -> Iterator[Entry]:
        """Return all entries of a directory, page by page, in the backend's order.

        The next page is read while the caller takes the one before, so an entry may be as old as
        that. What is there all the time comes once, also where the daemon is restarted meanwhile.
        With ``attrs`` each has its ``stat``; that of one whose attributes cannot be had raises why,
        as :meth:`os.DirEntry.stat` does.
        """
        return self._iterate(composite.listed(self._talk, export, path, attrs=attrs), timeout)

    def glob(
        self, export: str, pattern: RemotePath, *, timeout: float | None = None
    ) -> Iterator[str]:
        """Return the paths that a pattern matches, such as ``/boot/vmlinuz-*`` or ``**/*.dtb``.

        The client matches, as :func:`glob.glob` does: ``*``, ``?`` and ``[...]`` in each part of
        the path, ``**`` for any number of directories, and none of them a hidden name.
        """
        return self._iterate(composite.glob(self._talk, export, pattern), timeout)

    def walk(
        self,
        export: str,
        path: RemotePath,
        *,
        attrs: bool = False,
        limit: int = PAGE_ENTRIES,
        after: PageToken | None = None,
        timeout: float | None = None,
    ) -> WalkPage:
        """Return one page of the tree below a directory, parents before what is in them.

        Symlinks are entries and never followed. A walk belongs to its connection, where ``next`` of
        a page is the ``after`` of the following one; :meth:`iterwalk` does that.
        """
        return self._run(
            composite.walk(self._talk, export, path, attrs=attrs, limit=limit, after=after),
            timeout,
        )

    def iterwalk(
        self, export: str, path: RemotePath, *, attrs: bool = False, timeout: float | None = None
    ) -> Iterator[WalkEntry]:
        """Return all that is below a directory, page by page.

        Raises the RemoteError of a directory that cannot be read after all others were given.
        """
        return self._iterate(composite.iterwalk(self._talk, export, path, attrs=attrs), timeout)

    def tree(
        self, export: str, path: RemotePath, *, timeout: float | None = None
    ) -> "Iterator[TreeEntry]":
        """Return all that is below a directory, with the bytes of its small files.

        Parents come before what is in them, and symlinks are entries and never followed. An
        entry's ``content`` is there until the next entry is asked for; a file without it and
        without an error is read by itself, with :meth:`download` for example.
        """
        return self._iterate(composite.tree(self._talk, export, path), timeout)

    def read(
        self,
        export: str,
        path: RemotePath,
        offset: int,
        length: int,
        *,
        timeout: float | None = None,
    ) -> bytes:
        """Return ``length`` bytes of a file, fewer only at its end."""
        return self._run(composite.read(self._talk, export, path, offset, length), timeout)

    def read_into(
        self,
        export: str,
        path: RemotePath,
        offset: int,
        buffer: WritableBuffer,
        *,
        timeout: float | None = None,
    ) -> int:
        """Fill ``buffer`` from a file; give the number of bytes, fewer only at its end."""
        return self.call(calls.read_into(export, path, offset, buffer), timeout=timeout)

    def statfs(self, export: str, *, timeout: float | None = None) -> FsStat:
        """Return the size and use of an export's file system."""
        return self.call(calls.statfs(export), timeout=timeout)

    def reload(self, export: str | None = None, *, timeout: float | None = None) -> list[str]:
        """Replace an export's backend by a new one; no call is lost.

        Without an export: have the configuration read again, and what differs applied. Gives a line
        for each thing that was done.
        """
        return self.call(calls.reload(export), timeout=timeout)

    def rigs(self, *, timeout: float | None = None) -> list[RigInfo]:
        """Return the rigs and their state."""
        return self.call(calls.rigs(), timeout=timeout)

    def trace(self, export: str, *, timeout: float | None = None) -> Iterator[TraceEvent]:
        """Return the FUSE requests of an export as they happen, from the first ``next`` on.

        For those alone who manage the daemon. :meth:`trace_page` with ``end`` ends the trace.
        """
        return self._iterate(composite.trace(self._talk, export), timeout)

    def trace_page(
        self,
        export: str,
        *,
        limit: int = PAGE_EVENTS,
        wait: float = 1.0,
        end: bool = False,
        timeout: float | None = None,
    ) -> TracePage:
        """Return the FUSE requests that ended since the page before; the first page begins a trace.

        Where there are none it waits ``wait`` seconds for some. A trace is its connection's, and is
        over with ``end``, with that, and when nobody asks for a minute.
        """
        return self.call(calls.trace(export, limit=limit, wait=wait, end=end), timeout=timeout)

    def metrics(self, *, timeout: float | None = None) -> str:
        """Return the daemon's metrics in Prometheus' text format."""
        return self.call(calls.metrics(), timeout=timeout)

    def status(self, *, timeout: float | None = None) -> Status:
        """Return the daemon's state; more of it to those who manage the daemon."""
        return self.call(calls.status(), timeout=timeout)

    # -- images and memory -------------------------------------------------------------------------

    def fetch(self, export: str, path: RemotePath, *, timeout: float | None = None) -> Image:
        """Return a file, whole, as an image in memory that the daemon shares, for you to close."""
        return self.call(calls.fetch(export, path), timeout=timeout)

    def attach(
        self, memfd: int | None = None, *, size: int | None = None, timeout: float | None = None
    ) -> AttachedMemory:
        """Lend memory to the daemon, to load files into: a memfd of yours, or a new one.

        Yours has to be open for reading and writing and stays yours; the daemon seals it against
        shrinking and further seals, for as long as it exists. ``size`` is in bytes, of whole pages;
        by default all of your memfd.
        """
        lent = self._run(composite.attach(self._talk, memfd, size=size), timeout)
        return AttachedMemory(self.call, self._talk.tell, *lent)

    def load(
        self,
        memory: int,
        address: int,
        export: str,
        path: RemotePath,
        *,
        offset: int = 0,
        length: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """Load a file's bytes, from ``offset`` on, to ``address`` of attached memory.

        Gives how many they are: ``length``, or fewer where the file ends.
        """
        return self.call(
            calls.load(memory, address, export, path, offset=offset, length=length), timeout=timeout
        )

    def detach(self, memory: int, *, timeout: float | None = None) -> None:
        """Take attached memory back from the daemon, once loads into it have ended."""
        self.call(calls.detach(memory), timeout=timeout)
