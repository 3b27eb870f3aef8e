"""Find all that is below a directory, parents first, and have each entry's node in use.

Directories are read by jobs, and READDIRPLUS is the fresh look-up of every entry in them. The node
that it brings stays in use until the entry is delivered, so nothing is looked up twice. What was
left since, because nobody asked for the next page or the backend was lost, is looked up anew.
"""

import errno
import operator
import stat
import time
from collections import deque
from itertools import compress
from typing import Final

from protocol import fuse
from protocol.dirent_columns import AttributeColumns, DirectoryColumns
from protocol.fuse import (
    Attributes,
    Entry,
    decode_attributes_at,
    encode_attributes,
)
from vuserd.device.jobs import Job
from vuserd.device.procedure import Procedure
from vuserd.device.request import Seen
from vuserd.errors import CallError, FileError, VuserdError
from vuserd.fs.directories.offsets import no_end
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.kept import replaced
from vuserd.fs.lookups import not_told_apart
from vuserd.fs.nodes import Hold, is_mount
from vuserd.fs.paths import PATH_MAX
from vuserd.fs.tree.asking import go, look_up, open_directory, read_entries
from vuserd.fs.tree.found import Branch, Found

#: Directories that may be open and wait for their turn; over that one is read to its end, unless it
#: has ever more entries.
_MOST_OPEN: Final = 64
#: Nodes of directories, and of entries, that stay in use while they wait; others are given back.
_MOST_NODES: Final = 1024
#: The most replies in a row without an entry to show: "." and ".." may have one each.
_MOST_BARREN: Final = 16
#: What a directory that goes away, or becomes something else, while it is read gives.
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})
#: Seconds after which no file system's timestamps can hide a change any more.
_LONG_SETTLED: Final = 4.0
#: The bits of a mode that tell the type.
_TYPE: Final = 0o170000
#: Bytes of memory for an entry that was found and not delivered, and for its name and directory.
_ENTRY: Final = 1024
_NAME: Final = operator.attrgetter("name")
_PATH: Final = operator.attrgetter("branch.path")


class Tree:
    """What is below the directory at a path: entries wait in ``ahead``, in order.

    Of the directories that wait the one found last is read first: so what is remembered grows with
    the depth of the tree and not with its size.
    """

    def __init__(self, path: bytes) -> None:
        self.ahead: deque[Found] = deque()
        #: Directories that could not be read, and why.
        self.problems: deque[tuple[bytes, VuserdError]] = deque()
        self._path = path
        self._files: FileSystem | None = None
        self._hold: Hold | None = None
        self._top = Branch(b"", None, None)
        self._waiting = [self._top]
        self._reading: set[Branch] = set()
        #: Those that the backend had no descriptor for.
        self._refused: list[tuple[Branch, FileError]] = []
        self._mounts = 0
        self._opened = 0
        #: The file system of the export's root, as FileSystem has it.
        self._device: tuple[int, int] | None = None
        #: Whether it may begin on another one.
        self._elsewhere = False

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to deliver."""
        return not (self.ahead or self.has_unread or self.problems)

    @property
    def has_unread(self) -> bool:
        """Whether there are directories to read, or read on."""
        return bool(self._waiting or self._reading)

    @property
    def is_waiting(self) -> bool:
        """Whether there are directories to read that no job reads."""
        return bool(self._waiting)

    @property
    def remembered(self) -> int:
        """Bytes of memory that it takes to go on."""
        found = _ENTRY * len(self.ahead)
        found += sum(map(len, map(_PATH, self.ahead))) + sum(map(len, map(_NAME, self.ahead)))
        return found + sum(branch.remembered for branch in self._waiting)

    @property
    def is_in_use(self) -> bool:
        """Whether the backend has anything for it."""
        return self._hold is not None

    async def enter(self, files: FileSystem) -> None:
        """Take the directory's node into use, in the session that serves now.

        Raises:
            FileError: ENOTDIR and what the backend says.
            CallError: CHANGED: it is another directory than the one that a part was read of, or
                that is not known.

        """
        if self._files is not None and self._files is not files:
            self.lapse()  # the nodes of the session before mean nothing in this one
        if self._hold is not None:
            return
        hold = Hold(files.nodes)
        try:
            node = await files.directory(self._path, hold)
            elsewhere = self._elsewhere or node.elsewhere or files.device != self._device
            self._require_same(self._top, node.attributes, elsewhere=elsewhere)
        except BaseException:
            hold.leave()
            raise
        if self._top.ino is None and files.operations.tells_mounts:
            self._top.mount = 0
        self._top.ino, self._top.node = node.attributes.ino, node.id
        self._device, self._elsewhere = files.device, node.elsewhere
        self._files, self._hold = files, hold

    def lapse(self) -> None:
        """Give all nodes and handles back; what goes on is looked up and opened anew."""
        for found in self.ahead:
            self.leave(found)
        for branch in self._waiting:
            self._leave(branch)
        self._top.node = None
        hold, self._hold = self._hold, None
        self._files = None
        if hold is not None:
            hold.leave()

    def close(self) -> None:
        """End it."""
        self.lapse()
        self.ahead.clear()
        self.problems.clear()
        self._waiting.clear()

    def leave(self, found: Found) -> None:
        """Give an entry's node back."""
        node = found.node
        if node is not None:
            found.node = None
            self._in_use.nodes.give_back(node)

    def take_back(self, entries: list[Found]) -> None:
        """Put entries back that were not delivered after all."""
        for found in entries:
            found.target = found.place = found.length = None
            # Others than these are asked for nothing that would show the error again.
            if found.attributes is None or stat.S_ISREG(found.mode) or stat.S_ISLNK(found.mode):
                found.error = None
        self.ahead.extendleft(reversed(entries))

    def refused(self) -> FileError | None:
        """Return the error of a directory that the backend had no descriptor for, if there is one.

        It is not read until :meth:`settle_refused`.
        """
        return self._refused[0][1] if self._refused else None

    def settle_refused(self, *, are_problems: bool) -> None:
        """Put such directories back, or take their errors for their own."""
        while self._refused:
            branch, error = self._refused.pop()
            if are_problems:
                self._fail(branch, error)
            else:
                self._waiting.append(branch)

    # -- jobs --------------------------------------------------------------------------------------

    def read_on(self, rooms: list[Seen]) -> Job:
        """Read a batch of the directory that was found last; a room is borrowed for that."""
        if not self._waiting or not rooms:
            return
        branch, room = self._waiting.pop(), rooms.pop()
        place = len(self._waiting)
        self._reading.add(branch)
        try:
            finished = yield from self._read_batch(branch, room)
            while not finished and self._opened > _MOST_OPEN and len(self.ahead) < _MOST_NODES:
                finished = yield from self._read_batch(branch, room)
        except FileError as error:
            if error.is_exhaustion:
                self._refused.append((branch, error))
            else:
                self._fail(branch, error)
        except CallError as error:
            self._fail(branch, error)
        except BaseException:
            self._waiting.append(branch)
            raise
        else:
            if finished:
                self._leave(branch)
            else:
                self._waiting.insert(place, branch)  # the directories in it come first
        finally:
            self._reading.discard(branch)
            rooms.append(room)

    def find(self, found: Found) -> Procedure[None]:
        """Look an entry up that has no node.

        Raises:
            FileError: ENOENT, or what the backend says.

        """
        branch = found.branch
        if branch.node is not None:
            branch.lookups += 1
            try:
                entry = yield from look_up(self._in_use, branch.node, found.name)
            finally:
                branch.lookups -= 1
                if branch.is_left:
                    self._leave(branch)
        else:
            entry = yield from self._go(branch, found.path)
        found.node = entry.node
        found.now_has(encode_attributes(entry.attributes))
        if not _is_told_apart(entry.attributes):
            self.leave(found)
            raise not_told_apart()
        if stat.S_ISDIR(found.mode):
            self._add_branch(found)

    def _go(self, branch: Branch, path: bytes) -> Procedure[Entry]:
        """Return the entry at the path of a directory, or of what is in it; its node is borrowed.

        No mount on the way is known again: it may be another one's place by now.
        """
        assert self._top.node is not None
        entry, is_over_mount = yield from go(self._in_use, self._top.node, path)
        if is_over_mount or branch.mount:
            branch.mount = None
        return entry

    def _read_batch(self, branch: Branch, room: Seen) -> Procedure[bool]:
        """Read a batch of a directory; return whether it was the last one."""
        if branch.node is None:
            entry = yield from self._go(branch, branch.path)
            branch.node = entry.node
            if is_mount(entry.attributes):
                branch.mount = None
            if not stat.S_ISDIR(entry.attributes.mode):
                raise FileError(errno.ENOTDIR)
            elsewhere = branch.mount != 0
            self._require_same(branch, entry.attributes, elsewhere=elsewhere)
            branch.ino = entry.attributes.ino
        if branch.handle is None:
            yield from open_directory(self._in_use.session.lane, branch)
            self._opened += 1
        entries, following = yield from read_entries(self._in_use, branch, room)
        if following is None:
            self._add(branch, entries)
            return True
        branch.barren = 0 if entries.names else branch.barren + 1
        if branch.offsets.lead_back(following) or branch.barren > _MOST_BARREN:
            self._in_use.nodes.forget_each(entries.nodes)
            raise no_end()
        branch.position = following
        self._add(branch, entries)
        return False

    # -- what was found ----------------------------------------------------------------------------

    def _add(self, branch: Branch, entries: DirectoryColumns) -> None:
        """Take entries, whose lookup counts are this tree's from here on."""
        nodes, directory = self._in_use.nodes, branch.node
        assert directory is not None
        is_new = branch.given.are_new(entries.names)
        if is_new is not None:
            nodes.forget_each([*compress(entries.nodes, map(operator.not_, is_new))])
            entries = entries.chosen(is_new)
        branch.given.add(entries.names)
        columns = AttributeColumns(entries.attributes)
        modes, sizes, inos = (columns.column(name) for name in ("mode", "size", "ino"))
        rows = zip(
            entries.names,
            entries.nodes,
            entries.attributes,
            modes,
            sizes,
            inos,
            _are_old(columns),
            strict=True,
        )
        again = fuse.ROOT_ID, directory
        ahead, borrow = self.ahead, nodes.borrow
        for name, node, attributes, mode, size, ino, is_old in rows:
            if not node:
                ahead.append(Found(branch, name))
                continue
            found = Found(branch, name, node, attributes, mode, size, is_old)
            ahead.append(found)
            if node in again:
                nodes.forget(node)
                found.node, found.error = None, not_told_apart()
                continue
            borrow(node, directory, name)
            if not ino and not _is_told_apart(decode_attributes_at(attributes, 0)):
                self.leave(found)
                found.error = not_told_apart()
            elif mode & _TYPE == stat.S_IFDIR:
                self._add_branch(found)
            elif len(ahead) > _MOST_NODES:
                self.leave(found)

    def _add_branch(self, found: Found) -> None:
        """Add a found directory to those to read; its node is the branch's from here on."""
        assert found.attributes is not None
        attributes, path = decode_attributes_at(found.attributes, 0), found.path
        if len(path) >= PATH_MAX:  # nothing in it could be asked for by its path
            self.problems.append((path, FileError(errno.ENAMETOOLONG)))
            self.leave(found)
            return
        mount = found.mount
        if mount is not None and is_mount(attributes):
            self._mounts += 1
            mount = self._mounts
        branch = Branch(path, mount, attributes.ino)
        if len(self._waiting) < _MOST_NODES:
            branch.node, found.node = found.node, None
        else:
            self.leave(found)
        self._waiting.append(branch)

    def _fail(self, branch: Branch, error: VuserdError) -> None:
        if not (isinstance(error, FileError) and error.number in _GONE):
            self.problems.append((branch.path, error))
        self._leave(branch)

    def _leave(self, branch: Branch) -> None:
        """Close a directory and give its node back, unless that is where the tree begins.

        While names are looked up in it the backend has to know it: it may be told to forget it
        before it comes to them.
        """
        self._close(branch)
        branch.is_left = branch.lookups > 0
        if branch is not self._top and branch.node is not None and not branch.is_left:
            self._in_use.nodes.give_back(branch.node)
            branch.node = None

    def _close(self, branch: Branch) -> None:
        handle, branch.handle = branch.handle, None
        if handle is not None:
            self._opened -= 1
            assert branch.node is not None
            self._in_use.session.lane.post(fuse.releasedir(branch.node, handle))

    @property
    def _in_use(self) -> FileSystem:
        assert self._files is not None
        return self._files

    @staticmethod
    def _require_same(branch: Branch, attributes: Attributes, *, elsewhere: bool) -> None:
        if branch.given and (elsewhere or attributes.ino != branch.ino):
            raise replaced()


def _are_old(columns: AttributeColumns) -> list[bool]:
    """Return of each entry whether it has not changed for so long that its version is settled."""
    modified, changed = columns.column("mtime"), columns.column("ctime")
    recent = time.time() - _LONG_SETTLED
    if max(modified, default=0) < recent and max(changed, default=0) < recent:
        return [True] * len(changed)
    return [max(times) < recent for times in zip(modified, changed, strict=True)]


def _is_told_apart(attributes: Attributes) -> bool:
    """Return whether the backend can tell a file from others, as Node.is_identified has it."""
    return bool(attributes.ino or is_mount(attributes))
