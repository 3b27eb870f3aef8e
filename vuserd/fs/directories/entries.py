"""Read open directories: READDIR and READDIRPLUS, in columns, in portions that leave others room.

No other task runs while a portion is decoded, and a backend with one thread serves no other request
while it reads one.
"""

import errno
import functools
import stat
from typing import Final, NamedTuple

from protocol import fuse
from protocol.dirent import DIRENT_SIZE, LONGEST_RECORD
from protocol.dirent_columns import (
    AttributeColumns,
    DirectoryColumns,
    decode_directory_columns,
)
from protocol.fuse import ENTRY_SIZE, FileHandle, NodeId
from vuserd.device.payloads import given_back
from vuserd.device.request import Undo
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
LONG_PLUS: Final = ENTRY_SIZE + DIRENT_SIZE + 256
#: The type of a directory: DT_DIR of dirent.h.
_DIRECTORY: Final = stat.S_IFDIR >> 12


class Below(NamedTuple):
    """Takes nodes of directories that came with attributes, by their names: so many at most.

    They are borrowed, and whoever has this gives them back.
    """

    nodes: dict[bytes, Node]
    most: int


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
        below: "Below | None" = None,
    ) -> tuple[DirectoryColumns, int | None]:
        """Return up to ``limit`` entries from offset ``start``, and the next offset.

        The next offset is None at the end of the directory. With ``attributes`` each entry has
        those of its node, and its inode number and type are theirs. The node's lookup count is
        given back already: they are for display only. An entry whose attributes cannot be read has
        node 0.

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

    def decoded(
        self, node: Node, offset: int, body: bytes, below: "Below"
    ) -> tuple[DirectoryColumns, int] | None:
        """Return the entries of a reply to READDIRPLUS that is not empty, and the next offset.

        Args:
            node: the directory.
            offset: where the reply begins.
            body: its bytes.
            below: gets nodes of directories.

        Returns:
            None if :meth:`read_entries` has to read it, because an entry needs a look-up of its
            own, or it does not go on; its lookup counts are given back all the same.

        Raises:
            BackendBroken: no backend may write that.

        """
        decode = functools.partial(decode_directory_columns, plus=True, after=offset)
        entries, following = self._lane.decoded(decode, body)
        if 0 in entries.nodes or following is None or following == offset:
            self._nodes.forget_each(entries.nodes)
            return None
        return self._settled(node, entries, entries.nodes, below), following

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
        below: "Below | None",
    ) -> DirectoryColumns:
        """Return entries of READDIRPLUS, whose nodes ``owed`` is, once those are given back."""
        entries = as_looked_up(entries)
        if below is not None:
            owed = self.borrow_directories(node, entries, owed, below)
        self._nodes.forget_each(owed)
        return entries

    def borrow_directories(
        self,
        node: Node,
        entries: DirectoryColumns,
        owed: list[NodeId],
        below: "Below",
    ) -> list[NodeId]:
        """Borrow the nodes of directories; return those of all others."""
        if _DIRECTORY not in entries.types:
            return owed
        owed = [*owed]
        for place, kind in enumerate(entries.types):
            if kind != _DIRECTORY or len(below.nodes) >= below.most:
                continue
            name = entries.names[place]
            if name not in below.nodes:
                entry = fuse.Entry(owed[place], entries.node_attributes(place))
                borrowed = self._nodes.borrow_directory(entry, node, name)
                if borrowed is not None:
                    below.nodes[name] = borrowed
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
        return as_looked_up(entries.chosen(is_there))


class _Wish(NamedTuple):
    """A batch of entries to be read: of which directory, from where, how many of them."""

    node: Node
    handle: FileHandle
    offset: int
    limit: int
    below: "Below | None"


def as_looked_up(entries: DirectoryColumns) -> DirectoryColumns:
    """Return entries with the types and inode numbers of their nodes, where they have one."""
    attributes = AttributeColumns(entries.attributes)
    inos = attributes.column("ino")
    types = [mode >> 12 & 15 for mode in attributes.column("mode")]
    if 0 in entries.nodes:
        for place, node in enumerate(entries.nodes):
            if not node:
                inos[place], types[place] = entries.inos[place], entries.types[place]
    return entries._replace(inos=inos, types=types)
