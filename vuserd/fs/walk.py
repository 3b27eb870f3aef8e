"""A tree in pages: many directories read at once, few of them remembered."""

import errno
import functools
import stat
from collections.abc import Iterable
from typing import Final, NamedTuple

import trio

from protocol.dirent_columns import DirectoryColumns
from vuserd.device.payloads import given_back
from vuserd.errors import BackendError, CallError, FileError, VuserdError
from vuserd.fs.directories.entries import Below
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.kept import Kept, replaced
from vuserd.fs.nodes import Hold, Node
from vuserd.fs.paths import PATH_MAX
from vuserd.fs.reader import DirectoryReader
from vuserd.fs.walking.directory import Directory
from vuserd.fs.walking.small import (
    GROUP,
    GROUPS,
    GROUPS_SHARED,
    MAY_BE_DIRECTORY,
    Part,
    SmallDirectories,
)
from vuserd.tasks.gather import gather
from vuserd.tasks.turns import is_alone, take_turn

#: Directories that are read at once and are not small.
_READERS: Final = 16
#: Entries that one reader takes from a directory before others have their turn.
_PORTION: Final = 2000
#: Directories that may be open and wait for their turn; over that one is read to its end, unless
#: its entries take so many bytes.
_MOST_OPEN: Final = 64
_MOST_HELD: Final = 8 << 20
#: Bytes that an entry takes which was read and not given.
_ENTRY: Final = 1024
#: What a directory that goes away, or becomes something else, while it is walked gives.
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})


class WalkProblem(NamedTuple):
    """A directory that could not be read, and why."""

    path: bytes
    error: VuserdError


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
        self._top = Directory(b"", None)
        #: The file system of the export's root, as FileSystem has it, when it was read from first.
        self._device: tuple[int, int] | None = None
        #: Directories whose node is in use, and those to be read.
        self._entered: set[Directory] = set()
        self._waiting = [self._top]
        #: Those that have to be read otherwise than small ones, as many as are read at once.
        self._aside: list[Directory] = []
        self._returning = trio.Lock()
        self._entries = DirectoryColumns.empty()  # by their paths from where the walk began
        self._problems: list[WalkProblem] = []
        self._given = 0
        #: Bytes of those entries, and of the directories that are not done and their readers.
        self._entries_size = 0
        self._directories_size = self._top.remembered
        #: Entries of the page in the making; groups of small directories that are read at once, and
        #: that may be.
        self._limit = self._groups = self._most_groups = 0

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
        self._limit = limit
        while self._waiting and self._unsaid() < limit:
            await take_turn()
            self._most_groups = GROUPS if is_alone() else GROUPS_SHARED
            self._groups = min(self._most_groups, 1 + len(self._waiting) // GROUP)
            try:
                if self.has_small():
                    with given_back(await files.session.payloads.take(1)) as [buffer]:
                        await SmallDirectories(files, self, buffer).run(self._groups)
                if self._unsaid() < limit:
                    others, self._aside = self._aside, []
                    await gather([functools.partial(self._read, files, each) for each in others])
            finally:
                self._waiting += reversed(self._aside)
                self._aside.clear()
        page = self._entries.part(self._given, self._given + limit)
        self._given += len(page.names)
        if 2 * self._given >= len(self._entries.names):  # seldom: the rest is copied
            self._drop_given()
        problems, self._problems = self._problems, []
        return page, problems

    def _drop_given(self) -> None:
        """Forget the entries that were given."""
        given, count = self._given, len(self._entries.names)
        self._entries_size -= _size_of(self._entries.names[:given])
        self._entries, self._given = self._entries.part(given, count), 0

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

    # -- small directories -------------------------------------------------------------------------

    def has_small(self) -> bool:
        """Return whether a directory comes next that may be small; set those aside that are not."""
        waiting, aside = self._waiting, self._aside
        while waiting and len(aside) < _READERS and self._unsaid() < self._limit:
            directory = waiting[-1]
            if self._attributes and directory.node is not None and directory.reader is None:
                # Where there is enough for more groups than are read at once, more are.
                has_all = self._groups == self._most_groups
                return has_all or len(waiting) < GROUP * self._groups
            aside.append(waiting.pop())
        return False

    def next_small(self) -> Directory | None:
        """Return the one that comes next."""
        return self._waiting.pop() if self.has_small() else None

    def room(self) -> int:
        """Return how many more directories may have their nodes borrowed."""
        assert self._files is not None
        return self._files.nodes.room

    def take(
        self, directory: Directory, entries: DirectoryColumns, below: dict[bytes, Node]
    ) -> None:
        """Take entries; directories among them have their turn before the rest of this one.

        Args:
            directory: where they were found.
            entries: what was.
            below: borrowed nodes of directories, by their names: of some among them, and of some
                that were given by an opening before.

        """
        above = directory.above
        paths = [above + name for name in entries.names] if above else entries.names
        self._add(paths, entries)
        if not below and MAY_BE_DIRECTORY.isdisjoint(entries.types):
            return
        for path, name, kind in zip(paths, entries.names, entries.types, strict=True):
            if kind not in MAY_BE_DIRECTORY:
                continue
            if len(path) >= PATH_MAX:  # nothing in it could be asked for by its path
                self._problems.append(WalkProblem(path, FileError(errno.ENAMETOOLONG)))
                continue
            directory.unfinished += 1
            found = Directory(path, directory, below.pop(name, None))
            self._waiting.append(found)
            self._directories_size += found.remembered
            if found.node is not None:
                self._entered.add(found)
        self._give_back(below)

    def take_files(self, parts: Iterable[Part], entries: DirectoryColumns) -> None:
        """Take entries of several directories, none of which is a directory."""
        names, paths = entries.names, list[bytes]()
        for part in parts:
            found = names[part.begin : part.end]
            above = part.directory.above
            paths += [above + name for name in found] if above else found
        self._add(paths, entries)

    def _add(self, paths: list[bytes], entries: DirectoryColumns) -> None:
        """Add entries to the page, by their paths."""
        self._entries.extend(entries._replace(names=paths))
        self._entries_size += _size_of(paths)

    def set_aside(self, directory: Directory) -> None:
        """Put a directory among those that are read one by one."""
        self._remember_reader(directory)
        self._aside.append(directory)

    def put_back(self, directory: Directory) -> None:
        """Put a directory back among those that wait."""
        self._remember_reader(directory)
        self._waiting.append(directory)

    def _remember_reader(self, directory: Directory) -> None:
        if directory.reader is not None:
            self._directories_size += directory.reader.remembered

    # -- other directories -------------------------------------------------------------------------

    async def _read(self, files: FileSystem, directory: Directory) -> None:
        """Read a portion of a directory; the rest of it and its directories wait for their turn."""
        try:
            await self._read_portion(files, directory, await self._entered_node(files, directory))
        except FileError as error:
            if await self._is_out_of_descriptors(files, directory, error):
                raise
            if error.number not in _GONE:
                self._problems.append(WalkProblem(directory.path, error))
            self.finish(directory)
        except CallError as error:
            self._problems.append(WalkProblem(directory.path, error))
            self.finish(directory)
        except (BackendError, trio.Cancelled):
            self._waiting.append(directory)
            raise
        else:
            if directory.reader is not None and directory.reader.finished:
                self.finish(directory)

    async def _is_out_of_descriptors(
        self, files: FileSystem, directory: Directory, error: FileError
    ) -> bool:
        """Return whether a directory waits for descriptors, of which there may be more soon."""
        self._waiting.append(directory)
        is_exhausted = await files.operations.is_exhausted(error)
        if not is_exhausted:
            self._waiting.remove(directory)
        return is_exhausted

    async def _enter_top(self, files: FileSystem) -> None:
        has_begun = self._top not in self._waiting or self._top.has_begun
        if has_begun and files.device != self._device:  # where inode numbers name other files
            raise replaced()
        self._device = files.device
        self._leave(self._top)  # what the way there took that did not come through
        hold = self._top.hold = Hold(files.nodes)
        self._entered.add(self._top)
        node = await files.directory(self._path, hold)
        self._top.found(node)

    async def _entered_node(self, files: FileSystem, directory: Directory) -> Node:
        if directory.node is not None:
            return directory.node
        if directory.ino is None:  # nobody but its reader knows of it yet
            return await self._enter(files, directory)
        return await self._enter_again(files, directory)

    async def _enter(self, files: FileSystem, directory: Directory) -> Node:
        above = directory.parent
        assert above is not None
        node_above = above.node or await self._enter_again(files, above)
        return await self._enter_from(files, node_above, directory)

    async def _enter_from(self, files: FileSystem, above: Node, directory: Directory) -> Node:
        self._leave(directory)  # what an attempt took that did not come through
        hold = directory.hold = Hold(files.nodes)
        self._entered.add(directory)
        name = directory.path.rpartition(b"/")[2]
        node = await files.operations.look_up(above, name, hold)
        if not stat.S_ISDIR(node.attributes.mode):
            raise FileError(errno.ENOTDIR)
        directory.found(node)
        return node

    async def _enter_again(self, files: FileSystem, directory: Directory) -> Node:
        """Enter a directory and those above it that were left; readers below want it, too."""
        async with self._returning:
            way: list[Directory] = []
            here: Directory | None = directory
            while here is not None and here.node is None:
                way.append(here)
                here = here.parent
            for left in reversed(way):
                assert left.parent is not None
                assert left.parent.node is not None
                await self._enter_from(files, left.parent.node, left)
            assert directory.node is not None
            return directory.node

    async def _read_portion(self, files: FileSystem, directory: Directory, node: Node) -> None:
        reader = directory.reader
        if reader is None:
            reader = directory.reader = DirectoryReader(attributes=self._attributes)
        while True:
            before = reader.remembered
            below = Below({}, self.room())
            try:
                entries = await reader.read(files, node, _PORTION, below)
            except BaseException:
                self._give_back(below.nodes)
                raise
            finally:
                self._directories_size += reader.remembered - before
            waits = not reader.finished and (
                self._open_directories() <= _MOST_OPEN or self._entries_size > _MOST_HELD
            )
            if waits:
                self._waiting.append(directory)
            self.take(directory, entries, below.nodes)
            if waits or reader.finished:
                return

    def _open_directories(self) -> int:
        return sum(directory.is_open for directory in self._entered)

    def _give_back(self, borrowed: dict[bytes, Node]) -> None:
        """Give back nodes of directories that no directory has."""
        assert self._files is not None
        for node in borrowed.values():
            self._files.nodes.give_back(node.id)

    def finish(self, directory: Directory) -> None:
        """Note that a directory was read to its end; leave those below which nothing is left."""
        done: Directory | None = directory
        while done is not None:
            done.unfinished -= 1
            if done.unfinished:
                return
            self._leave(done)
            self._directories_size -= done.remembered
            done = done.parent

    def _leave_all(self) -> None:
        for directory in list(self._entered):
            self._leave(directory)

    def _leave(self, directory: Directory) -> None:
        assert self._files is not None
        self._entered.discard(directory)
        directory.leave(self._files.nodes)


def _size_of(paths: list[bytes]) -> int:
    """Return the bytes that entries with these paths take."""
    return sum(map(len, paths)) + _ENTRY * len(paths)
