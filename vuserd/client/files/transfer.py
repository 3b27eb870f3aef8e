"""A whole file in chunks that overlap: which is asked for next, and what came of it.

A large file goes through memory that is lent to the daemon for the time: the backend writes there,
the client takes it from there, and all that the socket carries is what became of it.  Smaller ones,
and those of a daemon that has no room for it, come over the socket.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from vuserd.client.calls import Call, RemotePath, load, read_into

CHUNK_BYTES = 8 << 20
WINDOW = 2  # chunks in flight

#: The same where memory is lent: chunks that cost the daemon few calls, and stay in the caches.
LENT_CHUNK_BYTES = 4 << 20
LENT_WINDOW = 4
#: The smallest file that it pays for: lending costs as much as a few reads.
LENT_LEAST = 8 << 20
#: What the daemon says when it cannot take memory, or no more of it; BAD_REQUEST if no descriptor
#: came with the request, as over a socket that ssh forwards.
NOT_LENT: Final = frozenset(
    {"BAD_REQUEST", "BUSY", "TOO_LARGE", "UNKNOWN_METHOD", "ENOMEM", "ENOSPC", "EMFILE", "ENFILE"}
)


class Source(NamedTuple):
    """An open file of the daemon's, to read from."""

    export: str
    path: RemotePath
    file: int


class Place(Protocol):
    """Where a chunk goes: ``view`` shows it once ``call`` is done."""

    view: memoryview

    def call(self, source: Source, offset: int, length: int) -> Call[int]:
        """Ask for bytes of a file, at most as many as there is room for."""


class OwnPlace:
    """Memory of the client's own, which the socket's bytes are received into."""

    def __init__(self, size: int) -> None:
        self.view = memoryview(bytearray(size))

    def call(self, source: Source, offset: int, length: int) -> Call[int]:
        """Ask for bytes over the socket."""
        export, path, file = source
        return read_into(export, path, offset, self.view[:length], file=file)


class LentPlace:
    """A part of attached memory, ``address`` bytes from its beginning."""

    def __init__(self, memory: int, address: int, view: memoryview) -> None:
        self.view = view
        self._memory, self._address = memory, address

    def call(self, source: Source, offset: int, length: int) -> Call[int]:
        """Ask for bytes to be written there."""
        export, path, file = source
        return load(
            self._memory, self._address, export, path, offset=offset, length=length, file=file
        )


def lent_size(size: int) -> int | None:
    """Return how much memory to lend for a file of ``size`` bytes; None where reads do as well."""
    return LENT_WINDOW * LENT_CHUNK_BYTES if size >= LENT_LEAST else None


def own_places(size: int) -> list[OwnPlace]:
    """Return room for the chunks of a file of ``size`` bytes that are in flight together."""
    room = min(CHUNK_BYTES, size + 1)
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
    expected: int  #: bytes; ``call`` asks for one more where the file should end
    place: Place
    call: Call[int]


class Transfer:
    """One pass over the parts of a file that have data, in places that are used again.

    Args:
        source: the file.
        size: its bytes, by its attributes.
        parts: where it has data, as pairs of offset and length, in order.
        places: room for the chunks in flight.

    """

    def __init__(
        self,
        source: Source,
        size: int,
        parts: Sequence[tuple[int, int]],
        places: Sequence[Place],
    ) -> None:
        self._source, self._size = source, size
        self._free = list(places)
        self._room = len(places[0].view)
        self._chunks = self._cut(parts)
        #: Where the file ended before its size, once a chunk showed that.
        self.ended_at: int | None = None
        #: Whether a chunk showed that there is more than its size.
        self.is_longer = False

    def _cut(self, parts: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
        """Return offset, bytes that are expected, and bytes to ask for, of each chunk in turn."""
        for begin, length in parts:
            for offset in range(begin, begin + length, self._room):
                expected = min(self._room, begin + length - offset)
                more = offset + expected == self._size and expected < self._room
                yield offset, expected, expected + more
                if more:
                    return
        # Nothing of it shows yet that the file ends there. For an empty one this is all: so the
        # daemon has its say on what may be read.
        yield self._size, 0, 1

    def next_chunk(self) -> Chunk | None:
        """Return the chunk to ask for next; None when a place is awaited or all is asked for."""
        if not self._free or self.ended_at is not None:
            return None
        cut = next(self._chunks, None)
        if cut is None:
            return None
        offset, expected, asked = cut
        place = self._free.pop()
        return Chunk(offset, expected, place, place.call(self._source, offset, asked))

    def arrived(self, chunk: Chunk, length: int) -> memoryview:
        """Return a chunk's bytes: those that the file's size has room for, and nothing after it."""
        if self.ended_at is not None:
            return chunk.place.view[:0]
        if length < chunk.expected:
            self.ended_at = chunk.offset + length
        elif length > chunk.expected:
            self.is_longer = True
        return chunk.place.view[: min(length, chunk.expected)]

    def release(self, chunk: Chunk) -> None:
        """Take a chunk's place back."""
        self._free.append(chunk.place)


class Resumption:
    """Whether a transfer goes on when its connection was lost, with the memory that was lent on it.

    It goes on as long as it gets further within each ``patience`` seconds; with 0 not at all.
    """

    def __init__(self, patience: float) -> None:
        self._there = 0
        self._patience = patience
        self._deadline: float | None = None

    def after(self, there: int, now: float) -> bool:
        """Record how far it got; return whether to go on."""
        if there > self._there or self._deadline is None:
            self._deadline = now + self._patience
        self._there = there
        return now < self._deadline
