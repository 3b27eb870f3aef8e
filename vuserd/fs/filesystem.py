"""The operations on an export's file system: stat, readlink, statfs, listings, open."""

import errno
import math
import stat
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakValueDictionary

import trio

from protocol import fuse
from protocol.fuse import Attributes, FileSystemStatistics
from vuserd.device.layout import REQUEST_ROOM
from vuserd.device.procedure import Found, Procedure, carry_out
from vuserd.device.session import Session
from vuserd.errors import FileError
from vuserd.fs.directories.entries import DirectoryEntries
from vuserd.fs.filetype import describe_type
from vuserd.fs.idle import Alarm, IdleSet
from vuserd.fs.kept import Kept
from vuserd.fs.nodes import Hold, Node, NodeTable
from vuserd.fs.openfile import OpenFile
from vuserd.fs.operations import NodeOperations
from vuserd.fs.owners import Owners
from vuserd.fs.version import TICK, Version, time_to_settle
from vuserd.users.asker import Asker

#: How often the attributes of a file that has just changed are read again, a tick later.
_SETTLING: Final = 3
#: The longest wait for a version to settle, in seconds. Where timestamps are coarser than that, the
#: deliveries compare two readings instead.
_MOST_SETTLING: Final = 2 * TICK
#: The largest size of a file in Linux.
_MOST_BYTES: Final = (1 << 63) - 1
#: Seconds for which a file stays open for a client that does not use it.
_OPEN_TIME: Final = 60.0
#: The fewest seconds between two looks at what is idle.
_LEAST_PAUSE: Final = 0.5


class FileSystem:
    """The files behind one session; a new session needs a new one.

    Args:
        session: the session with the backend that has the files.
        idle_nodes: how many nodes that no call uses stay known.
        idle_time: for how many seconds they do, and the directories of unfinished listings.
        device: the file system of the export's root, as the kernel names it: its device and its id;
            None where that is not known.
        tells_mounts: whether the backend marks directories that are mounts. A backend that says in
            INIT that it does is believed; QEMU's does so by an option, and does not say so.

    """

    def __init__(
        self,
        session: Session,
        idle_nodes: int,
        idle_time: float = 5.0,
        *,
        tells_mounts: bool = False,
        device: tuple[int, int] | None = None,
    ) -> None:
        self.device = device
        #: How the backend sees the owners of files; None where it sees what the host has.
        self.owners: Owners | None = None
        self.session = session
        self._lane = session.lane
        capacity = fuse.batch_forget_capacity(REQUEST_ROOM)
        self.nodes = NodeTable(idle_nodes, idle_time, session.lane.post, capacity)
        self.operations = NodeOperations(session, self.nodes, tells_mounts=tells_mounts)
        #: Procedures that find what is at a path.
        self.lookups = self.operations.lookups
        self.directories = DirectoryEntries(session, self.nodes, self.operations)
        #: What clients keep open between two calls: files and unfinished listings.
        self.open_files: IdleSet[Kept] = IdleSet(_OPEN_TIME)
        self.open_listings: IdleSet[Kept] = IdleSet(idle_time)
        #: Each is held while a page of a tree is filled for that user; kept while it is wanted.
        self.filling = WeakValueDictionary[Asker | None, trio.Lock]()
        self._alarm = Alarm()
        self.nodes.on_idle = self._alarm.set
        self._is_closed = False

    async def expire(self) -> None:
        """End what has been idle for its time, for ever; sleep while nothing is idle."""
        least = -math.inf
        while True:
            due = min(self.nodes.due(), self.open_files.due(), self.open_listings.due())
            now = trio.current_time()
            if now < max(due, least):
                await self._alarm.wait(max(due, least))
                continue
            least = now + _LEAST_PAUSE
            _lapse(self.open_files.pop_due(now))
            _lapse(self.open_listings.pop_due(now))
            self.nodes.expire(now)

    def keep(self, kept: Kept) -> None:
        """Let something that a client has open lapse in time, unless it is used before."""
        if self._is_closed:
            kept.lapse()
            return
        idle = self.open_files if kept.is_file else self.open_listings
        idle.add(kept)
        self._alarm.set(idle.due())

    def use(self, kept: Kept) -> None:
        """Stop something that a client has open from lapsing: it is used, or has ended."""
        (self.open_files if kept.is_file else self.open_listings).discard(kept)

    def is_lost(self) -> bool:
        """Return whether the session is over."""
        return self.session.lost

    def close(self) -> None:
        """Give everything back to the backend, if it still listens; keep nothing from now on."""
        self._is_closed = True
        _lapse(self.open_files.pop_due())
        _lapse(self.open_listings.pop_due())
        self.nodes.close()

    async def _do(self, procedure: Procedure[Found]) -> Found:
        return await carry_out(self._lane, procedure)

    async def stat(self, path: bytes, *, follow: bool) -> Attributes:
        """Return the attributes that ``path`` has on the host now."""
        return await self._do(self.attributes(path, follow=follow))

    def attributes(self, path: bytes, *, follow: bool) -> Procedure[Attributes]:
        """Return what :meth:`stat` does, as a procedure."""
        with Hold(self.nodes) as hold:
            return (yield from self.lookups.resolve(path, hold, follow=follow)).attributes

    async def readlink(self, path: bytes) -> bytes:
        """Return the target of the symlink at ``path``, unresolved.

        Raises:
            FileError: EINVAL for anything that is not a symlink.

        """
        with Hold(self.nodes) as hold:
            node = await self._do(self.lookups.resolve(path, hold, follow=False))
            if not stat.S_ISLNK(node.attributes.mode):
                raise FileError(errno.EINVAL, "not a symbolic link")
            return await self._do(self.lookups.readlink(node))

    async def statfs(self) -> FileSystemStatistics:
        """Return the statistics of the file system that the export's root is on."""
        return await self._lane.call(fuse.statfs(fuse.ROOT_ID), fuse.decode_statfs)

    async def directory(self, path: bytes, hold: Hold) -> Node:
        """Return the directory at ``path``, in use as long as ``hold``.

        Raises:
            FileError: ENOTDIR and what the backend says.

        """
        node = await self._do(self.lookups.resolve(path, hold, follow=True))
        if not stat.S_ISDIR(node.attributes.mode):
            raise FileError(errno.ENOTDIR)
        return node

    @asynccontextmanager
    async def looked_up(self, path: bytes) -> AsyncIterator[tuple[Node, Version, bool]]:
        """Yield the node of the regular file at ``path``, its version and whether it is settled.

        The node is in use for the block's time.

        Raises:
            FileError: EISDIR and EINVAL for what is no regular file, and what the backend says.

        """
        with Hold(self.nodes) as hold:
            node = await self._do(self.lookups.resolve(path, hold, follow=True))
            require_regular(node.attributes)
            attributes, settled = await self._settle(node)
            yield node, Version.of(attributes), settled

    async def open(self, path: bytes) -> OpenFile:
        """Open the regular file at ``path``; the caller has to close it.

        Raises:
            FileError: EISDIR and EINVAL for what is no regular file, and what the backend says.

        """
        hold = Hold(self.nodes)
        handle = None
        try:
            node, handle = await self._do(self.lookups.resolve_and_open(path, hold))
            require_regular(node.attributes)
            attributes, settled = await self._settle(node)
            if handle is None:
                handle = await self._do(self.lookups.open(node))
        except BaseException:
            if handle is not None:
                self.lookups.release(node, handle)
            hold.leave()
            raise
        return OpenFile(self.session, self.lookups, hold, node, handle, attributes, settled=settled)

    @asynccontextmanager
    async def opened(self, path: bytes) -> AsyncIterator[OpenFile]:
        """Open the regular file at ``path`` for the block's time, as :meth:`open` does."""
        file = await self.open(path)
        try:
            yield file
        finally:
            file.close()

    async def _settle(self, node: Node) -> tuple[Attributes, bool]:
        """Return a file's attributes, and whether any later change will show in its timestamps.

        If that is only a matter of a few ticks, wait for it.
        """
        attributes = node.attributes
        for _ in range(_SETTLING):
            pause = time_to_settle(Version.of(attributes))
            if pause > _MOST_SETTLING:
                return attributes, False
            if not pause:
                return attributes, True
            await trio.sleep(pause)
            attributes = await self._do(self.lookups.getattr(node))
            require_regular(attributes)
        return attributes, not time_to_settle(Version.of(attributes))


def _lapse(idle: Iterable[Kept]) -> None:
    for kept in idle:
        kept.lapse()


def require_regular(attributes: Attributes) -> None:
    """Refuse to open anything but a regular file: a fifo would block, a device would act."""
    if stat.S_ISDIR(attributes.mode):
        raise FileError(errno.EISDIR)
    if not stat.S_ISREG(attributes.mode):
        what = describe_type(attributes.mode)
        raise FileError(errno.EINVAL, f"not a regular file but {what}")
    if attributes.size > _MOST_BYTES:
        raise FileError(errno.EOVERFLOW, f"a file of {attributes.size} bytes")
