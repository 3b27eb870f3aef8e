"""Procedures that find what a path leads to now, and open it, and lose nothing that they bring.

A lookup count or a handle that a procedure does not return goes back to the backend, however the
procedure ends.
"""

import errno
import stat
from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from protocol import fuse
from protocol.fuse import Attributes, Entry, FileHandle, NodeId
from vuserd.device.lane.lane import Lane
from vuserd.device.procedure import Procedure
from vuserd.device.request import Ask, Asked, Undo
from vuserd.device.results import MISSING, Failed, Result, body_of
from vuserd.errors import BackendTimeout, FileError
from vuserd.fs.nodes import Hold, Node, NodeTable, root_node
from vuserd.fs.paths import components, resolve

#: The results of LOOKUPs made ahead, before it is known whether the path leads there.
_Answers: TypeAlias = dict[tuple[NodeId, bytes], Result]

#: Errors of openat2(2) after a concurrent rename, which the backend passes on.
_RACED: Final = frozenset({errno.EAGAIN, errno.EXDEV})
#: How often such a lookup is tried.
ATTEMPTS: Final = 10
#: Components of a path that no directory is asked for.
_ODD: Final = frozenset({b"", b".", b".."})


class _Way(NamedTuple):
    """Where a path led last time, as far as that is known; its nodes are in use."""

    #: The LOOKUPs of names on it, the directories that these were in, and what was found there.
    asked: list[Asked]
    places: list[tuple[NodeId, bytes]]
    found: list[Node | None]


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
        names = components(path)
        way = self._known_way(names, hold)
        answers = (yield way.asked) if way.asked else []
        return (yield from self._arrive(names, way, answers, hold, follow=follow))

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
        names = components(path)
        way = self._known_way(names, hold)
        guess = way.found[-1] if len(way.found) == len(names) else None
        if guess is None or not stat.S_ISREG(guess.attributes.mode) or not guess.is_identified:
            answers = (yield way.asked) if way.asked else []
            return (yield from self._arrive(names, way, answers, hold, follow=True)), None
        ask_open = Ask(fuse.open(guess.id), undo=self._undo_open(guess))
        *answers, opened = yield [*way.asked, ask_open]
        handle = None
        if not isinstance(opened, Failed):
            handle = self._lane.decoded(fuse.decode_open, body_of(opened))
        is_it = False
        try:
            node = yield from self._arrive(names, way, answers, hold, follow=True)
            is_it = node is guess
        finally:
            if handle is not None and not is_it:
                self.release(guess, handle)
        if is_it and isinstance(opened, Failed) and isinstance(opened.error, BackendTimeout):
            raise opened.error.again()
        return node, handle if is_it else None

    def _arrive(
        self, names: list[bytes], way: _Way, answers: Sequence[Result], hold: Hold, *, follow: bool
    ) -> Procedure[Node]:
        """Return the node that names lead to, by answers that were asked for ahead and others."""
        root = root_node(elsewhere=self._root_is_elsewhere)
        directories = [root]
        taken, end = 0, len(names)
        left: _Answers = {}
        try:
            for answer in answers:
                is_end, here = taken + 1 == end, directories[-1]
                found = self._found_ahead(way, taken, answer, here, is_end, follow)
                if found is None:
                    break
                taken += 1  # from here on it is not undone any more
                if isinstance(found, Node):
                    node = found
                    hold.again(node)
                else:
                    node = self._add(found, body_of(answer), here, names[taken - 1], hold)
                if is_end:
                    return node
                directories.append(node)
            ahead = names[taken:]
            while taken < len(answers):
                place, answer = way.places[taken], answers[taken]
                taken += 1
                self._undo(left.pop(place, MISSING))  # of directories that form a circle
                left[place] = answer
            lookup = partial(self._looked_up, left, hold)
            node = yield from resolve(
                directories, ahead, follow=follow, lookup=lookup, readlink=self.readlink
            )
        finally:
            for answer in (*answers[taken:], *left.values()):
                self._undo(answer)
        if node is root:
            node.attributes = yield from self.getattr(node)
        return node

    def _found_ahead(
        self,
        way: _Way,
        place: int,
        answer: Result,
        here: Node,
        is_end: bool,  # noqa: FBT001 - it is called for each name
        follow: bool,  # noqa: FBT001
    ) -> Node | Entry | None:
        """Return what an answer that was asked for ahead has found, as a node if that is as before.

        None: it takes more to see where the way goes on.
        """
        directory, name = way.places[place]
        if type(answer) is not bytes or here.id != directory or not here.is_identified:
            return None
        known = way.found[place]
        if known is not None and (
            known.answer != answer
            or known.place != (directory, name)
            or (here.elsewhere and not known.elsewhere)
        ):
            known = None
        found = known or self._lane.decoded(fuse.decode_lookup, answer)
        if found is None:
            return None
        mode = found.attributes.mode
        if not (stat.S_ISDIR(mode) or is_end) or (stat.S_ISLNK(mode) and follow):
            return None
        return found

    def _undo(self, answer: Result) -> None:
        """Give back what an answer brought that is not wanted any more."""
        if not isinstance(answer, Failed):
            self._lane.decoded(self.undo_lookup, body_of(answer))

    def _looked_up(
        self, answers: _Answers, hold: Hold, directory: Node, name: bytes
    ) -> Procedure[Node]:
        """Return the node of a name, by the answer that was asked for ahead if there is one."""
        require_identity(directory)
        answer = answers.pop((directory.id, name), None)
        if answer is None or was_raced(answer):
            return (yield from self.look_up(directory, name, hold))
        return self._found(body_of(answer), directory, name, hold)

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
        return self._add(entry, body, directory, name, hold)

    def _add(self, entry: Entry, body: bytes, directory: Node, name: bytes, hold: Hold) -> Node:
        """Take over the lookup count that an answer brought, or give it back if that is odd."""
        if entry.node in (fuse.ROOT_ID, directory.id):
            self._nodes.forget(entry.node)
            raise not_told_apart()
        node = hold.add(entry, directory, name)
        node.answer = body
        return node

    def undo_lookup(self, body: bytes) -> None:
        """Give back what a LOOKUP brought that is not wanted any more."""
        entry = fuse.decode_lookup(body)
        if entry is not None:
            self._nodes.forget(entry.node)

    def _known_way(self, names: list[bytes], hold: Hold) -> _Way:
        """Return where a path led last time, as far as that is known."""
        way = _Way([], [], [])
        child, undo = self._nodes.child, self.undo_lookup
        directory: NodeId = fuse.ROOT_ID
        for name in names:
            if name in _ODD:
                break
            node = child(directory, name)
            request = None if node is None else node.lookup
            if request is None:
                request = fuse.lookup(directory, name)
            way.asked.append((request, None, undo))
            way.places.append((directory, name))
            way.found.append(node)
            if node is None:
                break
            node.lookup = request
            hold.join(node)
            directory = node.id
        return way

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
