"""Nodes that the backend looked up for us, and the lookup counts that it is owed back.

Each LOOKUP and each entry of READDIRPLUS adds one to a node's lookup count in the backend, which
keeps a descriptor for the node until all of them are given back by FORGET. Here the counts are kept
exactly. A node that nobody uses stays known for a while with one count (idle; the least recently
used goes first, and each after its time), and what is given back goes out in batches on the hiprio
queue.

As long as a node is held it is the same file, whatever else has its attributes: a backend tells
files apart by device, inode number and mount. So what is kept of a file is kept with its node.
"""

import math
import stat
from collections.abc import Callable
from itertools import starmap
from types import TracebackType
from typing import Final, Self

import trio

from protocol import fuse
from protocol.fuse import AttributeFlag, Attributes, Entry, Forget, NodeId
from vuserd.fs.idle import IdleSet

#: Nodes whose forgets go out together. Few: each may keep a descriptor open in the backend.
_BATCH: Final = 64
#: Directories above a node that are looked at for its path: a backend can make them go in a circle.
_DEEPEST: Final = 512
#: Seconds for which lookup counts may be owed that wait for others to be given back with them.
_OWED: Final = 1.0
_SUBMOUNT: Final = int(AttributeFlag.SUBMOUNT)

#: The root before GETATTR: a directory, that is all.
_ROOT: Final = Entry(
    fuse.ROOT_ID,
    Attributes._make([0] * len(Attributes._fields))._replace(mode=stat.S_IFDIR),
)


class Node:
    """A node of this session: ``lookups`` counts are ours, ``users`` holds keep it from FORGET."""

    __slots__ = ("attributes", "elsewhere", "id", "lookups", "on_drop", "place", "users")

    def __init__(self, entry: Entry, *, elsewhere: bool = False) -> None:
        self.id = entry.node
        #: As the latest LOOKUP told them.
        self.attributes = entry.attributes
        #: Whether it may be on another file system than the export's root: then its attributes do
        #: not say which file it is once it is not held any more.
        self.elsewhere = elsewhere
        #: 0 once the table does not know it any more.
        self.lookups = 0
        self.users = 0
        #: Where it was found last: its directory and its name there.
        self.place: tuple[NodeId, bytes] | None = None
        #: Called when it is held no more: ends what is kept of the file.
        self.on_drop: Callable[[Node], None] | None = None

    @property
    def is_identified(self) -> bool:
        """Whether the backend can tell it from other files of its file system.

        Where inode numbers are 0, it takes all of them for one. The root of a mount is only one.
        """
        attributes = self.attributes
        return bool(attributes.ino or attributes.flags & _SUBMOUNT or self.id == fuse.ROOT_ID)


class NodeTable:
    """All nodes of one session but the root, which is never looked up and never forgotten.

    Args:
        idle_limit: how many nodes that nobody uses stay known.
        idle_time: for how many seconds.
        post: sends a request that nobody waits for.
        batch_limit: the most forgets in one BATCH_FORGET.

    """

    def __init__(
        self,
        idle_limit: int,
        idle_time: float,
        post: Callable[[fuse.Request], None],
        batch_limit: int,
    ) -> None:
        self._idle_limit = idle_limit if idle_time else 0
        self._post = post
        self._batch = min(_BATCH, batch_limit)
        self._nodes: dict[NodeId, Node] = {}
        self._idle: IdleSet[Node] = IdleSet(idle_time)
        self._children: dict[tuple[NodeId, bytes], Node] = {}
        self._forgets: dict[NodeId, int] = {}
        #: When the first of those began to wait.
        self._owed_since = math.inf
        #: Called when there is something to be done, with the time of that.
        self.on_idle: Callable[[float], None] = lambda _: None

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def lookups(self) -> int:
        """Lookup counts that the backend is owed, forgets on their way not counted."""
        return sum(node.lookups for node in self._nodes.values())

    def child(self, directory: NodeId, name: bytes) -> Node | None:
        """Return the node that was found there last, if it is still known; it may have moved."""
        return self._children.get((directory, name))

    def path(self, node: NodeId) -> bytes | None:
        """Return where a node was found last: ``/`` and names from the root on.

        Without a slash in front where a directory above is not known; None where nothing is. What
        is known of several nodes can be of different times.
        """
        names: list[bytes] = []
        here = self._nodes.get(node)
        if here is None:
            return b"/" if node == fuse.ROOT_ID else None
        while here is not None and here.place is not None and len(names) < _DEEPEST:
            directory, name = here.place
            names.append(name)
            if directory == fuse.ROOT_ID:
                names.append(b"")
                break
            here = self._nodes.get(directory)
        return b"/".join(reversed(names))

    def add(self, entry: Entry, directory: Node, name: bytes) -> Node:
        """Take over one lookup count; the node gets one user, to be ended by :meth:`leave`."""
        node = self._nodes.get(entry.node)
        if node is None:
            node = self._nodes[entry.node] = Node(entry)
        self.join(node)
        node.attributes = entry.attributes
        node.elsewhere = directory.elsewhere or bool(entry.attributes.flags & _SUBMOUNT)
        node.lookups += 1
        place = (directory.id, name)
        if node.place != place:
            self._displace(node)
            node.place = place
        self._children[place] = node
        return node

    def join(self, node: Node) -> None:
        """Give a node of the table one more user."""
        if node.users == 0:
            self._idle.discard(node)
        node.users += 1

    def leave(self, node: Node) -> None:
        """End one use of a node; unused it is idle, and the oldest idle one may have to go."""
        node.users -= 1
        if node.users:
            return
        was_empty = not self._idle
        self._idle.add(node)
        if was_empty and self._idle_limit:
            self.on_idle(self._idle.due())
        if node.lookups > 1:
            self.forget(node.id, node.lookups - 1)
            node.lookups = 1
        while len(self._idle) > self._idle_limit:
            self._drop(self._idle.pop_oldest())

    def forget(self, node: NodeId, lookups: int = 1) -> None:
        """Give lookup counts back that no node of the table holds; :meth:`flush` sends the rest."""
        if node == fuse.ROOT_ID:
            return
        if not self._forgets:
            self._owed_since = trio.current_time()
            self.on_idle(self._owed_since + _OWED)
        self._forgets[node] = self._forgets.get(node, 0) + lookups
        if len(self._forgets) >= self._batch:
            self.flush()

    def flush(self) -> None:
        """Send the forgets that wait."""
        if self._forgets:
            self._owed_since = math.inf
            self._post(fuse.batch_forget([*starmap(Forget, self._forgets.items())]))
            self._forgets.clear()

    def forget_idle(self) -> None:
        """Forget every node that nobody uses."""
        for node in self._idle.pop_due():
            self._drop(node)
        self.flush()

    def due(self) -> float:
        """Return when :meth:`expire` has something to do: never is infinity."""
        return min(self._idle.due(), self._owed_since + _OWED)

    def expire(self, now: float) -> None:
        """Forget nodes whose time is over, and send what is owed."""
        for node in self._idle.pop_due(now):
            self._drop(node)
        self.flush()

    def close(self) -> None:
        """Forget all that nobody uses, and the others as soon as they are left."""
        self._idle_limit = 0
        self.forget_idle()

    def _drop(self, node: Node) -> None:
        del self._nodes[node.id]
        self._displace(node)
        self.forget(node.id, node.lookups)
        node.lookups = 0
        ended, node.on_drop = node.on_drop, None
        if ended is not None:
            ended(node)

    def _displace(self, node: Node) -> None:
        if node.place is not None and self._children.get(node.place) is node:
            del self._children[node.place]


class Hold:
    """The nodes that one call uses, left together at the end of its ``with`` block."""

    def __init__(self, table: NodeTable) -> None:
        self._table = table
        self._nodes: list[Node] = []

    def add(self, entry: Entry, directory: Node, name: bytes) -> Node:
        """Take over the lookup count of ``entry``, found as ``name`` in ``directory``."""
        node = self._table.add(entry, directory, name)
        self._nodes.append(node)
        return node

    def join(self, node: Node) -> None:
        """Use a node of the table, too."""
        self._table.join(node)
        self._nodes.append(node)

    def leave(self) -> None:
        """End the use of all of them."""
        while self._nodes:
            self._table.leave(self._nodes.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()


def root_node(*, elsewhere: bool = False) -> Node:
    """Return the root as a node: a directory that belongs to no table and owes nothing.

    It has no name to look up, so its other attributes are only known from GETATTR. Where the
    backend does not say which directories are mounts, all files may be ``elsewhere``.
    """
    return Node(_ROOT, elsewhere=elsewhere)
