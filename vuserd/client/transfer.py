"""A whole file in reads that overlap: which chunk is asked for next, and what makes a file whole.

Neither client's own: they begin the calls that :class:`Transfer` gives out, in that order, and
finish them in the same order.
"""

import os
from typing import NamedTuple

from vuserd.client.calls import Call, RemotePath, read_into
from vuserd.client.errors import RemoteError
from vuserd.client.image import Progress as Progress
from vuserd.client.records import Stat
from vuserd.errors import ErrorCode

CHUNK_BYTES = 1 << 20
WINDOW = 8  # chunks in flight
ATTEMPTS = 3

#: How far apart two writes have to be for their timestamps to differ (before Linux 6.13).
TICK_SECONDS = 0.01
TICK_NS = 10_000_000


class FileChanged(Exception):  # noqa: N818 - never leaves the clients
    """A read gave another number of bytes than the file's size promised."""


class Chunk(NamedTuple):
    """A part of the file on its way: ``call`` reads it into ``buffer``."""

    offset: int
    expected: int
    buffer: bytearray
    call: Call[int]


class Transfer:
    """One pass over a file of ``size`` bytes, with ``WINDOW`` buffers that are used again."""

    def __init__(self, export: str, path: RemotePath, size: int) -> None:
        self._export, self._path, self._size = export, path, size
        buffer_size = max(1, min(CHUNK_BYTES, size))
        count = min(WINDOW, -(-size // buffer_size) or 1)
        self._free = [bytearray(buffer_size) for _ in range(count)]
        self._offset = 0
        self._begun = False

    def next_chunk(self) -> Chunk | None:
        """Give the chunk to ask for next; None when a buffer is awaited or all is asked for.

        An empty file is asked for one byte: so the daemon has its say on what may be read.
        """
        if not self._free or (self._begun and self._offset >= self._size):
            return None
        self._begun = True
        buffer, offset = self._free.pop(), self._offset
        expected = min(len(buffer), self._size - offset)
        self._offset += expected
        view = memoryview(buffer)[: max(1, expected)]
        return Chunk(offset, expected, buffer, read_into(self._export, self._path, offset, view))

    def arrived(self, chunk: Chunk, length: int) -> memoryview:
        """Give a chunk's bytes; raise FileChanged where they are not as many as expected."""
        if length != chunk.expected:
            raise FileChanged
        return memoryview(chunk.buffer)[:length]

    def release(self, chunk: Chunk) -> int:
        """Take a chunk's buffer back; give the number of bytes that are there, up to its end."""
        self._free.append(chunk.buffer)
        return chunk.offset + chunk.expected


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
