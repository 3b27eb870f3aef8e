"""Small directories, of which a walk reads many at once, in groups.

Each is opened, read twice at most, and closed: a small one has its entries once, and then ends. All
of a group take each step together, and what came is decoded and checked at once. While that is done
for one group, the backend has the other one.
"""

import stat
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Final, Protocol

from memory.arena import Buffer
from protocol import MalformedError, fuse
from protocol.dirent import LONGEST_RECORD
from protocol.dirent_columns import DirectoryColumns, decode_directories, decode_directory_columns
from protocol.fuse import FileHandle
from vuserd.device.request import Asked
from vuserd.device.results import Failed, length_of
from vuserd.device.shared_buffer import BufferPart, SharedBuffer
from vuserd.errors import BackendError
from vuserd.fs.directories.entries import LONG_PLUS, Below, as_looked_up
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.nodes import Node
from vuserd.fs.walking.directory import Directory
from vuserd.tasks.gather import gather
from vuserd.tasks.turns import give_way, is_alone, take_turn

#: Bytes that a small directory is read in.
_SIZE: Final = 8 << 10
#: Directories of a group, and how many groups: while no other client asks, and while others do.
GROUP: Final = 16
_GROUP_SHARED: Final = 4
GROUPS: Final = 3
GROUPS_SHARED: Final = 1
#: Types of entries to look into, DT_DIR and DT_UNKNOWN of dirent.h: some file systems do not say
#: what their entries are.
MAY_BE_DIRECTORY: Final = frozenset({stat.S_IFDIR >> 12, 0})


class Walk(Protocol):
    """Which directories are read, and what becomes of them."""

    def next_small(self) -> Directory | None:
        """Return the directory that is read next, if there is one that may be small."""

    def room(self) -> int:
        """Return how many more nodes of directories may be borrowed."""

    def take(
        self, directory: Directory, entries: DirectoryColumns, below: dict[bytes, Node]
    ) -> None:
        """Take entries of a directory, and borrowed nodes of directories among them."""

    def take_files(self, parts: Iterable["Part"], entries: DirectoryColumns) -> None:
        """Take entries of several directories, none of which is a directory."""

    def finish(self, directory: Directory) -> None:
        """Leave a directory that was read to its end, and is closed."""

    def set_aside(self, directory: Directory) -> None:
        """Take a directory to be read by itself: it does not end here, or an entry is odd."""

    def put_back(self, directory: Directory) -> None:
        """Take a directory back: the backend is lost, or the page needs no more."""


class Part:
    """One directory of a group: its opening, and which of the group's entries it has."""

    __slots__ = (
        "begin",
        "directory",
        "end",
        "entries",
        "following",
        "handle",
        "is_done",
        "more",
        "size",
    )

    def __init__(self, directory: Directory, size: int) -> None:
        self.directory = directory
        self.handle: FileHandle | None = None
        #: The entries of many, of which it has those from place ``begin`` to before ``end``; None
        #: while none was taken.
        self.entries: DirectoryColumns | None = None
        self.begin = self.end = 0
        #: Where it goes on behind them.
        self.following = 0
        #: Bytes of a reply that it is read in next.
        self.size = size
        #: What was taken after that, and where it goes on.
        self.more: tuple[DirectoryColumns, int] | None = None
        self.is_done = False

    @property
    def node(self) -> Node:
        """The directory's node, which is in use."""
        assert self.directory.node is not None
        return self.directory.node

    @property
    def request(self) -> fuse.Request:
        """The request for its next entries."""
        assert self.handle is not None
        return fuse.readdirplus(self.node.id, self.handle, self.following, self.size)

    def read_on(self, files: FileSystem) -> None:
        """Leave the rest of it to a reader, if it is open."""
        if self.handle is None:
            return
        taken = []
        if self.entries is not None:
            taken.append((self.entries.part(self.begin, self.end), self.following))
        if self.more is not None:
            taken.append(self.more)
        self.directory.read_on(files, self.handle, taken)


class SmallDirectories:
    """Reads the small directories of a walk as long as there are any."""

    def __init__(self, files: FileSystem, walk: Walk, buffer: Buffer) -> None:
        self._files = files
        self._nodes = files.nodes
        self._directories = files.directories
        self._operations = files.operations
        self._lane = files.session.lane
        self._walk = walk
        self._size = min(_SIZE, files.session.max_read)
        self._targets = SharedBuffer(buffer).parts(_SIZE)

    async def run(self, groups: int) -> None:
        """Read this number of groups at once.

        Raises:
            BackendError: the backend is lost, or answers late.

        """
        places = range(0, groups * GROUP, GROUP)
        targets = [self._targets[place : place + GROUP] for place in places]
        await gather([partial(self._read_groups, each) for each in targets])

    async def _read_groups(self, targets: list[BufferPart]) -> None:
        while True:
            await _let_others()
            size = _GROUP_SHARED if self._lane.is_shared else GROUP
            directories = [*islice(iter(self._walk.next_small, None), size)]
            if not directories:
                return
            await self._read_group([Part(each, self._size) for each in directories], targets)

    async def _read_group(self, parts: list[Part], targets: list[BufferPart]) -> None:
        try:
            await self._open(parts)
            opened = [part for part in parts if part.handle is not None]
            await self._read(opened, targets, self._take_first)
            begun = [part for part in opened if part.entries is not None]
            await _let_others()
            await self._read(begun, targets, self._take_more)
        except BaseException:
            for part in parts:
                self._leave(part, self._walk.put_back)
            raise
        for part in parts:
            self._leave(part, self._walk.set_aside)

    def _leave(self, part: Part, otherwise: Callable[[Directory], None]) -> None:
        """Finish a directory if it is done, or have its reader go on with it."""
        if part.is_done:
            assert part.handle is not None
            self._operations.release_directory(part.node, part.handle)
            self._walk.finish(part.directory)
        else:
            part.read_on(self._files)
            otherwise(part.directory)

    async def _open(self, parts: list[Part]) -> None:
        lost: BackendError | None = None
        handles = await self._operations.open_directories([part.node for part in parts])
        for part, handle in zip(parts, handles, strict=True):
            if isinstance(handle, int):
                part.handle = handle
            elif isinstance(handle, BackendError):
                lost = handle
        if lost is not None:
            raise lost.again()

    async def _read(
        self,
        parts: list[Part],
        targets: list[BufferPart],
        take: Callable[[list[Part], list[bytes]], None],
    ) -> None:
        """Read on in directories, and take what came."""
        asked: list[Asked] = [
            (part.request, target, self._undo_read)
            for part, target in zip(parts, targets, strict=False)
        ]
        lost: BackendError | None = None
        read, bodies = list[Part](), list[bytes]()
        replies = await self._lane.ask_all(asked)
        give_way()
        for part, target, reply in zip(parts, targets, replies, strict=False):
            if isinstance(reply, Failed):
                if isinstance(reply.error, BackendError):
                    lost = reply.error
            elif length := length_of(reply):
                read.append(part)
                bodies.append(bytes(target.view[:length]))
            else:
                part.is_done = True
        take(read, bodies)
        if lost is not None:
            raise lost.again()

    def _take_first(self, parts: list[Part], bodies: list[bytes]) -> None:
        """Take the first entries of directories, which are all of them mostly."""
        try:
            entries, ends, offsets = decode_directories(bodies)
        except MalformedError as error:
            raise self._lane.broken(error) from error
        entries = as_looked_up(entries)
        begin = 0
        for part, end, following, body in zip(parts, ends, offsets, bodies, strict=True):
            part.entries, part.begin, part.end, part.following = entries, begin, end, following
            # Where there was room for another entry it most likely ends, and less is asked for: how
            # much that is decides how many of its kind the backend has at once.
            if len(body) + LONG_PLUS <= self._size:
                part.size = LONGEST_RECORD
            begin = end
        is_odd = 0 in entries.nodes or 0 in offsets
        if is_odd or not MAY_BE_DIRECTORY.isdisjoint(entries.types):
            for part in parts:
                self._take_one(part, entries.part(part.begin, part.end))
        else:
            self._nodes.forget_each(entries.nodes)
            self._walk.take_files(parts, entries)

    def _take_one(self, part: Part, entries: DirectoryColumns) -> None:
        """Take the first entries of one directory, unless each has to be looked at by itself."""
        if 0 in entries.nodes or not part.following:
            self._nodes.forget_each(entries.nodes)
            part.entries, part.following = None, 0
            return
        below = Below({}, self._walk.room())
        owed = self._directories.borrow_directories(part.node, entries, entries.nodes, below)
        self._nodes.forget_each(owed)
        self._walk.take(part.directory, entries, below.nodes)

    def _take_more(self, parts: list[Part], bodies: list[bytes]) -> None:
        """Take further entries of directories that have more."""
        for part, body in zip(parts, bodies, strict=True):
            below = Below({}, self._walk.room())
            part.more = self._directories.decoded(part.node, part.following, body, below)
            if part.more is not None:
                self._walk.take(part.directory, part.more[0], below.nodes)

    def _undo_read(self, body: bytes) -> None:
        entries, _ = decode_directory_columns(body, plus=True)
        self._nodes.forget_each(entries.nodes)


async def _let_others() -> None:
    """Wait for a turn if another client wants something; each step waits for the backend anyway."""
    if not is_alone():
        await take_turn()
