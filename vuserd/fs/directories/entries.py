"""Read open directories: READDIR and READDIRPLUS, in columns, in portions that leave others room.

While a portion is decoded the backend reads the next one, unless another client wants something: no
other task runs meanwhile, and a backend with one thread serves no other request.
"""

import errno
import functools
import stat
from typing import Final, NamedTuple

from protocol import fuse
from protocol.dirent import DIRENT_SIZE
from protocol.dirent_columns import (
    AttributeColumns,
    DirectoryColumns,
    decode_directory_columns,
    last_offset,
)
from protocol.fuse import ENTRY_SIZE, FileHandle, NodeId
from vuserd.device.session import Session
from vuserd.errors import FileError
from vuserd.fs.directories.offsets import no_end
from vuserd.fs.directories.opened import OpenDirectory
from vuserd.fs.nodes import Hold, Node, NodeTable
from vuserd.fs.operations import NodeOperations
from vuserd.tasks.turns import take_turn

#: The most replies in a row without an entry to show: "." and ".." may have one each.
_MOST_BARREN: Final = 16
#: What part of a page is too few to be asked for, where the next page is wanted at once.
_FEW: Final = 8
#: Bytes of one with attributes whose name is as long as Linux lets it be.
LONG_PLUS: Final = ENTRY_SIZE + DIRENT_SIZE + 256
#: The type of a directory: DT_DIR of dirent.h.
_DIRECTORY: Final = stat.S_IFDIR >> 12


class Below(NamedTuple):
    """Takes nodes of directories that came with attributes, by their names, up to a number.

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
        #: The directory of which something was read ahead that no call wants yet.
        self._kept: OpenDirectory | None = None

    def opened(self, node: Node, handle: FileHandle) -> OpenDirectory:
        """Return a directory to read that was opened; whoever has it closes it."""
        return OpenDirectory(self._session, self._nodes, node, handle)

    async def read_entries(
        self,
        directory: OpenDirectory,
        start: int,
        limit: int,
        *,
        attributes: bool,
        below: "Below | None" = None,
        goes_on: bool = False,
    ) -> tuple[DirectoryColumns, int | None]:
        """Return up to ``limit`` entries from offset ``start``, and the next offset.

        Where the caller ``goes_on`` at once, the backend is asked already for what follows, and
        fewer entries are returned rather than to ask for the last few.

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
        page = limit if goes_on else 0
        is_done = False
        try:
            while position is not None and len(entries.names) < limit - page // _FEW:
                left = limit - len(entries.names)
                wish = _Wish(directory, position, left, below, page)
                batch, position = await self._read_batch(wish, plus=attributes)
                count = len(batch.names)
                if attributes:
                    batch = await self._with_attributes(directory.node, batch)
                entries.extend(batch)
                barren = 0 if count or position is None else barren + 1
                if position in passed or barren > _MOST_BARREN:
                    raise no_end()
                passed.add(position)
            is_done = True
        finally:
            if not (goes_on and is_done):
                directory.drop_ahead()
        if goes_on and position is not None:
            directory.read_ahead(position, limit - limit // _FEW // 2, plus=attributes)
            self._keep_ahead(directory)
        return entries, position

    def _keep_ahead(self, directory: OpenDirectory) -> None:
        """Keep what was read ahead for a next page, of one directory only."""
        kept, self._kept = self._kept, directory
        if kept is not None and kept is not directory:
            kept.drop_ahead()

    async def _read_batch(
        self, wish: "_Wish", *, plus: bool
    ) -> tuple[DirectoryColumns, int | None]:
        """Read a batch of entries; return at most its limit of them, and the next offset.

        If one entry cannot be looked up, because it vanishes or its file system refuses, backends
        return its error for the whole READDIRPLUS. READDIR then shows whether the error is one
        entry's or the directory's own.
        """
        try:
            return await self._read_reply(wish, plus=plus, reads_on=True)
        except FileError as error:
            if not plus or await self._operations.is_exhausted(error):
                raise
        entries, following = await self._read_reply(wish, plus=False, reads_on=False)
        return entries.without_nodes(), following

    async def _read_reply(
        self, wish: "_Wish", *, plus: bool, reads_on: bool
    ) -> tuple[DirectoryColumns, int | None]:
        await take_turn()
        directory, offset, limit, below, page = wish
        few = page // _FEW
        body = await directory.read(offset, limit - few // 2, plus=plus)
        left = limit - directory.count_in(body, plus=plus)
        if reads_on and body and left >= 0:  # else it goes on before the reply's end
            left = page if left <= few else left
            ahead = last_offset(body, plus=plus)
            if left and ahead is not None:
                directory.read_ahead(ahead, left - few // 2, plus=plus)
        decode = functools.partial(decode_directory_columns, plus=plus, after=offset)
        entries, following = self._lane.decoded(decode, body)
        directory.counted(body, len(entries.names), plus=plus)
        owed = entries.nodes
        if len(entries.names) > limit:
            entries = entries.part(0, limit)
            following = entries.offsets[-1]
        if plus:
            entries = self._settled(directory.node, entries, owed, below)
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

    directory: OpenDirectory
    offset: int
    limit: int
    below: "Below | None"
    page: int  #: entries of the next page, if that is wanted at once


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
