"""FUSE operations on nodes, which leak no lookup count and no handle when a call is cancelled."""

import errno
import functools
import stat
from typing import Final, NamedTuple, TypeAlias
from weakref import WeakValueDictionary

from outcome import Error, Value

from protocol import fuse
from protocol.dirent import LONGEST_RECORD
from protocol.dirent_columns import (
    AttributeColumns,
    DirectoryColumns,
    decode_directory_columns,
)
from protocol.fuse import Attributes, FileHandle, NodeId
from vuserd.device.jobs import Ask
from vuserd.device.payloads import given_back
from vuserd.device.request import Result, Undo
from vuserd.device.session import Session
from vuserd.errors import FileError
from vuserd.fs.nodes import Hold, Node, NodeTable, root_node
from vuserd.fs.paths import components, resolve
from vuserd.tasks.budget import Budget
from vuserd.tasks.turns import take_turn
from vuserd.users.asker import ASKER, Asker

#: The results of LOOKUPs made ahead, before it is known whether the path leads there.
_Answers: TypeAlias = "dict[tuple[NodeId, bytes], Result]"

#: Errors of openat2(2) after a concurrent rename, which the backend passes on.
_RACED: Final = frozenset({errno.EAGAIN, errno.EXDEV})
#: How often such a lookup is tried.
ATTEMPTS: Final = 10
#: The most replies in a row without an entry to show: "." and ".." may have one each.
_MOST_BARREN: Final = 16
#: Bytes of a directory that are read at once. No other task runs while they are decoded, and a
#: backend with one thread serves no other request while it reads them. So they are enough for three
#: hundred entries with attributes; for some thousands if the directory goes on and no other user
#: wants anything.
_BATCH_SIZE: Final = 512 << 10
_SMALL_BATCH: Final = 64 << 10
#: Entries of a batch after which a directory probably goes on.
_MANY: Final = 200
#: The type of a directory: DT_DIR of dirent.h.
_DIRECTORY: Final = stat.S_IFDIR >> 12
#: Large requests of a user's that may be under way: of those that wait no size is settled yet.
_BATCHES: Final = 4


class _Way(NamedTuple):
    """Where a path led last time."""

    #: The names to look up, and the directories that they were in.
    steps: list[tuple[NodeId, bytes]]
    #: The node at its end; None if that is not known.
    end: Node | None


def was_raced(answer: Result) -> bool:
    """Return whether a LOOKUP has to be repeated."""
    return (
        isinstance(answer, Error)
        and isinstance(answer.error, FileError)
        and answer.error.number in _RACED
    )


class NodeOperations:
    """The operations on one session of which :class:`~vuserd.fs.filesystem.FileSystem` is made."""

    def __init__(self, session: Session, nodes: NodeTable, *, tells_mounts: bool) -> None:
        self._session = session
        self._channel = session.channel
        self._nodes = nodes
        #: How many large portions each user may have under way; kept while it has or wants any.
        self._batches = WeakValueDictionary[Asker | None, Budget]()
        #: If the backend does not mark mounts, any file may be on another file system.
        self.tells_mounts = bool(tells_mounts or session.init.flags & fuse.InitFlag.SUBMOUNTS)

    async def resolve(self, path: bytes, hold: Hold, *, follow: bool) -> Node:
        """Return the node that ``path`` leads to now, in use as long as ``hold``.

        Every name is looked up. If nodes of earlier calls suggest which directories are on the way,
        all names are looked up at once, and an answer is used only if it is about the directory
        that the path really leads through.
        """
        root = root_node(elsewhere=not self.tells_mounts)
        names = components(path)
        way = self._known_way(root, names, hold)
        if len(way.steps) < 2:
            return await self._resolved(root, names, {}, hold, follow=follow)
        answers = await self._channel.ask_all(self._lookups(way))
        answered = dict(zip(way.steps, answers, strict=True))
        return await self._resolved(root, names, answered, hold, follow=follow)

    async def resolve_and_open(self, path: bytes, hold: Hold) -> tuple[Node, FileHandle | None]:
        """Return the node that ``path`` leads to now, as in :meth:`resolve`, and perhaps a handle.

        The file that the path led to last time is opened in the same round, since it is the same
        one mostly. It counts only if it is; otherwise the handle is None, as where OPEN failed. The
        caller returns a handle by :meth:`release`.
        """
        root = root_node(elsewhere=not self.tells_mounts)
        names = components(path)
        way = self._known_way(root, names, hold)
        guess = way.end
        if guess is None or not stat.S_ISREG(guess.attributes.mode) or not guess.is_identified:
            return await self.resolve(path, hold, follow=True), None
        asked = [*self._lookups(way), Ask(fuse.open(guess.id), undo=self._undo_open(guess))]
        *answers, opened = await self._channel.ask_all(asked)
        handle = None
        if isinstance(opened, Value):
            handle = self._channel.decoded(fuse.decode_open, opened.value)
        is_it = False
        try:
            answered = dict(zip(way.steps, answers, strict=True))
            node = await self._resolved(root, names, answered, hold, follow=True)
            is_it = node is guess
        finally:
            if handle is not None and not is_it:
                self.release(guess, handle)
        return node, handle if is_it else None

    async def _resolved(
        self, root: Node, names: list[bytes], answers: _Answers, hold: Hold, *, follow: bool
    ) -> Node:
        """Return the node that names lead to, by answers that were asked for ahead and others."""

        async def lookup(directory: Node, name: bytes) -> Node:
            _require_identity(directory)
            answer = answers.pop((directory.id, name), None)
            if answer is None or was_raced(answer):
                return await self.look_up(directory, name, hold)
            body = answer.unwrap()
            assert isinstance(body, bytes)
            return self._found(body, directory, name, hold)

        try:
            node = await resolve(root, names, follow=follow, lookup=lookup, readlink=self.readlink)
        finally:
            for answer in answers.values():
                if isinstance(answer, Value):
                    self._channel.decoded(self.undo_lookup, answer.value)
        if node is root:
            node.attributes = await self.getattr(node)
        return node

    async def look_up(self, directory: Node, name: bytes, hold: Hold) -> Node:
        """Return the node of ``name`` in ``directory``, in use as long as ``hold``.

        Raises:
            FileError: ENOENT, or what the backend says.

        """
        _require_identity(directory)
        request = fuse.lookup(directory.id, name)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                body = await self._channel.call(request, bytes, self.undo_lookup)
                break
            except FileError as error:
                if error.number not in _RACED or attempt == ATTEMPTS:
                    raise
        return self._found(body, directory, name, hold)

    def _found(self, body: bytes, directory: Node, name: bytes, hold: Hold) -> Node:
        entry = self._channel.decoded(fuse.decode_lookup, body)
        if entry is None:
            raise FileError(errno.ENOENT)
        if entry.node in (fuse.ROOT_ID, directory.id):
            self._nodes.forget(entry.node)
            raise not_told_apart()
        return hold.add(entry, directory, name)

    def undo_lookup(self, body: bytes) -> None:
        """Give back what a LOOKUP brought that is not wanted any more."""
        entry = fuse.decode_lookup(body)
        if entry is not None:
            self._nodes.forget(entry.node)

    def _known_way(self, root: Node, path: list[bytes], hold: Hold) -> _Way:
        """Return where a path led last time, as far as that is known; its nodes stay so."""
        steps: list[tuple[NodeId, bytes]] = []
        here: Node | None = root
        for name in path:
            if here is None or name in (b"", b".", b".."):
                return _Way(steps, None)
            steps.append((here.id, name))
            here = self._nodes.child(here.id, name)
            if here is not None:
                hold.join(here)
        return _Way(steps, here)

    def _lookups(self, way: _Way) -> list[Ask]:
        return [Ask(fuse.lookup(node, name), undo=self.undo_lookup) for node, name in way.steps]

    async def getattr(self, node: Node) -> Attributes:
        """Return a node's attributes as they are now."""
        return await self._channel.call(fuse.getattr(node.id), fuse.decode_attributes)

    async def readlink(self, node: Node) -> bytes:
        """Return the target of a symlink, whatever it is."""
        _require_identity(node)
        return await self._channel.call(fuse.readlink(node.id), fuse.decode_readlink)

    async def open(self, node: Node) -> FileHandle:
        """Open a regular file; the caller returns the handle by :meth:`release`."""
        _require_identity(node)
        undo = self._undo_open(node)
        return await self._channel.call(fuse.open(node.id), fuse.decode_open, undo)

    def _undo_open(self, node: Node) -> Undo:
        return lambda body: self.release(node, fuse.decode_open(body))

    def release(self, node: Node, handle: FileHandle) -> None:
        """Close a file."""
        self._channel.post(fuse.release(node.id, handle))

    async def open_directory(self, node: Node) -> FileHandle:
        """Open a directory; the caller returns the handle by :meth:`release_directory`."""
        _require_identity(node)

        def release(body: bytes) -> None:
            self.release_directory(node, fuse.decode_open(body))

        return await self._channel.call(fuse.opendir(node.id), fuse.decode_open, release)

    def release_directory(self, node: Node, handle: FileHandle) -> None:
        """Close a directory."""
        self._channel.post(fuse.releasedir(node.id, handle))

    async def is_exhausted(self, error: FileError) -> bool:
        """Return whether an error means that the backend has run out of descriptors.

        A file system may return the same errno; then the backend can still open something else.
        """
        if not error.is_exhaustion:
            return False
        root = root_node()
        try:
            handle = await self.open_directory(root)
        except FileError:
            return True
        self.release_directory(root, handle)
        return False

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
        goes_on = start != 0
        passed: set[int | None] = {start}
        while position is not None and len(entries.names) < limit:
            wish = _Wish(node, handle, position, limit - len(entries.names), goes_on, below)
            batch, position = await self._read_batch(wish, plus=attributes)
            count = len(batch.names)
            goes_on = count >= _MANY
            if attributes:
                batch = await self._with_attributes(node, batch)
            entries.extend(batch)
            barren = 0 if count or position is None else barren + 1
            if position in passed or barren > _MOST_BARREN:
                raise FileError(
                    errno.EIO, "the directory has no end: its file system's offsets lead back"
                )
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
            return await self._read_in_turn(wish, plus=plus)
        except FileError as error:
            if not plus or await self.is_exhausted(error):
                raise
        entries, following = await self._read_in_turn(wish, plus=False)
        return entries.without_nodes(), following

    async def _read_in_turn(
        self, wish: "_Wish", *, plus: bool
    ) -> tuple[DirectoryColumns, int | None]:
        if not wish.goes_on:
            await take_turn()
            return await self._read_buffer(wish, _SMALL_BATCH, plus=plus)
        batches = self._batches.setdefault(ASKER.get(), Budget(_BATCHES))
        if not batches.try_take(1):
            await batches.take(1)
        try:
            # Before the request, not after its reply: what that brings is owed at once.
            most = _BATCH_SIZE if await take_turn() else _SMALL_BATCH
            return await self._read_buffer(wish, most, plus=plus)
        finally:
            batches.give_back(1)

    async def _read_buffer(
        self, wish: "_Wish", most: int, *, plus: bool
    ) -> tuple[DirectoryColumns, int | None]:
        # Room for as many entries as are wanted, with names of the usual length, and few more: with
        # READDIRPLUS each further one costs a descriptor in the backend.
        node, handle, offset, limit, _, below = wish
        size = max(LONGEST_RECORD, limit * (192 if plus else 64))
        size = min(size, self._session.max_read, most)
        request = (fuse.readdirplus if plus else fuse.readdir)(node.id, handle, offset, size)
        decode = functools.partial(decode_directory_columns, plus=plus, after=offset)

        def undo(body: bytes) -> None:
            self._nodes.forget_each(decode(body)[0].nodes)

        with given_back(await self._session.payloads.take(1)) as buffers:
            length = await self._channel.call_into(request, buffers[0], undo if plus else None)
            body = bytes(buffers[0].view[:length])
        entries, following = self._channel.decoded(decode, body)
        owed = entries.nodes
        if len(entries.names) > limit:
            entries = entries.part(0, limit)
            following = entries.offsets[-1]
        if plus:
            entries = _as_looked_up(entries)
            if below is not None and _DIRECTORY in entries.types:
                owed = self._keep_directories(node, entries, owed, below)
            self._nodes.forget_each(owed)
        return entries, following

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
                    found = await self.look_up(node, name, hold)
                except FileError as error:
                    if await self.is_exhausted(error):
                        raise
                    is_there[place] = error.number != errno.ENOENT
                    continue
                entries.nodes[place] = found.id
                entries.attributes[place] = fuse.encode_attributes(found.attributes)
        return _as_looked_up(entries.chosen(is_there))


class _Wish(NamedTuple):
    """A batch of entries to be read: of which directory, from where, how many of them."""

    node: Node
    handle: FileHandle
    offset: int
    limit: int
    goes_on: bool  #: the directory probably has many more entries
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


def _require_identity(node: Node) -> None:
    """Refuse a file that the backend may take for another one, whose bytes it would return.

    Raises:
        FileError: EIO.

    """
    if not node.is_identified:
        raise not_told_apart()


def not_told_apart() -> FileError:
    """Return the error of a file that the backend may take for another one."""
    return FileError(errno.EIO, "its file system gives it no inode number of its own")
