"""Procedures that find what a path leads to now, and open it, and lose nothing that they bring.

A lookup count or a handle that a procedure does not return goes back to the backend, however the
procedure ends.
"""

import errno
import stat
from typing import Final, NamedTuple, TypeAlias

from protocol import fuse
from protocol.fuse import Attributes, FileHandle, NodeId
from vuserd.device.jobs import Ask
from vuserd.device.lane.lane import Lane
from vuserd.device.procedure import Procedure
from vuserd.device.request import Undo
from vuserd.device.results import Failed, Result, body_of
from vuserd.errors import BackendTimeout, FileError
from vuserd.fs.nodes import Hold, Node, NodeTable, root_node
from vuserd.fs.paths import components, resolve

#: The results of LOOKUPs made ahead, before it is known whether the path leads there.
_Answers: TypeAlias = "dict[tuple[NodeId, bytes], Result]"

#: Errors of openat2(2) after a concurrent rename, which the backend passes on.
_RACED: Final = frozenset({errno.EAGAIN, errno.EXDEV})
#: How often such a lookup is tried.
ATTEMPTS: Final = 10


class _Way(NamedTuple):
    """Where a path led last time."""

    #: The names to look up, and the directories that they were in.
    steps: list[tuple[NodeId, bytes]]
    #: The node at its end; None if that is not known.
    end: Node | None


def was_raced(answer: Result) -> bool:
    """Return whether a LOOKUP has to be repeated."""
    return (
        isinstance(answer, Failed)
        and isinstance(answer.error, FileError)
        and answer.error.number in _RACED
    )


class Lookups:
    """The procedures of one session.

    Args:
        lane: where requests go.
        nodes: the session's.
        tells_mounts: whether the backend marks mounts; if not, any file may be on another file
            system.

    """

    def __init__(self, lane: Lane, nodes: NodeTable, *, tells_mounts: bool) -> None:
        self._lane = lane
        self._nodes = nodes
        self._root_is_elsewhere = not tells_mounts

    def resolve(self, path: bytes, hold: Hold, *, follow: bool) -> Procedure[Node]:
        """Return the node that ``path`` leads to now, in use as long as ``hold``.

        Every name is looked up. If nodes of earlier calls suggest which directories are on the way,
        all names are looked up at once, and an answer is used only if it is about the directory
        that the path really leads through.
        """
        root = root_node(elsewhere=self._root_is_elsewhere)
        names = components(path)
        way = self._known_way(root, names, hold)
        if len(way.steps) < 2:
            return (yield from self._resolved(root, names, {}, hold, follow=follow))
        answers = yield self._lookups(way)
        answered = dict(zip(way.steps, answers, strict=True))
        return (yield from self._resolved(root, names, answered, hold, follow=follow))

    def resolve_and_open(
        self, path: bytes, hold: Hold
    ) -> Procedure[tuple[Node, FileHandle | None]]:
        """Return the node that ``path`` leads to now, as in :meth:`resolve`, and perhaps a handle.

        The file that the path led to last time is opened in the same round, since it is the same
        one mostly. It counts only if it is; otherwise the handle is None, as where OPEN failed. The
        caller returns a handle by :meth:`release`.

        Raises:
            BackendTimeout: OPEN of it was not answered in time, and is not sent again for that.

        """
        root = root_node(elsewhere=self._root_is_elsewhere)
        names = components(path)
        way = self._known_way(root, names, hold)
        guess = way.end
        if guess is None or not stat.S_ISREG(guess.attributes.mode) or not guess.is_identified:
            return (yield from self.resolve(path, hold, follow=True)), None
        asked = [*self._lookups(way), Ask(fuse.open(guess.id), undo=self._undo_open(guess))]
        *answers, opened = yield asked
        handle = None
        if not isinstance(opened, Failed):
            handle = self._lane.decoded(fuse.decode_open, body_of(opened))
        is_it = False
        try:
            answered = dict(zip(way.steps, answers, strict=True))
            node = yield from self._resolved(root, names, answered, hold, follow=True)
            is_it = node is guess
        finally:
            if handle is not None and not is_it:
                self.release(guess, handle)
        if is_it and isinstance(opened, Failed) and isinstance(opened.error, BackendTimeout):
            raise opened.error.again()
        return node, handle if is_it else None

    def _resolved(
        self, root: Node, names: list[bytes], answers: _Answers, hold: Hold, *, follow: bool
    ) -> Procedure[Node]:
        """Return the node that names lead to, by answers that were asked for ahead and others."""

        def lookup(directory: Node, name: bytes) -> Procedure[Node]:
            require_identity(directory)
            answer = answers.pop((directory.id, name), None)
            if answer is None or was_raced(answer):
                return (yield from self.look_up(directory, name, hold))
            return self._found(body_of(answer), directory, name, hold)

        try:
            node = yield from resolve(
                root, names, follow=follow, lookup=lookup, readlink=self.readlink
            )
        finally:
            for answer in answers.values():
                if not isinstance(answer, Failed):
                    self._lane.decoded(self.undo_lookup, body_of(answer))
        if node is root:
            node.attributes = yield from self.getattr(node)
        return node

    def look_up(self, directory: Node, name: bytes, hold: Hold) -> Procedure[Node]:
        """Return the node of ``name`` in ``directory``, in use as long as ``hold``.

        Raises:
            FileError: ENOENT, or what the backend says.

        """
        require_identity(directory)
        asked = [Ask(fuse.lookup(directory.id, name), undo=self.undo_lookup)]
        for _ in range(ATTEMPTS):
            [answer] = yield asked
            if not was_raced(answer):
                break
        return self._found(body_of(answer), directory, name, hold)

    def _found(self, body: bytes, directory: Node, name: bytes, hold: Hold) -> Node:
        entry = self._lane.decoded(fuse.decode_lookup, body)
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

    def getattr(self, node: Node) -> Procedure[Attributes]:
        """Return a node's attributes as they are now."""
        [answer] = yield [Ask(fuse.getattr(node.id))]
        return self._lane.decoded(fuse.decode_attributes, body_of(answer))

    def readlink(self, node: Node) -> Procedure[bytes]:
        """Return the target of a symlink, whatever it is."""
        require_identity(node)
        [answer] = yield [Ask(fuse.readlink(node.id))]
        return self._lane.decoded(fuse.decode_readlink, body_of(answer))

    def open(self, node: Node) -> Procedure[FileHandle]:
        """Open a regular file; the caller returns the handle by :meth:`release`."""
        require_identity(node)
        [answer] = yield [Ask(fuse.open(node.id), undo=self._undo_open(node))]
        return self._lane.decoded(fuse.decode_open, body_of(answer))

    def _undo_open(self, node: Node) -> Undo:
        return lambda body: self.release(node, fuse.decode_open(body))

    def release(self, node: Node, handle: FileHandle) -> None:
        """Close a file."""
        self._lane.post(fuse.release(node.id, handle))


def require_identity(node: Node) -> None:
    """Refuse a file that the backend may take for another one, whose bytes it would return.

    Raises:
        FileError: EIO.

    """
    if not node.is_identified:
        raise not_told_apart()


def not_told_apart() -> FileError:
    """Return the error of a file that the backend may take for another one."""
    return FileError(errno.EIO, "its file system gives it no inode number of its own")
