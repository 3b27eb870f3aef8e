"""A file that the daemon has open for this client: parts of one version of it."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from vuserd.client import calls
from vuserd.client.errors import ClientError, RemoteError
from vuserd.client.records import OpenedFile
from vuserd.client.sync_client import Client
from vuserd.ctl.target import Target
from vuserd.errors import ErrorCode

PIECE: Final = 256 << 10  # bytes that are read at once


@contextmanager
def opened(client: Client, target: Target) -> Iterator["Opened"]:
    """Open a file for the block's time; at its end, make sure that all parts were of one version.

    Raises:
        RemoteError: CHANGED if they were not; a file that only grew has the beginning that it had.

    """
    found = client.call(calls.open_file(*target))
    try:
        file = Opened(client, target, found)
        yield file
        file.require_one_version()
    finally:
        with suppress(ClientError):
            client.call(calls.close_file(found.file))


class Opened:
    """The file; ``size`` is what it had when it was opened, in bytes."""

    def __init__(self, client: Client, target: Target, found: OpenedFile) -> None:
        self._client = client
        self._target = target
        self._found = found
        #: Offset, length and sum of what was read.
        self._sums: list[tuple[int, int, int]] = []
        self.size = found.stat.size
        self.ino = found.stat.ino

    def read(self, offset: int, length: int = PIECE) -> bytes:
        """Return bytes of the file, fewer only at its end."""
        piece = self._read(offset, length)
        self._sums.append((offset, len(piece), zlib.crc32(piece)))
        return piece

    def pieces(self, begin: int, end: int) -> Iterator[bytes]:
        """Return the bytes from ``begin`` to ``end``, piece by piece."""
        while begin < end and (piece := self.read(begin, min(PIECE, end - begin))):
            yield piece
            begin += len(piece)

    def _read(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        call = calls.read_into(*self._target, offset, buffer, file=self._found.file)
        count = self._client.call(call)
        return bytes(memoryview(buffer)[:count])

    def require_one_version(self) -> None:
        """Raise RemoteError CHANGED unless all that was read stands there together."""
        before = self._found.stat
        now = self._client.call(calls.stat_open(*self._target, self._found.file))
        if now.same_file(before) and self._found.settled:
            return
        # It grew, or its timestamps are too coarse to tell: what was read has to be there still.
        is_whole = now.ino == before.ino and now.size >= before.size
        if not is_whole or any(
            zlib.crc32(self._read(offset, length)) != crc for offset, length, crc in self._sums
        ):
            raise RemoteError(ErrorCode.CHANGED, "the file changed while it was read")
