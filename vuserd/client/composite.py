"""The methods of a client that take more than one call, as procedures.

What takes whole files is loaded with the first one: most runs of vuserctl take none.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from operator import length_hint
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from vuserd.client import calls
from vuserd.client.calls import PAGE_ENTRIES, RemotePath
from vuserd.client.core.conversation import Talk
from vuserd.client.core.procedure import Emit, Procedure, Progress, Running, Stream, Wait
from vuserd.client.core.relisting import Relisting
from vuserd.client.core.ticket import Ticket
from vuserd.client.core.walking import walk_raw
from vuserd.client.errors import NotTaken, RemoteOSError
from vuserd.client.listing.following import Following
from vuserd.client.memory import SharedMemory
from vuserd.client.records import (
    DirectoryPage,
    Entry,
    PageToken,
    Stat,
    WalkEntry,
    WalkPage,
    WalkProblem,
)
from vuserd.client.trace import TraceEvent

if TYPE_CHECKING:
    from vuserd.client.archive.members import Archived, ArchiveOptions
    from vuserd.client.files.destinations import Destination
    from vuserd.client.files.opening import Parts, Sealed
    from vuserd.client.files.tree_page import TreeEntry

T = TypeVar("T")

#: Seconds for which the caller takes entries before the next page is received on.
_A_WHILE = 0.25


def readdir(
    talk: Talk,
    export: str,
    path: RemotePath,
    *,
    attrs: bool = False,
    limit: int = PAGE_ENTRIES,
    after: PageToken | None = None,
) -> Procedure[DirectoryPage]:
    """Return one page of a directory."""
    columns = yield from talk.has_columns(export, path)
    call = calls.readdir(export, path, attrs=attrs, limit=limit, after=after, columns=columns)
    return (yield from talk.ask(call))


def walk(
    talk: Talk,
    export: str,
    path: RemotePath,
    *,
    attrs: bool = False,
    limit: int = PAGE_ENTRIES,
    after: PageToken | None = None,
) -> Procedure[WalkPage]:
    """Return one page of the tree below a directory."""
    columns = yield from talk.has_columns(export, path)
    call = calls.walk(export, path, attrs=attrs, limit=limit, after=after, columns=columns)
    return (yield from talk.ask(call))


def iterdir(talk: Talk, export: str, path: RemotePath, *, attrs: bool = False) -> Stream[Entry]:
    """Emit all entries of a directory; a listing outlives its connection."""
    level = yield from talk.level(export, path)
    listing = Relisting(export, path, attrs=attrs, level=level)
    ticket = talk.begin(listing.next_call())
    try:
        while True:
            try:
                page = yield from talk.finish(ticket)
            except NotTaken:
                if not (listing.begin_again() and talk.goes_on):
                    raise
                listing.level = yield from talk.level(export, path)
                ticket = talk.begin(listing.next_call())
                continue
            if listing.take(page):  # the daemon reads on while these are taken
                ticket = talk.begin(listing.next_call(), ticket.core)
            yield Emit(listing.entries())
            if listing.finished:
                return
    finally:
        talk.abandon(ticket)


def listed(talk: Talk, export: str, path: RemotePath, *, attrs: bool = False) -> Stream[Entry]:
    """Do the same; with attributes, an entry that has none raises why as its ``stat``."""
    if not attrs:
        return iterdir(talk, export, path)
    from vuserd.client.files.attributes import with_attributes

    return with_attributes(talk, export, path, iterdir(talk, export, path, attrs=True))


def gathered(stream: Stream[T]) -> Procedure[list[T]]:
    """Return all that a stream emits, up to an error of the file system."""
    found: list[T] = []
    running = Running(stream)
    try:
        while (step := running.next_step()) is not None:
            if isinstance(step, Emit):
                found += step.values
                continue
            try:
                running.came((yield step))
            except BaseException as error:
                running.failed(error)
    except RemoteOSError:
        pass
    return found


def glob(talk: Talk, export: str, pattern: RemotePath) -> Stream[str]:
    """Emit the paths that a pattern matches."""
    from vuserd.client.files.matching import Lists, glob

    def entries(path: str) -> Procedure[list[Entry]]:
        return gathered(iterdir(talk, export, path))

    def tree(path: str) -> Procedure[list[WalkEntry]]:
        return gathered(iterwalk(talk, export, path))

    return glob(talk, export, os.fsdecode(pattern), Lists(entries, tree))


def open_version(talk: Talk, export: str, path: RemotePath) -> "Procedure[Sealed | Parts]":
    """Return one version of a file to read from."""
    from vuserd.client.files.opening import open_version

    return open_version(talk, export, path)


def iterwalk(
    talk: Talk, export: str, path: RemotePath, *, attrs: bool = False
) -> Stream[WalkEntry]:
    """Emit all that is below a directory; raise what could not be read of it in the end."""
    pages, problems = Following(), list[WalkProblem]()
    columns = yield from talk.has_columns(export, path)
    ticket = talk.begin(walk_raw(export, path, None, attrs=attrs, columns=columns))
    try:
        while True:
            page = yield from talk.finish(ticket)
            after = pages.take(page.next, is_empty=page.is_empty)
            if after is not None:
                call = walk_raw(export, path, after, attrs=attrs, columns=columns)
                ticket = talk.begin(call, ticket.core)
            problems += page.problems
            yield from _emitted(talk, page.decoded().entries, ticket)
            if after is None:
                break
    finally:
        talk.abandon(ticket)
        ticket.core.held.discard(calls.walk_going_on(pages.after))
    if problems:
        raise problems[0].error


def tree(
    talk: Talk,
    export: str,
    path: RemotePath,
    room: Callable[[], memoryview] | None = None,
    **options: bool,
) -> "Stream[TreeEntry]":
    """Emit all that is below a directory, with the bytes of its small files.

    ``room`` returns the buffer that the next page is received into; by default they are two, in
    turns. For the options see :func:`calls.tree`.
    """
    from vuserd.client.files.tree_page import PAGE_BYTES, RawTreePage

    room = room or cycle([memoryview(bytearray(PAGE_BYTES)) for _ in range(2)]).__next__
    decode = RawTreePage.from_wire
    ticket = talk.begin(calls.tree(export, path, room(), decode, **options))
    pages = Following()
    try:
        while True:
            page = yield from talk.finish(ticket)
            after = pages.take(page.next, is_empty=page.is_empty)
            if after is not None:  # the daemon goes on while these are taken
                call = calls.tree(export, path, room(), decode, after=after, **options)
                ticket = talk.begin(call, ticket.core)
            yield from _emitted(talk, page.decoded().entries, ticket)
            if after is None:
                return
    finally:
        talk.abandon(ticket)
        ticket.core.held.discard(calls.tree_going_on(pages.after))


def trace(talk: Talk, export: str) -> Stream[TraceEvent]:
    """Emit the FUSE requests of an export as they happen, for ever."""
    page = yield from talk.ask(calls.trace(export, wait=0.0))
    while True:
        yield Emit(page.events)
        page = yield from talk.ask(calls.trace(export))


def read(talk: Talk, export: str, path: RemotePath, offset: int, length: int) -> Procedure[bytes]:
    """Return bytes of a file."""
    buffer = bytearray(length)
    count = yield from talk.ask(calls.read_into(export, path, offset, buffer))
    return bytes(memoryview(buffer)[:count])


def attach(
    talk: Talk, memfd: int | None = None, *, size: int | None = None
) -> Procedure[tuple[SharedMemory, int]]:
    """Lend memory to the daemon; return it, and the daemon's name for it."""
    memory = SharedMemory(memfd, size)
    try:
        return memory, (yield from talk.ask(calls.attach(memory.fileno(), memory.size)))
    except BaseException:
        memory.close()
        raise


def download(
    talk: Talk,
    export: str,
    path: RemotePath,
    to: "Destination",
    *,
    progress: Progress | None = None,
    grows: bool = False,
) -> Procedure[Stat]:
    """Write a file, whole, to a local one; return its attributes."""
    from vuserd.client.files.destinations import download
    from vuserd.client.files.wholefile import Options

    return download(talk, export, path, to, Options(progress, grows))


def read_bytes(talk: Talk, export: str, path: RemotePath) -> Procedure[bytes]:
    """Return a file, whole."""
    from vuserd.client.files.sinks import MemorySink
    from vuserd.client.files.wholefile import Options, take

    sink = MemorySink()
    yield from take(talk, export, path, sink, Options(None, grows=True))
    return sink.content()


def read_text(
    talk: Talk, export: str, path: RemotePath, *, encoding: str = "utf-8", errors: str = "strict"
) -> Procedure[str]:
    """Return a file, whole, as text."""
    return (yield from read_bytes(talk, export, path)).decode(encoding, errors)


def stream(
    talk: Talk,
    export: str,
    path: RemotePath,
    write: Callable[[memoryview], object],
    *,
    progress: Progress | None = None,
    grows: bool = True,
) -> Procedure[Stat]:
    """Hand a file's bytes to ``write``, in their order; return its attributes."""
    from vuserd.client.files.sinks import StreamSink
    from vuserd.client.files.wholefile import Options, take

    return take(talk, export, path, StreamSink(write), Options(progress, grows))


def archive(
    talk: Talk,
    export: str,
    path: RemotePath,
    to: int | Callable[[memoryview], object],
    **options: "Unpack[ArchiveOptions]",
) -> "Procedure[Archived]":
    """Write an archive of a tree to a descriptor, or hand it to a function."""
    from vuserd.client.archive.archiving import archive as archived

    return archived(talk, export, path, to, options, partial(tree, talk, export))


def _emitted(talk: Talk, entries: list[T], ticket: Ticket[Any]) -> Stream[T]:
    """Emit a page's entries, and receive now and then what has come of the next page.

    A daemon drops clients that do not read, and the caller may take its time for each entry.
    """
    left = iter(entries)

    def for_a_while() -> Iterator[T]:
        end = talk.now() + _A_WHILE
        for entry in left:
            yield entry
            if talk.now() > end:
                return

    while length_hint(left):
        if ticket.done:
            yield Emit(left)
        else:
            yield Emit(for_a_while())
            # A call that the caller has made meanwhile may have found the connection at its end.
            if not ticket.done:
                yield Wait(ticket, 0.0)
