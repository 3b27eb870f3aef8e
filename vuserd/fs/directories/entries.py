"""Read open directories: READDIR and READDIRPLUS, in columns, in portions that leave others room.

While a portion is decoded no other task runs, and a backend with one thread serves no other request
while it reads one.
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
    offset_after,
)
from protocol.fuse import ENTRY_SIZE, FileHandle, NodeId
from vuserd.device.session import Session
from vuserd.errors import FileError
from vuserd.fs.directories.offsets import no_end
from vuserd.fs.directories.opened import OpenDirectory, Wanted
from vuserd.fs.nodes import Hold, Node, NodeTable
from vuserd.fs.operations import NodeOperations
from vuserd.tasks.turns import give_way, take_turn

#: The most replies in a row without an entry to show: "." and ".." may have one each.
_MOST_BARREN: Final = 16
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
        wanted = Wanted(start, limit, limit if goes_on else 0)
        is_done = False
        if self._kept is directory:
            self._kept = None  # this call waits for it, and no other listing may drop it
        try:
            while position is not None and wanted.number > wanted.few:
                batch, position = await self._read_batch(directory, wanted, below, plus=attributes)
                count = len(batch.names)
                if attributes:
                    batch = await self._with_attributes(directory.node, batch)
                if entries.names:
                    entries.extend(batch)
                else:  # most of a page, and not to be copied
                    entries = batch
                barren = 0 if count or position is None else barren + 1
                if position in passed or barren > _MOST_BARREN:
                    raise no_end()
                passed.add(position)
                if position is not None:
                    wanted = Wanted(position, limit - len(entries.names), wanted.page)
            is_done = True
        finally:
            if not (goes_on and is_done):
                directory.drop_ahead()
        if goes_on and position is not None:
            directory.read_ahead(Wanted(position, limit, limit), plus=attributes)
            self._keep_ahead(directory)
        return entries, position

    def _keep_ahead(self, directory: OpenDirectory) -> None:
        """Keep what was read ahead for a next page, of one directory only."""
        kept, self._kept = self._kept, directory
        if kept is not None and kept is not directory:
            kept.drop_ahead()

    async def _read_batch(
        self, directory: OpenDirectory, wanted: Wanted, below: "Below | None", *, plus: bool
    ) -> tuple[DirectoryColumns, int | None]:
        """Read a batch of entries; return as many as are wanted at most, and the next offset.

        If one entry cannot be looked up, because it vanishes or its file system refuses, backends
        return its error for the whole READDIRPLUS. READDIR then shows whether the error is one
        entry's or the directory's own.
        """
        await take_turn()
        try:
            body = await directory.read(wanted, plus=plus)
        except FileError as error:
            if not plus or await self._operations.is_exhausted(error):
                raise
        else:
            give_way()
            return self._taken(directory, wanted, body, below, plus=plus)
        body = await directory.read(wanted, plus=False, reads_on=False)
        entries, following = self._taken(directory, wanted, body, None, plus=False)
        return entries.without_nodes(), following

    def _taken(
        self,
        directory: OpenDirectory,
        wanted: Wanted,
        body: bytes,
        below: "Below | None",
        *,
        plus: bool,
    ) -> tuple[DirectoryColumns, int | None]:
        """Return the entries of a reply, as far as they are wanted, and the next offset."""
        decode = functools.partial(decode_directory_columns, plus=plus)
        entries, following = self._lane.decoded(decode, body)
        directory.counted(body, len(entries.names), plus=plus)
        owed = entries.nodes
        if len(entries.names) > wanted.number:
            entries = entries.part(0, wanted.number)
            following = offset_after(body, wanted.number, plus=plus)
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
        decode = functools.partial(decode_directory_columns, plus=True)
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
