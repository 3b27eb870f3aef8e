"""A whole file, one version of it, as a procedure of all clients.

The file is opened in the daemon, so that all its chunks are of one file whatever becomes of its
name; at the end its attributes tell whether it is what was opened.  Where they cannot, because its
timestamps are coarse or because it grew, it is read once more and compared with what was read.
"""

import time
import zlib
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple, TypeAlias, TypeVar

from vuserd.client import calls
from vuserd.client.calls import RemotePath
from vuserd.client.core.conversation import Talk
from vuserd.client.core.procedure import Finish, Pause, Procedure, Progress, Write
from vuserd.client.core.ticket import Carrier, Ticket
from vuserd.client.errors import BadReply, ClientError, ConnectionLost, NotTaken, RemoteError
from vuserd.client.files.loan import OpenFile, lend
from vuserd.client.files.sinks import Sink, is_sparse
from vuserd.client.files.transfer import (
    Chunk,
    Place,
    Resumption,
    Source,
    Transfer,
    own_places,
)
from vuserd.client.records import OpenedFile, Stat
from vuserd.errors import ErrorCode

T = TypeVar("T")

_Parts: TypeAlias = list[tuple[int, int]]

ATTEMPTS = 3
#: Seconds before it is read once more: a write that is under way ends in them, unless its writer is
#: slower than that. Both readings would find the same half of it.
_PAUSE: Final = 0.05
#: Bytes that are asked for at once of a file whose size is untrue: for more than most such have, as
#: some give all that they have to one read, and nothing to a second.
_REST_BYTES: Final = 1 << 20

#: Bytes of a file that is cheap to sum, and nanoseconds since a large one changed that may grow on.
_SMALL: Final = 32 << 20
_LIVELY_NS: Final = 60_000_000_000


class FileChanged(Exception):  # noqa: N818 - never leaves the clients
    """The file is not what was opened any more."""


class _OfCaller(Exception):  # noqa: N818 - never leaves this module
    """What a function of the caller raised, as if it were of a call that is made here."""

    def __init__(self, error: ClientError) -> None:
        self.error = error


class Options(NamedTuple):
    """How a file is taken."""

    progress: Progress | None
    #: Whether of a file that only grew what stood there when it was opened will do.
    grows: bool


class _Sum(NamedTuple):
    """What a chunk held."""

    offset: int
    length: int
    crc: int


def take(
    talk: Talk, export: str, path: RemotePath, sink: Sink, options: Options
) -> Procedure[Stat]:
    """Take a file, whole; return its attributes, with the number of bytes that were taken as size.

    Raises:
        RemoteError: CHANGED when it changed in each of ``ATTEMPTS`` attempts, of which a stream has
            as many as have brought nothing yet; and what the daemon says.

    """
    try:
        return (yield from _take(talk, export, path, sink, options))
    except _OfCaller as passed:
        error = passed.error
    try:
        raise error
    finally:
        del error  # which its traceback refers to


def _take(
    talk: Talk, export: str, path: RemotePath, sink: Sink, options: Options
) -> Procedure[Stat]:
    for _ in range(ATTEMPTS):
        attempt = _Attempt(talk, export, path, sink, options)
        try:
            return (yield from attempt.run())
        except FileChanged:
            if attempt.there and not sink.is_file:
                break
    name = calls.filename_of(export, path)
    raise RemoteError(ErrorCode.CHANGED, "the file changed while it was read", None, name, "read")


class _Attempt:
    """One version of a file, over as many connections as it takes."""

    def __init__(
        self,
        talk: Talk,
        export: str,
        path: RemotePath,
        sink: Sink,
        options: Options,
    ) -> None:
        self._talk = talk
        self._export, self._path = export, path
        self._sink = sink
        self._options = options
        self._opened: OpenedFile | None = None
        #: Where it has data; all of it, where holes are not told.
        self._parts: _Parts = []
        self._sums: list[_Sum] | None = None
        #: Bytes from the beginning that the sink has.
        self.there = 0
        #: How much it had when a daemon was last killed; None while none was.
        self._killed_at: int | None = None
        #: What progress was told last.
        self._told: tuple[int, int] | None = None

    def run(self) -> Procedure[Stat]:
        talk = self._talk
        resumption = Resumption(talk.patience)
        while True:
            try:
                opened, core = yield from self._open()
                file = OpenFile(Source(self._export, self._path, opened.file), talk, core)
                try:
                    return (yield from self._take(file, opened))
                except RemoteError as error:
                    if error.code != ErrorCode.CHANGED:
                        raise
                    raise FileChanged from None  # the daemon had to open it anew, in vain
                finally:
                    yield from talk.clean_up(calls.close_file(opened.file), core)
            except ConnectionLost as lost:
                # What a killed daemon may have taken had no effect either. Yet if that killed it,
                # the next one need not die of it more than once.
                if not isinstance(lost, NotTaken):
                    if self._killed_at == self.there:
                        raise
                    self._killed_at = self.there
                if not (talk.goes_on and resumption.after(self.there, talk.now())):
                    raise

    def _open(self) -> Procedure[tuple[OpenedFile, Carrier]]:
        """Open it; return what it is, and the connection that it is open on."""
        ticket = self._talk.begin(calls.open_for_transfer(self._export, self._path))
        try:
            return (yield Finish(ticket)), ticket.core
        except BaseException:
            self._talk.abandon(ticket)
            raise

    def _take(self, file: OpenFile, opened: OpenedFile) -> Procedure[Stat]:
        is_same = True
        if self._opened is None:
            yield from self._begin(file, opened)
        else:
            is_same = opened.is_same(self._opened)
            if not is_same and not self._may_have_grown(opened.stat):
                raise FileChanged
        first = self._opened or opened
        size = yield from self._take_chunks(file, first.stat.size)
        self._sink.end(size)
        self._tell(size, size)  # a hole at its end, too
        after = yield from file.ask(calls.stat_open(*file.source))
        if after.same_file(first.stat):
            if not (first.settled and is_same):
                yield from self._compare(file)
            return after._replace(size=size)
        return (yield from self._take_growth(file, size, after))

    def _take_growth(self, file: OpenFile, size: int, after: Stat) -> Procedure[Stat]:
        """Take what a file that may have grown had when it was looked at; read on for that.

        Attributes do not tell an append from a longer version that was written in its place. But
        where what was read before that look is read again after it, and after what is behind it,
        all of it stood there when it was looked at. An empty beginning tells nothing of that.
        """
        while True:
            if not self._may_have_grown(after):
                raise FileChanged
            is_told, size = size > 0, (yield from self._read_on(file, size, after.size))
            self._sink.end(size)
            yield from self._compare(file)
            if is_told or not size:
                return after._replace(size=size)
            later = yield from file.ask(calls.stat_open(*file.source))
            if later.same_file(after):
                return after._replace(size=size)
            after = later

    def _read_on(self, file: OpenFile, begin: int, end: int) -> Procedure[int]:
        """Take the bytes from ``begin`` to ``end``; return that.

        Raises:
            FileChanged: there are fewer.

        """
        [place] = own_places(_REST_BYTES)[:1]
        while begin < end:
            length = min(len(place.view), end - begin)
            got = yield from file.ask(place.call(file.source, begin, length))
            if not got:
                raise FileChanged
            yield from self._put(place.view[:got], begin)
            begin += got
            self._tell(begin, end)
        return begin

    def _may_have_grown(self, now: Stat) -> bool:
        """Return whether it may still begin as it was when it was opened first: sums tell."""
        assert self._opened is not None
        then = self._opened.stat
        return (
            self._sums is not None
            and self._options.grows
            and now.ino == then.ino
            and now.size >= then.size
        )

    def _begin(self, file: OpenFile, opened: OpenedFile) -> Procedure[None]:
        self._opened = opened
        attributes = opened.stat
        if not opened.settled or (self._options.grows and _may_grow(attributes)):
            self._sums = []
        self._parts = [(0, attributes.size)] if attributes.size else []
        has_holes_told = False
        if self._sink.is_file and is_sparse(attributes) and self._sums is None:
            self._parts = yield from _extents(file, attributes.size)
            has_holes_told = self._parts != [(0, attributes.size)]
        self._sink.begin(attributes, has_holes_told=has_holes_told)

    def _take_chunks(self, file: OpenFile, size: int) -> Procedure[int]:
        """Take what is missing; return how many bytes the file has."""
        missing = self._missing()
        loan = yield from lend(file, sum(length for _, length in missing))
        try:
            places: Sequence[Place] = own_places(size) if loan is None else loan.places
            transfer = Transfer(file.source, size, missing, places)
            yield from self._run(file, transfer, size)
            if transfer.ended_at is None and not transfer.is_longer:
                return size
            return (yield from self._take_rest(file, transfer, size))
        finally:
            if loan is not None:
                yield from loan.end(file)

    def _missing(self) -> _Parts:
        """Return the parts that have data behind what is there."""
        cut = ((max(begin, self.there), begin + length) for begin, length in self._parts)
        return [(begin, end - begin) for begin, end in cut if begin < end]

    def _run(self, file: OpenFile, transfer: Transfer, size: int) -> Procedure[None]:
        in_flight: deque[tuple[Chunk, Ticket[int]]] = deque()
        try:
            while True:
                while (chunk := transfer.next_chunk()) is not None:
                    in_flight.append((chunk, self._talk.begin(chunk.call, file.core)))
                if not in_flight:
                    return
                chunk, ticket = in_flight[0]
                length = yield Finish(ticket)
                if not self._sink.is_file:  # the daemon drops a client that takes nothing
                    for _, other in in_flight:
                        yield Finish(other)
                in_flight.popleft()  # whatever ended this before has it abandoned
                payload = transfer.arrived(chunk, length)
                yield from self._put(payload, chunk.offset)
                del payload  # which keeps the memory that it is in
                transfer.release(chunk)
                self._tell(self.there, size)
        finally:
            for _, ticket in in_flight:
                self._talk.abandon(ticket)

    def _take_rest(self, file: OpenFile, transfer: Transfer, size: int) -> Procedure[int]:
        """Read on to the end of a file whose size is untrue; not of one that changed."""
        assert self._opened is not None
        now = yield from file.ask(calls.stat_open(*file.source))
        then = self._opened.stat
        if not now.same_file(then):
            if not (self._options.grows and transfer.is_longer):
                raise FileChanged
            if now.size > then.size:
                return size  # what was there when it was opened
            if (now.ino, now.size) != (then.ino, then.size):
                raise FileChanged
            # Its size is untrue, and times tell nothing: procfs makes them up at each look.
        # Of what is behind its size some may be there already, from another connection.
        end = max(size if transfer.ended_at is None else transfer.ended_at, self.there)
        [place] = own_places(_REST_BYTES)[:1]
        while got := (yield from file.ask(place.call(file.source, end, len(place.view)))):
            yield from self._put(place.view[:got], end)
            end += got
            self._tell(end, max(end, size))
        return end

    def _put(self, payload: memoryview, offset: int) -> Procedure[None]:
        length = len(payload)
        if length and self._sums is not None:
            self._sums.append(_Sum(offset, length, zlib.crc32(payload)))
        if length:
            try:
                yield Write(self._sink, payload, offset)
            except BaseException as error:
                with suppress(BufferError):
                    payload.release()  # its traceback may keep it, and so what is lent, for long
                if isinstance(error, ClientError):
                    raise _OfCaller(error) from None
                raise
            self.there = offset + length

    def _tell(self, there: int, total: int) -> None:
        if self._options.progress is not None and self._told != (there, total):
            self._told = there, total
            try:
                self._options.progress(there, total)
            except ClientError as error:
                raise _OfCaller(error) from None

    def _compare(self, file: OpenFile) -> Procedure[None]:
        """Read all of it once more.

        Raises:
            FileChanged: it is not what was read before.

        """
        assert self._sums is not None
        longest = max((each.length for each in self._sums), default=0)
        if not longest:
            return
        yield Pause(_PAUSE)
        [place] = own_places(longest - 1)[:1]
        for each in self._sums:
            got = yield from file.ask(place.call(file.source, each.offset, each.length))
            if got != each.length or zlib.crc32(place.view[:got]) != each.crc:
                raise FileChanged


def _may_grow(attributes: Stat) -> bool:
    """Return whether to sum what is read of a file: not of a large one that has long been as it is.

    The sums of a large file would take a third of the time that it takes.
    """
    age = time.time_ns() - max(attributes.mtime_ns, attributes.ctime_ns)
    return attributes.size <= _SMALL or age < _LIVELY_NS


def _extents(file: OpenFile, size: int) -> Procedure[_Parts]:
    """Ask where a file of ``size`` bytes has data."""
    parts: _Parts = []
    position: int | None = 0
    while position is not None:
        page = yield from file.ask(calls.extents(*file.source, offset=position))
        if page.extents and page.extents[0][0] < position:
            raise BadReply("the daemon sent extents that were not asked for")
        if page.extents and sum(page.extents[-1]) > size:
            raise BadReply("the daemon sent extents beyond the end of their file")
        if page.next is not None and not (page.extents and page.next > position):
            raise BadReply("the daemon sent extents that lead nowhere")
        parts += page.extents
        position = page.next
    return parts
