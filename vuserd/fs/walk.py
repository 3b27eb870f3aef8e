"""A tree in pages: many directories read at once, few of them remembered."""

import errno
import functools
import stat
from typing import Final, NamedTuple

from protocol.dirent import DirectoryEntry
from protocol.fuse import FileHandle
from vuserd.errors import FileError
from vuserd.fs.nodes import Hold, Node, NodeTable
from vuserd.fs.operations import NodeOperations
from vuserd.gather import gather

#: Directories that are read at once.
_READERS: Final = 16
#: Entries that one reader takes from a directory before others have their turn.
_PORTION: Final = 2000
#: What a directory that goes away, or becomes something else, while it is walked gives.
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})


class WalkEntry(NamedTuple):
    """An entry of the tree, by its path from where the walk began."""

    path: bytes
    entry: DirectoryEntry


class WalkProblem(NamedTuple):
    """A directory that could not be read, and why."""

    path: bytes
    error: FileError


class _Directory:
    """A directory to be read, or read on; it keeps its node in use until all below it is done."""

    def __init__(self, path: bytes, parent: "_Directory | None") -> None:
        self.path = path
        self.parent = parent
        self.position = 0
        self.hold: Hold | None = None
        self.node: Node | None = None
        #: Itself while it is not read to its end, and the directories below it.
        self.unfinished = 1


class TreeWalk:
    """A walk in progress: :meth:`next_page` until it is ``finished``, :meth:`close` at any time.

    Directories are read as they are found, the latest first: so what is remembered grows with the
    depth of the tree and not with its size. Symlinks are entries, never followed.
    """

    def __init__(
        self,
        operations: NodeOperations,
        nodes: NodeTable,
        root: Node,
        hold: Hold,
        *,
        attributes: bool,
    ) -> None:
        self._operations = operations
        self._nodes = nodes
        self._attributes = attributes
        top = _Directory(b"", None)
        top.node, top.hold = root, hold
        #: Directories whose node is in use, and those to be read.
        self._entered = {top}
        self._waiting = [top]
        self._entries: list[WalkEntry] = []
        self._problems: list[WalkProblem] = []
        self._given = 0

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to give."""
        return not self._waiting and self._given == len(self._entries)

    async def next_page(self, limit: int) -> tuple[list[WalkEntry], list[WalkProblem]]:
        """Return up to ``limit`` entries, and the directories that could not be read on the way."""
        while self._waiting and len(self._entries) - self._given < limit:
            batch = self._waiting[-_READERS:]
            del self._waiting[-_READERS:]
            await gather([functools.partial(self._read, directory) for directory in batch])
        self._nodes.flush()
        page = self._entries[self._given : self._given + limit]
        self._given += len(page)
        if self._given == len(self._entries):
            self._entries.clear()
            self._given = 0
        problems, self._problems = self._problems, []
        return page, problems

    def close(self) -> None:
        """Let go of every node that the walk uses."""
        self._waiting.clear()
        for directory in list(self._entered):
            self._leave(directory)

    async def _read(self, directory: _Directory) -> None:
        """Read a portion of a directory; the rest of it and its directories wait for their turn."""
        try:
            node = directory.node or await self._enter(directory)
            async with self._operations.opened_directory(node) as handle:
                following = await self._read_portion(directory, node, handle)
        except FileError as error:
            if error.number not in _GONE:
                self._problems.append(WalkProblem(directory.path, error))
            following = None
        if following is None:
            self._finish(directory)

    async def _enter(self, directory: _Directory) -> Node:
        parent = directory.parent
        assert parent is not None
        assert parent.node is not None
        directory.hold = Hold(self._nodes)
        self._entered.add(directory)
        name = directory.path.rpartition(b"/")[2]
        node = await self._operations.look_up(parent.node, name, directory.hold)
        if not stat.S_ISDIR(node.attributes.mode):
            raise FileError(errno.ENOTDIR)
        directory.node = node
        return node

    async def _read_portion(
        self, directory: _Directory, node: Node, handle: FileHandle
    ) -> int | None:
        entries, following = await self._operations.read_entries(
            node, handle, directory.position, _PORTION, attributes=self._attributes
        )
        if following is not None:
            directory.position = following
            self._waiting.append(directory)
        prefix = directory.path + b"/" if directory.path else b""
        for entry in entries:
            path = prefix + entry.name
            self._entries.append(WalkEntry(path, entry))
            if entry.type == stat.S_IFDIR >> 12:
                directory.unfinished += 1
                self._waiting.append(_Directory(path, directory))
        return following

    def _finish(self, directory: _Directory) -> None:
        """Note that a directory was read to its end; leave those below which nothing is left."""
        done: _Directory | None = directory
        while done is not None:
            done.unfinished -= 1
            if done.unfinished:
                return
            self._leave(done)
            done = done.parent

    def _leave(self, directory: _Directory) -> None:
        hold, directory.hold = directory.hold, None
        directory.node = None
        self._entered.discard(directory)
        if hold is not None:
            hold.leave()
