"""The synchronous client: one blocking socket, several calls in flight."""

import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from vuserd.address import socket_candidates, to_sockaddr
from vuserd.client import calls
from vuserd.client.calls import PAGE_ENTRIES, Call, RemotePath, WritableBuffer
from vuserd.client.core import ClientCore, Ticket
from vuserd.client.errors import CannotConnect, RemoteError, describe_loss
from vuserd.client.exchange import receive_some, send_some
from vuserd.client.image import Image
from vuserd.client.memory import AttachedMemory, SharedMemory
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

_SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Client:
    """A connection to the daemon, for one thread: ``with Client.connect() as client: ...``.

    Every call may raise a :class:`vuserd.client.errors.ClientError`, mostly a RemoteError with the
    daemon's answer.  For several calls in flight, :meth:`begin` them and :meth:`finish` each.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Talk over a connected, blocking stream socket, which is the client's from now on."""
        self._socket = sock
        self._core = ClientCore()

    @classmethod
    def connect(cls, address: str | None = None, *, timeout: float | None = None) -> "Client":
        """Connect to the daemon at ``address``, by default where :mod:`vuserd.address` says.

        With ``timeout`` the connection counts as lost when it stands still for so many seconds.
        Raises CannotConnect.
        """
        attempts = []
        for candidate in socket_candidates(address):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                if timeout is not None:
                    _set_timeout(sock, timeout)
                sock.connect(to_sockaddr(candidate))
            except OSError as error:
                sock.close()
                attempts.append((candidate, error))
            else:
                return cls(sock)
        raise CannotConnect(attempts)

    def close(self) -> None:
        """Close the connection; calls in flight fail with ConnectionLost."""
        self._core.lost("the client was closed")
        self._socket.close()

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
        """Give all entries of a directory, page by page, in the backend's order."""
        ticket = self.begin(calls.readdir_raw(export, path, attrs=attrs, after=None))
        try:
            while True:
                page = self.finish(ticket)
                if page.next is not None:  # the daemon reads on while these are taken
                    call = calls.readdir_raw(export, path, attrs=attrs, after=page.next)
                    ticket = self.begin(call)
                yield from page.decoded().entries
                if page.next is None:
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
        while True:
            page = self.walk(export, path, attrs=attrs, after=after)
            problems += page.problems
            yield from page.entries
            if (after := page.next) is None:
                break
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

    def reload(self, export: str) -> None:
        """Replace an export's backend by a new one; no call is lost."""
        self.call(calls.reload(export))

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
        shrinking, for as long as it exists. ``size`` is in bytes, of whole pages; by default all of
        your memfd.
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
        self, export: str, path: RemotePath, fileno: int, *, progress: Progress | None = None
    ) -> Stat:
        """Write a file, whole, to the regular file open at ``fileno``; give its attributes.

        A file that changes meanwhile is fetched again, ``ATTEMPTS`` times in all; then RemoteError
        CHANGED.
        """

        def write(payload: memoryview, offset: int) -> None:
            write_at(fileno, payload, offset)

        for _ in range(ATTEMPTS):
            before = self._settled_stat(export, path)
            if before is None:
                continue
            os.ftruncate(fileno, before.size)
            try:
                self._transfer(export, path, before.size, write, progress)
            except FileChanged:
                continue
            after = self.stat(export, path)
            if after.same_file(before):
                return after
        raise changed()

    def stream(
        self,
        export: str,
        path: RemotePath,
        write: Callable[[memoryview], object],
        *,
        progress: Progress | None = None,
    ) -> Stat:
        """Hand a file's bytes to ``write``, in their order; give its attributes.

        ``write`` has to take all it is given, and may take as long as it likes (a pager's pipe).
        What was written cannot be taken back: RemoteError CHANGED after the first change.
        """
        before = self._settled_stat(export, path)
        if before is None:
            raise changed()
        try:
            self._transfer(
                export,
                path,
                before.size,
                lambda payload, _offset: write(payload),
                progress,
                unhurried=True,
            )
        except FileChanged:
            raise changed() from None
        after = self.stat(export, path)
        if not after.same_file(before):
            raise changed()
        return after

    def _settled_stat(self, export: str, path: RemotePath) -> Stat | None:
        """Stat a file, once more a tick later where it is too young; None if it still is."""
        for _ in range(2):
            asked_ns = time.time_ns()
            stat = self.stat(export, path)
            if is_settled(stat, asked_ns, time.time_ns()):
                return stat
            time.sleep(TICK_SECONDS)
        return None

    def _transfer(
        self,
        export: str,
        path: RemotePath,
        size: int,
        write: Callable[[memoryview, int], object],
        progress: Progress | None,
        *,
        unhurried: bool = False,
    ) -> None:
        """Hand each chunk to ``write``; if that is ``unhurried``, with nothing on its way.

        For the daemon drops a client that does not take what it asked for.
        """
        with self._places(export, path, size) as places:
            transfer = Transfer(export, path, size, places)
            self._run(transfer, size, write, progress, unhurried=unhurried)

    @contextmanager
    def _places(self, export: str, path: RemotePath, size: int) -> Iterator[Sequence[Place]]:
        """Give room for chunks: memory that is lent to the daemon where that pays and it can."""
        room = lent_size(size)
        memory = self._lend(room, export, path) if room else None
        if memory is None:
            yield own_places(size)
            return
        with memory:
            yield lent_places(memory.id, memoryview(memory.buffer))

    def _lend(self, size: int, export: str, path: RemotePath) -> AttachedMemory | None:
        """Lend memory to the daemon for a file; None where it or its backend has no room for it."""
        try:
            memory = self.attach(size=size)
            try:
                memory.load(export, path, 0, length=1)  # its backend's room shows with this
            except BaseException:
                memory.detach()
                raise
        except RemoteError as error:
            if error.code not in NOT_LENT:
                raise
        except OSError:
            pass  # no descriptor or memory left here
        else:
            return memory
        return None

    def _run(
        self,
        transfer: Transfer,
        size: int,
        write: Callable[[memoryview, int], object],
        progress: Progress | None,
        *,
        unhurried: bool,
    ) -> None:
        in_flight: deque[tuple[Chunk, Ticket[int]]] = deque()
        try:
            while True:
                while (chunk := transfer.next_chunk()) is not None:
                    in_flight.append((chunk, self.begin(chunk.call)))
                if not in_flight:
                    return
                chunk, ticket = in_flight.popleft()
                payload = transfer.arrived(chunk, self.finish(ticket))
                if unhurried:
                    for _, other in in_flight:
                        self.finish(other)
                write(payload, chunk.offset)
                there = transfer.release(chunk)
                if progress is not None:
                    progress(there, size)
        finally:
            for _, ticket in in_flight:
                self._core.abandon(ticket)

    # -- calls in flight ---------------------------------------------------------------------------

    def call(self, call: Call[T]) -> T:
        """Do one call of :mod:`vuserd.client.calls` and wait for it."""
        return self.finish(self.begin(call))

    def begin(self, call: Call[T]) -> Ticket[T]:
        """Send one call without waiting for its answer; :meth:`finish` or :meth:`abandon` it."""
        ticket = self._core.begin(call)
        with _Unbroken(self._core):
            self._send()
        return ticket

    def finish(self, ticket: Ticket[T]) -> T:
        """Wait for a call that was begun. Answers to others may come first, and are kept."""
        with _Unbroken(self._core):
            while not ticket.done:
                if self._core.outgoing:
                    self._exchange()
                else:
                    self._receive()
        return ticket.result()

    def abandon(self, ticket: Ticket[Any]) -> None:
        """Forget a call that was begun; what its result holds is let go."""
        self._core.abandon(ticket)

    def _send(self) -> None:
        """Send what the socket takes without waiting."""
        try:
            while self._core.outgoing:
                send_some(self._socket, self._core, _SEND_FLAGS)
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._core.outgoing.clear()  # what it said before it went away can still be received
        except OSError as error:
            self._core.lost(describe_loss(error))

    def _exchange(self) -> None:
        """Wait until the daemon takes or gives something: it may do neither while we do not."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLOUT)
        for _, event in poll.poll():
            if event & select.POLLOUT:
                self._send()
            if event & ~select.POLLOUT:
                self._receive()

    def _receive(self) -> None:
        """Wait for bytes and take them in; a payload to its end, which saves system calls."""
        flags = socket.MSG_WAITALL if self._core.in_payload else 0
        try:
            receive_some(self._socket, self._core, flags)
        except OSError as error:
            self._core.lost(describe_loss(error))


class _Unbroken:
    """Ends the connection when KeyboardInterrupt or the like comes between its bytes."""

    def __init__(self, core: ClientCore) -> None:
        self._core = core

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._core.lost("an exchange with the daemon was interrupted")


def _set_timeout(sock: socket.socket, seconds: float) -> None:
    """Limit each wait in the kernel: the socket stays blocking, as MSG_WAITALL needs it."""
    whole, fraction = divmod(seconds, 1)
    timeval = struct.pack("@ll", int(whole), int(fraction * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
