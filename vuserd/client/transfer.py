"""A whole file in chunks that overlap: which is asked for next, and what makes a file whole.

Neither client's own: they begin the calls that :class:`Transfer` gives out, in that order, and
finish them in the same order.

A large file goes through memory that is lent to the daemon for the time: the backend writes there,
the client takes it from there, and all that the socket carries is what became of it.  Smaller ones,
and those of a daemon that has no room for it, come over the socket.
"""

import os
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias

from vuserd.client.calls import Call, RemotePath, load, read_into
from vuserd.client.errors import RemoteError
from vuserd.client.records import Stat
from vuserd.errors import ErrorCode

#: Called with the number of bytes that are there, and the number there will be.
Progress: TypeAlias = Callable[[int, int], object]

CHUNK_BYTES = 8 << 20
WINDOW = 2  # chunks in flight
ATTEMPTS = 3

#: The same where memory is lent: larger ones cost the daemon fewer calls, and stay in its caches.
LENT_CHUNK_BYTES = 2 << 20
LENT_WINDOW = 4
#: The smallest file that it pays for: lending costs as much as a few reads.
LENT_LEAST = 8 << 20
#: What the daemon says when it cannot take memory, or no more of it.
NOT_LENT: Final = frozenset(
    {"BUSY", "TOO_LARGE", "UNKNOWN_METHOD", "ENOMEM", "ENOSPC", "EMFILE", "ENFILE"}
)

#: How far apart two writes have to be for their timestamps to differ (before Linux 6.13).
TICK_SECONDS = 0.01
TICK_NS = 10_000_000


class FileChanged(Exception):  # noqa: N818 - never leaves the clients
    """A read gave another number of bytes than the file's size promised."""


class Place(Protocol):
    """Where a chunk goes: ``view`` shows it once ``call`` is done."""

    view: memoryview

    def call(self, export: str, path: RemotePath, offset: int, length: int) -> Call[int]:
        """Ask for bytes of a file, at most as many as there is room for."""


class OwnPlace:
    """Memory of the client's own, which the socket's bytes are received into."""

    def __init__(self, size: int) -> None:
        self.view = memoryview(bytearray(size))

    def call(self, export: str, path: RemotePath, offset: int, length: int) -> Call[int]:
        """Ask for bytes over the socket."""
        return read_into(export, path, offset, self.view[:length])


class LentPlace:
    """A part of attached memory, ``address`` bytes from its beginning."""

    def __init__(self, memory: int, address: int, view: memoryview) -> None:
        self.view = view
        self._memory, self._address = memory, address

    def call(self, export: str, path: RemotePath, offset: int, length: int) -> Call[int]:
        """Ask for bytes to be written there."""
        return load(self._memory, self._address, export, path, offset=offset, length=length)


def lent_size(size: int) -> int | None:
    """Give how much memory to lend for a file of ``size`` bytes; None where reads do as well."""
    return LENT_WINDOW * LENT_CHUNK_BYTES if size >= LENT_LEAST else None


def own_places(size: int) -> list[OwnPlace]:
    """Give room for the chunks of a file of ``size`` bytes that are in flight together."""
    room = max(1, min(CHUNK_BYTES, size))
    return [OwnPlace(room) for _ in range(min(WINDOW, -(-size // room) or 1))]


def lent_places(memory: int, view: memoryview) -> list[LentPlace]:
    """Cut attached memory into places for chunks."""
    step = LENT_CHUNK_BYTES
    return [
        LentPlace(memory, address, view[address : address + step])
        for address in range(0, len(view), step)
    ]


class Chunk(NamedTuple):
    """A part of the file on its way: ``call`` puts it in its place."""

    offset: int
    expected: int
    place: Place
    call: Call[int]


class Transfer:
    """One pass over a file of ``size`` bytes, from ``begin`` on, in places that are used again."""

    def __init__(
        self, export: str, path: RemotePath, size: int, places: Sequence[Place], begin: int = 0
    ) -> None:
        self._export, self._path, self._size = export, path, size
        self._free = list(places)
        self._offset = begin
        #: How many bytes are there, from the file's beginning.
        self.there = begin
        self._begun = False

    def next_chunk(self) -> Chunk | None:
        """Give the chunk to ask for next; None when a place is awaited or all is asked for.

        An empty file is asked for one byte: so the daemon has its say on what may be read.
        """
        if not self._free or (self._begun and self._offset >= self._size):
            return None
        self._begun = True
        place, offset = self._free.pop(), self._offset
        expected = min(len(place.view), self._size - offset)
        self._offset += expected
        call = place.call(self._export, self._path, offset, max(1, expected))
        return Chunk(offset, expected, place, call)

    def arrived(self, chunk: Chunk, length: int) -> memoryview:
        """Give a chunk's bytes; raise FileChanged where they are not as many as expected."""
        if length != chunk.expected:
            raise FileChanged
        return chunk.place.view[:length]

    def release(self, chunk: Chunk) -> int:
        """Take a chunk's place back; give the number of bytes that are there, up to its end."""
        self._free.append(chunk.place)
        self.there = chunk.offset + chunk.expected
        return self.there


class Resumption:
    """Where a transfer goes on when its connection was lost, with the memory that was lent on it.

    It goes on as long as it gets further within each ``patience`` seconds; with 0 not at all.
    """

    def __init__(self, patience: float) -> None:
        self.begin = 0
        self._patience = patience
        self._deadline: float | None = None

    def after(self, transfer: Transfer | None, now: float) -> bool:
        """Take note of how far it got; tell whether to go on."""
        further = transfer is not None and transfer.there > self.begin
        if transfer is not None:
            self.begin = transfer.there
        if further or self._deadline is None:
            self._deadline = now + self._patience
        return now < self._deadline


def is_settled(stat: Stat, asked_ns: int, answered_ns: int) -> bool:
    """Tell whether a write after this stat is sure to change the file's timestamps.

    It is not while they are younger than a tick.  Times in the future count as old: a write would
    bring them back to the present.
    """
    return not any(
        asked_ns - TICK_NS < time_ns <= answered_ns for time_ns in (stat.mtime_ns, stat.ctime_ns)
    )


def write_at(fileno: int, payload: memoryview, offset: int) -> None:
    """Write all of ``payload`` at ``offset``."""
    while payload:
        count = os.pwrite(fileno, payload, offset)
        payload, offset = payload[count:], offset + count


def changed() -> RemoteError:
    """Give the error for a file that does not hold still."""
    return RemoteError(ErrorCode.CHANGED, "the file changed while it was read")
