"""A tree in pages: many directories read at once, few of them remembered."""

import errno
import functools
import stat
from collections.abc import Iterable
from typing import Final, NamedTuple

import trio

from protocol.dirent_columns import DirectoryColumns
from vuserd.errors import BackendError, CallError, ErrorCode, FileError, VuserdError
from vuserd.fs.directories.entries import Portion
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.kept import Kept
from vuserd.fs.nodes import Hold, Node
from vuserd.fs.paths import PATH_MAX
from vuserd.fs.reader import DirectoryReader
from vuserd.tasks.gather import gather
from vuserd.tasks.turns import take_turn

#: Directories that are read at once.
_READERS: Final = 16
#: Entries that one reader takes from a directory before others have their turn.
_PORTION: Final = 2000
#: Directories that may be open and wait for their turn; over that one is read to its end, unless
#: its entries take so many bytes.
_MOST_OPEN: Final = 64
_MOST_HELD: Final = 8 << 20
#: Types of entries to look into, DT_DIR and DT_UNKNOWN of dirent.h: some file systems do not say
#: what their entries are.
_MAY_BE_DIRECTORY: Final = frozenset({stat.S_IFDIR >> 12, 0})
#: Bytes that an entry takes which was read and not given, and a directory that is not done.
_ENTRY: Final = 1024
_DIRECTORY_BYTES: Final = 1024
#: What a directory that goes away, or becomes something else, while it is walked gives.
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})


class WalkProblem(NamedTuple):
    """A directory that could not be read, and why."""

    path: bytes
    error: VuserdError


class _Directory:
    """A directory to be read, or read on; it keeps its node in use until all below it is done.

    Its node may have come with the entry above, by the look-up that READDIRPLUS is. That one is not
    in use: the backend may be asked to forget it before the directory has its turn.
    """

    def __init__(
        self,
        path: bytes,
        parent: "_Directory | None",
        brought: Node | None = None,
        *,
        attributes: bool,
    ) -> None:
        self.path = path
        self.parent = parent
        self.brought = brought
        self.reader = DirectoryReader(attributes=attributes)
        self.hold: Hold | None = None
        self.node: Node | None = None
        #: What it was when it was found first.
        self.ino: int | None = None
        #: Itself while it is not read to its end, and the directories below it.
        self.unfinished = 1

    @property
    def size(self) -> int:
        """Bytes of memory that it takes, without its reader's."""
        return _DIRECTORY_BYTES + len(self.path)

    @property
    def is_brought(self) -> bool:
        """Whether the node that came with its entry is still known, and tells what it is."""
        node = self.brought
        return node is not None and node.lookups > 0 and node.is_identified

    def found(self, node: Node) -> None:
        """Take the directory's node.

        Raises:
            CallError: CHANGED: it is another directory than the one that a part was read of, or
                that is not known.

        """
        if self.reader.has_begun and (node.elsewhere or node.attributes.ino != self.ino):
            raise CallError(ErrorCode.CHANGED, "the directory was replaced while it was read")
        self.ino = node.attributes.ino
        self.node = node


class TreeWalk(Kept):
    """A walk in progress: :meth:`next_page` until it is ``finished``, :meth:`close` at any time.

    Directories are read as they are found, the latest first: so what is remembered grows with the
    depth of the tree and not with its size. Symlinks are entries, never followed. When the backend
    is lost a walk goes on with the next one, from where it was; so it does where it lapsed.
    """

    def __init__(self, path: bytes, *, attributes: bool) -> None:
        self._path = path
        self._attributes = attributes
        self._files: FileSystem | None = None
        self._top = _Directory(b"", None, attributes=attributes)
        #: Directories whose node is in use, and those to be read.
        self._entered: set[_Directory] = set()
        self._waiting = [self._top]
        self._returning = trio.Lock()
        self._entries = DirectoryColumns.empty()  # by their paths from where the walk began
        self._problems: list[WalkProblem] = []
        self._given = 0
        #: Bytes of those entries, and of the directories that are not done and their readers.
        self._entries_size = 0
        self._directories_size = self._top.size

    @property
    def remembered(self) -> int:
        """Bytes of memory that it takes to go on where it was."""
        return self._entries_size + self._directories_size

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to give."""
        return not self._waiting and self._given == len(self._entries.names)

    async def next_page(
        self, files: FileSystem, limit: int
    ) -> tuple[DirectoryColumns, list[WalkProblem]]:
        """Return up to ``limit`` entries, and the directories that could not be read on the way.

        Names are paths from where the walk began, and offsets mean nothing.
        There may be fewer entries, or none, where so many directories could not be read.

        Raises:
            FileError: ENOTDIR and what the backend says, of the directory where the walk begins.
            CallError: CHANGED of that one.
            FileError: EMFILE and ENFILE of any directory: the walk can go on from there.
            BackendError: the backend is lost; the walk can go on with the next one.

        """
        if self._files is not None:
            self._files.use(self)
        if files is not self._files:
            self._leave_all()  # the nodes of the session before mean nothing in this one
            self._files = files
        try:
            return await self._read_page(files, limit)
        finally:
            files.nodes.flush()
            if self._entered:
                files.keep(self)

    async def _read_page(
        self, files: FileSystem, limit: int
    ) -> tuple[DirectoryColumns, list[WalkProblem]]:
        if self._top.node is None and self._top.unfinished:
            await self._enter_top(files)
        while self._waiting and self._unsaid() < limit:
            batch = self._waiting[-_READERS:]
            del self._waiting[-_READERS:]
            await take_turn()
            batch = await self._read_together(files, batch)
            await gather([functools.partial(self._read, files, directory) for directory in batch])
        page = self._entries.part(self._given, self._given + limit)
        self._given += len(page.names)
        if self._given == len(self._entries.names):
            self._entries = DirectoryColumns.empty()
            self._given = self._entries_size = 0
        problems, self._problems = self._problems, []
        return page, problems

    def _unsaid(self) -> int:
        """Return how much there is for the next page."""
        return len(self._entries.names) - self._given + len(self._problems)

    def lapse(self) -> None:
        """Close all directories and let go of them; the next page enters them anew."""
        self._leave_all()
        self._files = None

    def close(self) -> None:
        """End the walk, and let go of every node that it uses."""
        if self._files is not None:
            self._files.use(self)
        self._waiting.clear()
        self._leave_all()

    async def _read_together(self, files: FileSystem, batch: list[_Directory]) -> list[_Directory]:
        """Read small directories, whose nodes READDIRPLUS brought, all at once; return the rest."""
        going = [each for each in batch if each.is_brought]
        try:
            nodes = [self._enter_brought(files, directory) for directory in going]
            handles = await files.operations.open_directories(nodes)
            for directory, node, handle in zip(going, nodes, handles, strict=True):
                if isinstance(handle, int):
                    directory.reader.begin(files, node, handle)
            _raise_lost(handles)
            going = [directory for directory in going if directory.reader.is_open]
            places = [directory.reader.place for directory in going]
            take = functools.partial(self._take, going)
            _raise_lost(await files.directories.read_together(places, take))
        except BaseException:
            self._waiting += [each for each in batch if not each.reader.finished]
            raise
        return [each for each in batch if not each.reader.finished]

    def _take(self, directories: list[_Directory], place: int, portion: Portion) -> None:
        directory = directories[place]
        reader = directory.reader
        before = reader.remembered
        entries = reader.take(portion.entries, portion.following)
        self._directories_size += reader.remembered - before
        self._add(directory, entries, portion.below)
        if reader.finished:
            self._finish(directory)

    async def _read(self, files: FileSystem, directory: _Directory) -> None:
        """Read a portion of a directory; the rest of it and its directories wait for their turn."""
        try:
            await self._read_portion(files, directory, await self._entered_node(files, directory))
        except FileError as error:
            if await self._is_out_of_descriptors(files, directory, error):
                raise
            if error.number not in _GONE:
                self._problems.append(WalkProblem(directory.path, error))
            self._finish(directory)
        except CallError as error:
            self._problems.append(WalkProblem(directory.path, error))
            self._finish(directory)
        except (BackendError, trio.Cancelled):
            self._waiting.append(directory)
            raise
        else:
            if directory.reader.finished:
                self._finish(directory)

    async def _is_out_of_descriptors(
        self, files: FileSystem, directory: _Directory, error: FileError
    ) -> bool:
        """Return whether a directory waits for descriptors, of which there may be more soon."""
        self._waiting.append(directory)
        is_exhausted = await files.operations.is_exhausted(error)
        if not is_exhausted:
            self._waiting.remove(directory)
        return is_exhausted

    async def _enter_top(self, files: FileSystem) -> None:
        self._leave(self._top)  # what the way there took that did not come through
        hold = self._top.hold = Hold(files.nodes)
        self._entered.add(self._top)
        node = await files.directory(self._path, hold)
        self._top.found(node)

    async def _entered_node(self, files: FileSystem, directory: _Directory) -> Node:
        if directory.node is not None:
            return directory.node
        if directory.ino is None:  # nobody but its reader knows of it yet
            return await self._enter(files, directory)
        return await self._enter_again(files, directory)

    async def _enter(self, files: FileSystem, directory: _Directory) -> Node:
        above = directory.parent
        assert above is not None
        node_above = above.node or await self._enter_again(files, above)
        return await self._enter_from(files, node_above, directory)

    async def _enter_from(self, files: FileSystem, above: Node, directory: _Directory) -> Node:
        self._leave(directory)  # what an attempt took that did not come through
        hold = directory.hold = Hold(files.nodes)
        self._entered.add(directory)
        if directory.is_brought:
            return self._enter_brought(files, directory)
        name = directory.path.rpartition(b"/")[2]
        node = await files.operations.look_up(above, name, hold)
        if not stat.S_ISDIR(node.attributes.mode):
            raise FileError(errno.ENOTDIR)
        directory.found(node)
        return node

    def _enter_brought(self, files: FileSystem, directory: _Directory) -> Node:
        """Enter a directory by the node that came with its entry."""
        brought, directory.brought = directory.brought, None
        assert brought is not None
        if directory.hold is None:
            directory.hold = Hold(files.nodes)
            self._entered.add(directory)
        directory.hold.join(brought)
        directory.found(brought)
        return brought

    async def _enter_again(self, files: FileSystem, directory: _Directory) -> Node:
        """Enter a directory and those above it that were left; readers below want it, too."""
        async with self._returning:
            way: list[_Directory] = []
            here: _Directory | None = directory
            while here is not None and here.node is None:
                way.append(here)
                here = here.parent
            for left in reversed(way):
                assert left.parent is not None
                assert left.parent.node is not None
                await self._enter_from(files, left.parent.node, left)
            assert directory.node is not None
            return directory.node

    async def _read_portion(self, files: FileSystem, directory: _Directory, node: Node) -> None:
        reader = directory.reader
        while True:
            before = reader.remembered
            below: dict[bytes, Node] = {}
            try:
                entries = await reader.read(files, node, _PORTION, below)
            finally:
                self._directories_size += reader.remembered - before
            waits = not reader.finished and (
                self._open_directories() <= _MOST_OPEN or self._entries_size > _MOST_HELD
            )
            if waits:
                self._waiting.append(directory)
            self._add(directory, entries, below)
            if waits or reader.finished:
                return

    def _open_directories(self) -> int:
        return sum(directory.reader.is_open for directory in self._entered)

    def _add(
        self, directory: _Directory, entries: DirectoryColumns, below: dict[bytes, Node]
    ) -> None:
        """Take what was read; directories among it have their turn before the rest of this one."""
        prefix = directory.path + b"/" if directory.path else b""
        paths = [prefix + name for name in entries.names] if prefix else entries.names
        self._entries.extend(entries._replace(names=paths))
        self._entries_size += sum(map(len, paths)) + _ENTRY * len(paths)
        if _MAY_BE_DIRECTORY.isdisjoint(entries.types):
            return
        for path, name, kind in zip(paths, entries.names, entries.types, strict=True):
            if kind not in _MAY_BE_DIRECTORY:
                continue
            if len(path) >= PATH_MAX:  # nothing in it could be asked for by its path
                self._problems.append(WalkProblem(path, FileError(errno.ENAMETOOLONG)))
                continue
            directory.unfinished += 1
            found = _Directory(path, directory, below.get(name), attributes=self._attributes)
            self._waiting.append(found)
            self._directories_size += found.size

    def _finish(self, directory: _Directory) -> None:
        """Note that a directory was read to its end; leave those below which nothing is left."""
        done: _Directory | None = directory
        while done is not None:
            done.unfinished -= 1
            if done.unfinished:
                return
            self._leave(done)
            self._directories_size -= done.size + done.reader.remembered
            done = done.parent

    def _leave_all(self) -> None:
        for directory in self._waiting:
            directory.brought = None
        for directory in list(self._entered):
            self._leave(directory)

    def _leave(self, directory: _Directory) -> None:
        directory.reader.close()
        hold, directory.hold = directory.hold, None
        directory.node = None
        self._entered.discard(directory)
        if hold is not None:
            hold.leave()


def _raise_lost(results: Iterable[object]) -> None:
    """Raise the first error that is not a directory's own: the backend is lost, or answers late."""
    for result in results:
        if isinstance(result, BackendError):
            raise result.again()
