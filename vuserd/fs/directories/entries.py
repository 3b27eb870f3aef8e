"""Read open directories: READDIR and READDIRPLUS, in columns, in portions that leave others room.

No other task runs while a portion is decoded, and a backend with one thread serves no other request
while it reads one.
"""

import errno
import functools
import stat
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import trio

from protocol import fuse
from protocol.dirent import DIRENT_SIZE, LONGEST_RECORD
from protocol.dirent_columns import (
    AttributeColumns,
    DirectoryColumns,
    decode_directory_columns,
)
from protocol.fuse import ENTRY_SIZE, FileHandle, NodeId
from vuserd.device.jobs import Ask
from vuserd.device.payloads import given_back
from vuserd.device.request import Undo
from vuserd.device.results import Failed, length_of
from vuserd.device.session import Session
from vuserd.errors import FileError
from vuserd.fs.directories.offsets import no_end
from vuserd.fs.nodes import Hold, Node, NodeTable
from vuserd.fs.operations import NodeOperations
from vuserd.tasks.turns import take_turn

#: The most replies in a row without an entry to show: "." and ".." may have one each.
_MOST_BARREN: Final = 16
#: Bytes of a directory that are read at once, without and with attributes: no other task runs while
#: they are decoded, and a backend with one thread serves no other request while it reads them.
_BATCH_SIZE: Final = 64 << 10
_BATCH_SIZE_PLUS: Final = 32 << 10
#: How many times as much is read while no other client asks.
_ALONE: Final = 4
#: Bytes of an entry whose name is not long, without and with its attributes.
_USUAL: Final = DIRENT_SIZE + 16
_USUAL_PLUS: Final = ENTRY_SIZE + _USUAL
#: Bytes of one with attributes whose name is as long as Linux lets it be.
_LONG_PLUS: Final = ENTRY_SIZE + DIRENT_SIZE + 256
#: The type of a directory: DT_DIR of dirent.h.
_DIRECTORY: Final = stat.S_IFDIR >> 12
#: Bytes of a small directory that is read along with others, and how often it is; and bytes of
#: those that are decoded at once, while other clients ask, and while none does.
_TOGETHER_SIZE: Final = 8 << 10
_TOGETHER: Final = 2
_AT_ONCE: Final = 32 << 10
_AT_ONCE_ALONE: Final = 64 << 10


class Portion(NamedTuple):
    """What was read of a directory: entries, where it goes on, and its directories' nodes."""

    entries: DirectoryColumns
    following: int | None
    below: dict[bytes, Node]


class DirectoryEntries:
    """The entries of open directories, of one session."""

    def __init__(self, session: Session, nodes: NodeTable, operations: NodeOperations) -> None:
        self._session = session
        self._lane = session.lane
        self._nodes = nodes
        self._operations = operations

    async def read_entries(
        self,
        node: Node,
        handle: FileHandle,
        start: int,
        limit: int,
        *,
        attributes: bool,
        below: dict[bytes, Node] | None = None,
    ) -> tuple[DirectoryColumns, int | None]:
        """Return up to ``limit`` entries from offset ``start``, and the next offset.

        The next offset is None at the end of the directory. With ``attributes`` each entry has
        those of its node, and its inode number and type are theirs. The node's lookup count is
        given back already: they are for display only. An entry whose attributes cannot be read has
        node 0. ``below`` gets the nodes of directories that came with attributes, by name: the
        table knows them, and no call uses them.

        Raises:
            FileError: what the backend says, and EIO for a directory whose offsets lead back.

        """
        entries = DirectoryColumns.empty()
        barren = 0
        position: int | None = start
        passed: set[int | None] = {start}
        while position is not None and len(entries.names) < limit:
            wish = _Wish(node, handle, position, limit - len(entries.names), below)
            batch, position = await self._read_batch(wish, plus=attributes)
            count = len(batch.names)
            if attributes:
                batch = await self._with_attributes(node, batch)
            entries.extend(batch)
            barren = 0 if count or position is None else barren + 1
            if position in passed or barren > _MOST_BARREN:
                raise no_end()
            passed.add(position)
        return entries, position

    async def _read_batch(
        self, wish: "_Wish", *, plus: bool
    ) -> tuple[DirectoryColumns, int | None]:
        """Read a batch of entries; return at most its limit of them, and the next offset.

        If one entry cannot be looked up, because it vanishes or its file system refuses, backends
        return its error for the whole READDIRPLUS. READDIR then shows whether the error is one
        entry's or the directory's own.
        """
        try:
            return await self._read_buffer(wish, plus=plus)
        except FileError as error:
            if not plus or await self._operations.is_exhausted(error):
                raise
        entries, following = await self._read_buffer(wish, plus=False)
        return entries.without_nodes(), following

    async def _read_buffer(
        self, wish: "_Wish", *, plus: bool
    ) -> tuple[DirectoryColumns, int | None]:
        await take_turn()
        # Room for as many entries as are wanted, with names of up to 16 bytes, and few more: each
        # further one is read in vain, and with READDIRPLUS costs a descriptor in the backend.
        node, handle, offset, limit, below = wish
        size = max(LONGEST_RECORD, limit * (_USUAL_PLUS if plus else _USUAL))
        most = _BATCH_SIZE_PLUS if plus else _BATCH_SIZE
        if not self._lane.is_shared:
            most *= _ALONE
        size = min(size, self._session.max_read, most)
        request = (fuse.readdirplus if plus else fuse.readdir)(node.id, handle, offset, size)
        decode = functools.partial(decode_directory_columns, plus=plus, after=offset)
        undo = self._undo_read(offset) if plus else None
        with given_back(await self._session.payloads.take(1)) as buffers:
            length = await self._lane.call_into(request, buffers[0], undo)
            body = bytes(buffers[0].view[:length])
        entries, following = self._lane.decoded(decode, body)
        owed = entries.nodes
        if len(entries.names) > limit:
            entries = entries.part(0, limit)
            following = entries.offsets[-1]
        if plus:
            entries = self._settled(node, entries, owed, below)
        return entries, following

    async def read_together(
        self,
        opened: Sequence[tuple[Node, FileHandle, int]],
        take: Callable[[int, Portion], None],
    ) -> list[Exception | None]:
        """Read small directories with attributes, each from its offset on, all at once.

        Each is read twice at most: a small one has entries once, and then ends. ``take`` is given
        each portion, by the place of its directory: few of them before others have their turn. A
        directory gets none that :meth:`read_entries` has to read, because an entry needs a look-up
        of its own, or it does not go on; or for the error that is returned in its place.
        """
        size = min(_TOGETHER_SIZE, self._session.max_read)
        failed: list[Exception | None] = [None] * len(opened)
        going = {place: _Opened(*each, size) for place, each in enumerate(opened)}
        for _ in range(_TOGETHER):
            if going:
                going = await self._read_on(going, take, failed)
        return failed

    async def _read_on(
        self,
        going: dict[int, "_Opened"],
        take: Callable[[int, Portion], None],
        failed: list[Exception | None],
    ) -> dict[int, "_Opened"]:
        """Read a portion of each directory; return those that go on, all by their places."""
        left = deque[tuple[int, bytes]]()
        with given_back(await self._session.payloads.take(len(going))) as buffers:
            asked = [
                Ask(
                    fuse.readdirplus(each.node.id, each.handle, each.offset, each.size),
                    buffer,
                    self._undo_read(each.offset),
                )
                for each, buffer in zip(going.values(), buffers, strict=True)
            ]
            replies = await self._lane.ask_all(asked)
            for place, buffer, reply in zip(going, buffers, replies, strict=True):
                if isinstance(reply, Failed):
                    failed[place] = reply.error
                else:
                    left.append((place, bytes(buffer.view[: length_of(reply)])))
        size = 0
        further: dict[int, _Opened] = {}
        try:
            while left:
                place, body = left[0]
                size += len(body)
                if size > (_AT_ONCE if self._lane.is_shared else _AT_ONCE_ALONE):
                    size = len(body)
                    await trio.lowlevel.checkpoint()
                    await take_turn()
                left.popleft()
                each = going[place]
                portion = self._portion(each.node, each.offset, body)
                if portion is None:
                    continue
                take(place, portion)
                if portion.following is not None:
                    further[place] = each.behind(portion.following, len(body))
        except BaseException:
            for place, body in left:  # they are read again, and their lookups are owed
                self._lane.decoded(self._undo_read(going[place].offset), body)
            raise
        return further

    def _portion(self, node: Node, offset: int, body: bytes) -> Portion | None:
        decode = functools.partial(decode_directory_columns, plus=True, after=offset)
        entries, following = self._lane.decoded(decode, body)
        if 0 in entries.nodes or following == offset:
            self._nodes.forget_each(entries.nodes)
            return None
        below: dict[bytes, Node] = {}
        return Portion(self._settled(node, entries, entries.nodes, below), following, below)

    def _undo_read(self, offset: int) -> Undo:
        def undo(body: bytes) -> None:
            entries, _ = decode_directory_columns(body, plus=True, after=offset)
            self._nodes.forget_each(entries.nodes)

        return undo

    def _settled(
        self,
        node: Node,
        entries: DirectoryColumns,
        owed: list[NodeId],
        below: dict[bytes, Node] | None,
    ) -> DirectoryColumns:
        """Return entries of READDIRPLUS, whose nodes ``owed`` is, once those are given back."""
        entries = _as_looked_up(entries)
        if below is not None and _DIRECTORY in entries.types:
            owed = self._keep_directories(node, entries, owed, below)
        self._nodes.forget_each(owed)
        return entries

    def _keep_directories(
        self,
        node: Node,
        entries: DirectoryColumns,
        owed: list[NodeId],
        below: dict[bytes, Node],
    ) -> list[NodeId]:
        """Have the table take over the counts of directories; return the nodes of all others."""
        owed = [*owed]
        for place, kind in enumerate(entries.types):
            found = owed[place]
            if kind == _DIRECTORY and found not in (0, fuse.ROOT_ID, node.id):
                name = entries.names[place]
                entry = fuse.Entry(found, entries.node_attributes(place))
                with Hold(self._nodes) as hold:
                    below[name] = hold.add(entry, node, name)
                owed[place] = NodeId(0)
        return owed

    async def _with_attributes(self, node: Node, entries: DirectoryColumns) -> DirectoryColumns:
        """Look up entries that came without a node, and drop those that are gone by now.

        An entry that cannot be looked up for another reason stays as it is.
        """
        if 0 not in entries.nodes:
            return entries
        is_there = [True] * len(entries.names)
        for place, name in enumerate(entries.names):
            if entries.nodes[place]:
                continue
            with Hold(self._nodes) as hold:
                try:
                    found = await self._operations.look_up(node, name, hold)
                except FileError as error:
                    if await self._operations.is_exhausted(error):
                        raise
                    is_there[place] = error.number != errno.ENOENT
                    continue
                entries.nodes[place] = found.id
                entries.attributes[place] = fuse.encode_attributes(found.attributes)
        return _as_looked_up(entries.chosen(is_there))


class _Opened(NamedTuple):
    """An open directory that is read along with others: from where, and how many bytes at most."""

    node: Node
    handle: FileHandle
    offset: int
    size: int

    def behind(self, following: int, length: int) -> "_Opened":
        """Return where it goes on after so many bytes.

        Where there was room for another entry, it most likely ends, and less is asked for: how much
        that is decides how many of its kind the backend has at once.
        """
        ends = length + _LONG_PLUS <= self.size
        return self._replace(offset=following, size=LONGEST_RECORD if ends else self.size)


class _Wish(NamedTuple):
    """A batch of entries to be read: of which directory, from where, how many of them."""

    node: Node
    handle: FileHandle
    offset: int
    limit: int
    below: dict[bytes, Node] | None


def _as_looked_up(entries: DirectoryColumns) -> DirectoryColumns:
    """Return entries with the types and inode numbers of their nodes, where they have one."""
    attributes = AttributeColumns(entries.attributes)
    inos = attributes.column("ino")
    types = [mode >> 12 & 15 for mode in attributes.column("mode")]
    if 0 in entries.nodes:
        for place, node in enumerate(entries.nodes):
            if not node:
                inos[place], types[place] = entries.inos[place], entries.types[place]
    return entries._replace(inos=inos, types=types)
