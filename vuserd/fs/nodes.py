"""Keep the nodes of a session, and give every lookup count back to the backend exactly once.

Each LOOKUP and each entry of READDIRPLUS adds one to a node's lookup count in the backend, which
keeps a descriptor for the node until FORGET has given back all of them. Here the counts are kept
exactly. A node that no call uses stays known for a while with one count: it is idle, and leaves
after its time, or earlier as the least recently used one. Counts are given back in batches on the
hiprio queue.

As long as a node is held it is the same file, even if another file has the same attributes, since a
backend tells files apart by device, inode number and mount. So what is kept of a file is kept with
its node.
"""

import math
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Final, Self

import trio

from protocol import fuse
from protocol.fuse import AttributeFlag, Attributes, Entry, NodeId
from vuserd.fs.idle import IdleSet

#: Nodes whose forgets go out together. Few: each may keep a descriptor open in the backend.
_BATCH: Final = 64
#: The most directories that a node's path may have: a backend can make them form a circle.
_DEEPEST: Final = 512
#: The longest time, in seconds, that lookup counts wait for others to fill a batch.
_OWED: Final = 1.0
_SUBMOUNT: Final = int(AttributeFlag.SUBMOUNT)
#: What has no lookup counts to give back: no node, and the root.
_NOT_OWED: Final = (NodeId(0), fuse.ROOT_ID)

#: The root before GETATTR: all that is known is that it is a directory.
_ROOT: Final = Entry(
    fuse.ROOT_ID,
    Attributes._make([0] * len(Attributes._fields))._replace(mode=stat.S_IFDIR),
)


def is_mount(attributes: Attributes) -> bool:
    """Return whether another file system begins at a directory."""
    return bool(attributes.flags & _SUBMOUNT)


class Node:
    """A node of this session: it is owed ``lookups`` counts, and ``users`` keep it from FORGET."""

    __slots__ = (
        *("answer", "attributes", "elsewhere", "id", "lookup", "lookups", "on_drop", "place"),
        "users",
    )

    def __init__(self, entry: Entry, *, elsewhere: bool = False) -> None:
        self.id = entry.node
        #: As of the latest LOOKUP, and the body of the reply to it, if that is where they are from.
        self.attributes = entry.attributes
        self.answer: bytes | None = None
        #: The LOOKUP of its place.
        self.lookup: fuse.Request | None = None
        #: Whether it may be on another file system than the export's root: then its attributes no
        #: longer identify the file once it is not held any more.
        self.elsewhere = elsewhere
        #: Lookup counts to give back; 0 once the table does not know the node any more.
        self.lookups = 0
        self.users = 0
        #: Where it was last found: its directory and its name there.
        self.place: tuple[NodeId, bytes] | None = None
        #: Called when the node is dropped: ends what is kept of the file.
        self.on_drop: Callable[[Node], None] | None = None

    @property
    def is_identified(self) -> bool:
        """Whether the backend can tell it from other files of its file system.

        The backend takes all files with inode number 0 for one, unless it is the root of a mount.
        """
        attributes = self.attributes
        return bool(attributes.ino or is_mount(attributes) or self.id == fuse.ROOT_ID)


class NodeTable:
    """All nodes of one session but the root, which is never looked up and never forgotten.

    Args:
        idle_limit: how many nodes that no call uses stay known.
        idle_time: for how many seconds they do.
        post: sends a request without waiting for a reply.
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
        self._batch_limit = batch_limit
        self._batch = min(_BATCH, batch_limit)
        self._nodes: dict[NodeId, Node] = {}
        self._idle: IdleSet[Node] = IdleSet(idle_time)
        self._children: dict[tuple[NodeId, bytes], Node] = {}
        #: Where borrowed nodes were found, and how many lookup counts they have.
        self._borrowed: dict[NodeId, tuple[NodeId, bytes]] = {}
        self._loans = 0
        self._forgets = Counter[NodeId]()
        #: When the first of the forgets that wait was added.
        self._owed_since = math.inf
        #: Called with the time at which :meth:`expire` has something to do.
        self.on_idle: Callable[[float], None] = lambda _: None

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def lookups(self) -> int:
        """Lookup counts that are still to be given back, without those of forgets in flight."""
        return self._loans + sum(node.lookups for node in self._nodes.values())

    @property
    def room(self) -> int:
        """How many more nodes may be borrowed for later: in all as many as may be idle."""
        return self._idle_limit - self._loans

    def child(self, directory: NodeId, name: bytes) -> Node | None:
        """Return the node last found as ``name`` there, if it is known; it may have moved."""
        return self._children.get((directory, name))

    def path(self, node: NodeId) -> bytes | None:
        """Return the path at which a node was last found, from the root ``/``.

        It has no leading slash if a directory above is not known; it is None if nothing is. The
        names in it may have been looked up at different times.
        """
        names: list[bytes] = []
        place = self._place(node)
        if place is None and node not in self._nodes:
            return b"/" if node == fuse.ROOT_ID else None
        while place is not None and len(names) < _DEEPEST:
            directory, name = place
            names.append(name)
            if directory == fuse.ROOT_ID:
                names.append(b"")
                break
            place = self._place(directory)
        return b"/".join(reversed(names))

    def _place(self, node: NodeId) -> tuple[NodeId, bytes] | None:
        known = self._nodes.get(node)
        return self._borrowed.get(node) if known is None else known.place

    def borrow(self, node: NodeId, directory: NodeId, name: bytes) -> None:
        """Count a lookup that stays outside of the table, until :meth:`give_back`.

        It costs less than :meth:`add`: for nodes of which one thing is asked, and no more.
        """
        self._loans += 1
        self._borrowed[node] = directory, name

    def borrow_directory(self, entry: Entry, above: Node, name: bytes) -> Node | None:
        """Borrow a directory, unless the backend may take it for another one; return its node."""
        elsewhere = above.elsewhere or is_mount(entry.attributes)
        node = Node(entry, elsewhere=elsewhere)
        if entry.node in (0, fuse.ROOT_ID, above.id) or not node.is_identified:
            return None
        self.borrow(entry.node, above.id, name)
        return node

    def give_back(self, node: NodeId) -> None:
        """End a :meth:`borrow`."""
        self._loans -= 1
        self._borrowed.pop(node, None)
        self._forget_in_batch(node, 1)

    def give_back_each(self, nodes: Sequence[NodeId]) -> None:
        """End a :meth:`borrow` of each, which costs less than one at a time."""
        self._loans -= len(nodes)
        for node in nodes:
            self._borrowed.pop(node, None)
        self._owe(nodes)

    def _forget_in_batch(self, node: NodeId, lookups: int) -> None:
        """Do what :meth:`forget` does, as cheaply as can be where it only adds to a batch."""
        forgets = self._forgets
        if 0 < len(forgets) < self._batch - 1:
            forgets[node] = forgets.get(node, 0) + lookups
        else:
            self.forget(node, lookups)

    def add(self, entry: Entry, directory: Node, name: bytes) -> Node:
        """Take over one lookup count, and add a user to the node, until :meth:`leave`."""
        node = self._nodes.get(entry.node)
        if node is None:
            node = self._nodes[entry.node] = Node(entry)
        self.join(node)
        node.attributes = entry.attributes
        node.answer = None
        node.elsewhere = directory.elsewhere or is_mount(entry.attributes)
        node.lookups += 1
        place = (directory.id, name)
        if node.place != place:
            self._displace(node)
            node.place = place
            node.lookup = None
        self._children[place] = node
        return node

    def join(self, node: Node) -> None:
        """Add a user to a node of the table, until :meth:`leave`."""
        if node.users == 0:
            self._idle.discard(node)
        node.users += 1

    def leave(self, node: Node) -> None:
        """Remove a user; a node without any is idle, and the oldest idle one may be forgotten."""
        self.leave_each([node])

    def leave_each(self, nodes: list[Node]) -> None:
        """Remove a user of each, the last one first, and empty the list."""
        now, idle = trio.current_time(), self._idle
        was_empty = not idle
        while nodes:
            node = nodes.pop()
            node.users -= 1
            if node.users:
                continue
            idle.add(node, now)
            if node.lookups > 1:
                surplus, node.lookups = node.lookups - 1, 1
                self._forget_in_batch(node.id, surplus)
        if was_empty and idle and self._idle_limit:
            self.on_idle(idle.due())
        while len(idle) > self._idle_limit:
            self._drop(idle.pop_oldest())

    def forget(self, node: NodeId, lookups: int = 1) -> None:
        """Give back lookup counts that no node of the table has; :meth:`flush` sends the last."""
        self._owe({node: lookups})

    def forget_each(self, nodes: Sequence[NodeId]) -> None:
        """Give back one lookup count of each, as :meth:`forget` does; 0 is no node.

        Many are sent at once.
        """
        if len(nodes) < self._batch:
            self._owe(nodes)
            return
        if 0 in nodes or fuse.ROOT_ID in nodes:
            nodes = [node for node in nodes if node not in _NOT_OWED]
        for begin in range(0, len(nodes), self._batch_limit):
            self._post(fuse.batch_forget_each(nodes[begin : begin + self._batch_limit]))

    def _owe(self, forgets: Iterable[NodeId] | Mapping[NodeId, int]) -> None:
        was_empty = not self._forgets
        self._forgets.update(forgets)
        for none in _NOT_OWED:
            self._forgets.pop(none, None)
        if was_empty and self._forgets:
            self._owed_since = trio.current_time()
            self.on_idle(self._owed_since + _OWED)
        if len(self._forgets) >= self._batch:
            self.flush()

    def flush(self) -> None:
        """Send the forgets that wait for a full batch."""
        forgets = [*self._forgets.items()]
        self._forgets.clear()
        self._owed_since = math.inf
        for begin in range(0, len(forgets), self._batch_limit):
            self._post(fuse.batch_forget(forgets[begin : begin + self._batch_limit]))

    def forget_idle(self) -> None:
        """Forget every node that has no user."""
        self.expire(math.inf)

    def due(self) -> float:
        """Return when :meth:`expire` next has something to do; infinity for never."""
        return min(self._idle.due(), self._owed_since + _OWED)

    def expire(self, now: float) -> None:
        """Forget idle nodes whose time is over, and send forgets that have waited long enough."""
        for node in self._idle.pop_due(now):
            self._drop(node)
        self.flush()

    def close(self) -> None:
        """Forget all nodes without users, and each other node when its last user leaves."""
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

    def again(self, node: Node) -> None:
        """Take over one more lookup count of a node that is in use, where nothing has changed."""
        node.lookups += 1
        node.users += 1
        self._nodes.append(node)

    def join(self, node: Node) -> None:
        """Use a node of the table, too."""
        if node.users:
            node.users += 1
        else:
            self._table.join(node)
        self._nodes.append(node)

    def leave(self) -> None:
        """End the use of all of them."""
        self._table.leave_each(self._nodes)

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
    """Return the root as a node: a directory outside the table, without lookup counts.

    It has no name to look up, so GETATTR alone tells its other attributes. If the backend does not
    mark directories that are mounts, any file may be ``elsewhere``.
    """
    return Node(_ROOT, elsewhere=elsewhere)
