"""An open directory, of which the backend may be asked for more than what is wanted at once."""

import contextlib
import math
from typing import Final, NamedTuple

from memory.arena import Buffer
from protocol import fuse
from protocol.dirent import DIRENT_SIZE, LONGEST_RECORD
from protocol.dirent_columns import decode_directory_columns
from protocol.fuse import ENTRY_SIZE, FileHandle
from vuserd.device.lane.lane import Begun
from vuserd.device.payloads import given_back
from vuserd.device.request import Undo
from vuserd.device.results import length_of
from vuserd.device.session import Session
from vuserd.errors import BackendError
from vuserd.fs.nodes import Node, NodeTable
from vuserd.tasks.turns import is_alone

#: Bytes of a directory that are read at once, without and with attributes: no other task runs while
#: they are decoded, and a backend with one thread serves no other request while it reads them.
_BATCH_SIZE: Final = 64 << 10
_BATCH_SIZE_PLUS: Final = 32 << 10
#: How many times as much is read while no other client asks.
_ALONE: Final = 4
#: Bytes of an entry whose name is not long, without and with its attributes.
_USUAL: Final = DIRENT_SIZE + 16
_USUAL_PLUS: Final = ENTRY_SIZE + _USUAL


class _Asked(NamedTuple):
    """A reply that the backend was asked for, and the buffer that it comes in."""

    offset: int
    plus: bool
    begun: Begun
    buffer: Buffer

    def give_up(self) -> None:
        """Give up the reply, and its buffer."""
        # What came may show only now that the backend broke the protocol: the session knows, and is
        # lost. Whoever ends a listing is not to blame, and may have others to end.
        with contextlib.suppress(BackendError):
            self.begun.give_up()
        self.buffer.give_back()


class OpenDirectory:
    """A directory that is open in the backend, and at most one reply that was asked for ahead."""

    def __init__(self, session: Session, nodes: NodeTable, node: Node, handle: FileHandle) -> None:
        self.node = node
        self._session = session
        self._lane = session.lane
        self._nodes = nodes
        self._handle = handle
        self._ahead: _Asked | None = None
        #: Bytes of a record, on average, without and with attributes.
        self._record = {False: float(_USUAL), True: float(_USUAL_PLUS)}

    async def read(self, offset: int, limit: int, *, plus: bool) -> bytes:
        """Return a reply to READDIR or READDIRPLUS from an offset on, of about ``limit`` entries.

        Raises:
            FileError: what the backend says.

        """
        asked, self._ahead = self._ahead, None
        if asked is not None and (asked.offset != offset or asked.plus != plus):
            asked.give_up()
            asked = None
        if asked is None:
            [buffer] = await self._session.payloads.take(1)
            asked = self._ask(offset, limit, buffer, plus=plus)
        with given_back([asked.buffer]):
            [result] = await asked.begun.results()
            return bytes(asked.buffer.view[: length_of(result)])

    def read_ahead(self, offset: int, limit: int, *, plus: bool) -> None:
        """Ask for what :meth:`read` is going to want, if no other client wants anything."""
        if self._ahead is not None and self._ahead.offset == offset:
            return
        self.drop_ahead()
        if self._lane.is_shared or not is_alone():
            return
        buffer = self._session.payloads.try_take()
        if buffer is not None:
            self._ahead = self._ask(offset, limit, buffer, plus=plus)

    def count_in(self, body: bytes, *, plus: bool) -> int:
        """Return about how many entries are in a reply; one at least, unless it is empty."""
        return math.ceil(len(body) / self._record[plus])

    def counted(self, body: bytes, count: int, *, plus: bool) -> None:
        """Record how many were in a reply: the next ones are of about the same size."""
        if count:
            self._record[plus] = len(body) / count

    def drop_ahead(self) -> None:
        """Give up what was asked for ahead."""
        asked, self._ahead = self._ahead, None
        if asked is not None:
            asked.give_up()

    def close(self) -> None:
        """Close the directory."""
        self.drop_ahead()
        self._lane.post(fuse.releasedir(self.node.id, self._handle))

    def _ask(self, offset: int, limit: int, buffer: Buffer, *, plus: bool) -> _Asked:
        # Room for about as many entries as are wanted: each further one is read in vain, and with
        # READDIRPLUS costs a descriptor in the backend.
        size = max(LONGEST_RECORD, math.ceil(limit * self._record[plus]))
        most = _BATCH_SIZE_PLUS if plus else _BATCH_SIZE
        if not self._lane.is_shared:
            most *= _ALONE
        size = min(size, self._session.max_read, most)
        request = (fuse.readdirplus if plus else fuse.readdir)(
            self.node.id, self._handle, offset, size
        )
        try:
            begun = self._lane.begin([(request, buffer, self._undo_read(offset) if plus else None)])
        except BaseException:
            buffer.give_back()
            raise
        return _Asked(offset, plus, begun, buffer)

    def _undo_read(self, offset: int) -> Undo:
        def undo(body: bytes) -> None:
            entries, _ = decode_directory_columns(body, plus=True, after=offset)
            self._nodes.forget_each(entries.nodes)
            self._nodes.flush()

        return undo
