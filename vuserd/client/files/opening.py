"""One version of a file to read from at any offset: a sealed image, or parts that are checked.

What is too large for an image, or for what the daemon has left for them, stays open in the daemon;
each part of it is followed by a look at its attributes, which have to be those it was opened with.
"""

from typing import Final, Protocol

from vuserd.client import calls
from vuserd.client.calls import RemotePath
from vuserd.client.core.conversation import Talk
from vuserd.client.core.procedure import Finish, Pause, Procedure
from vuserd.client.core.ticket import Carrier
from vuserd.client.errors import ClientError, NotTaken, RemoteError
from vuserd.client.files.transfer import CHUNK_BYTES
from vuserd.client.image import Image
from vuserd.client.records import OpenedFile
from vuserd.errors import ErrorCode

#: What the daemon says when it makes no image, or no more of them.
_NO_IMAGE: Final = frozenset(
    {"TOO_LARGE", "BUSY", "UNKNOWN_METHOD", "ENOMEM", "ENOSPC", "EFBIG", "EMFILE", "ENFILE"}
)
#: Seconds for a file to be old enough for its timestamps to tell; some file systems have two.
_SETTLES: Final = 2.5
_PAUSE: Final = 0.02


class Version(Protocol):
    """One version of a file."""

    size: int  #: in bytes

    def read_into(self, buffer: memoryview, offset: int) -> Procedure[int]:
        """Fill a buffer from an offset on; return how many bytes there are, 0 at the end."""

    def close(self) -> None:
        """Let it go."""


def open_version(talk: Talk, export: str, path: RemotePath) -> Procedure["Sealed | Parts"]:
    """Return the version of a file that there is now, for the caller to close.

    Raises:
        RemoteError: CHANGED where it is written to all the time; and what the daemon says.

    """
    try:
        return Sealed((yield from talk.ask(calls.fetch(export, path))))
    except RemoteError as error:
        if error.code not in _NO_IMAGE:
            raise
    parts = Parts(talk, export, path)
    yield from parts.open()
    return parts


class Sealed:
    """A file in memory that nobody can change."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.size = image.size

    def read_into(self, buffer: memoryview, offset: int) -> Procedure[int]:
        """Copy bytes."""
        yield from ()
        with self.image.buffer() as content:
            count = max(0, min(len(buffer), self.size - offset))
            buffer[:count] = content[offset : offset + count]
        return count

    def close(self) -> None:
        """Let it go."""
        self.image.close()


class Parts:
    """A file that is open in the daemon; after a restart, in the daemon's successor."""

    size = 0

    def __init__(self, talk: Talk, export: str, path: RemotePath) -> None:
        self._talk, self._export, self._path = talk, export, path
        self._open: tuple[OpenedFile, Carrier] | None = None

    def open(self) -> Procedure[None]:
        """Open it, once its timestamps would show a change."""
        deadline = self._talk.now() + _SETTLES
        while True:
            opened, core = yield from self._open_anew()
            self._open = opened, core
            self.size = opened.stat.size
            if opened.settled:
                return
            self.close()
            if self._talk.now() > deadline:
                raise self._changed()
            yield Pause(_PAUSE)

    def read_into(self, buffer: memoryview, offset: int) -> Procedure[int]:
        """Read bytes, 8 MiB at most, and check that they are of the version that was opened.

        Raises:
            RemoteError: CHANGED where they are not; and what the daemon says.

        """
        asked = buffer[: min(CHUNK_BYTES, max(0, self.size - offset))]
        while asked and self._open is not None:
            opened, core = self._open
            name = self._export, self._path
            try:
                read = calls.read_into(*name, offset, asked, file=opened.file)
                count = yield from self._talk.ask(read, core)
                now = yield from self._talk.ask(calls.stat_open(*name, opened.file), core)
            except NotTaken:
                if not self._talk.goes_on:
                    raise
                yield from self._open_again(opened)
                continue
            if not count or not now.same_file(opened.stat):
                raise self._changed()
            return count
        return 0

    def close(self) -> None:
        """Close it; the daemon's answer is of no interest."""
        held, self._open = self._open, None
        if held is not None:
            opened, core = held
            self._talk.tell(calls.close_file(opened.file), core)

    def _open_anew(self) -> Procedure[tuple[OpenedFile, Carrier]]:
        ticket = self._talk.begin(calls.open_for_transfer(self._export, self._path))
        try:
            return (yield Finish(ticket)), ticket.core
        except BaseException:
            self._talk.abandon(ticket)
            raise

    def _open_again(self, before: OpenedFile) -> Procedure[None]:
        self._open = yield from self._open_anew()
        if not self._open[0].is_same(before):
            raise self._changed()

    def _changed(self) -> ClientError:
        name = calls.filename_of(self._export, self._path)
        return RemoteError(
            ErrorCode.CHANGED, "the file changed while it was open", None, name, "read"
        )
