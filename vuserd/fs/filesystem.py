"""What can be asked of an export's file system: stat, readlink, statfs, readdir, open."""

import errno
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import trio

from protocol import fuse
from protocol.dirent import DirectoryEntry
from protocol.fuse import Attributes, FileSystemStatistics
from vuserd.device.layout import REQUEST_ROOM
from vuserd.device.session import Session
from vuserd.errors import CallError, ErrorCode, FileError
from vuserd.fs.filetype import describe_type
from vuserd.fs.nodes import Hold, Node, NodeTable
from vuserd.fs.openfile import OpenFile
from vuserd.fs.operations import NodeOperations
from vuserd.fs.version import Version, time_to_settle

#: How often a file that has just changed is looked at again, a tick later.
_SETTLING: Final = 3


class DirectoryPage(NamedTuple):
    """Some entries of a directory, and where it goes on: None at its end."""

    entries: list[DirectoryEntry]
    next: int | None
    ino: int  #: the directory's own


class FileSystem:
    """The files behind one session; a new session needs a new one."""

    def __init__(self, session: Session, idle_nodes: int) -> None:
        self._session = session
        self._channel = session.channel
        capacity = fuse.batch_forget_capacity(REQUEST_ROOM)
        self.nodes = NodeTable(idle_nodes, session.channel.post, capacity)
        self.operations = NodeOperations(session, self.nodes)

    def is_lost(self) -> bool:
        """Tell whether the session is over: nothing can be asked any more."""
        return self._session.lost

    def close(self) -> None:
        """Give every lookup count back, as far as the backend still listens."""
        self.nodes.forget_idle()

    async def stat(self, path: bytes, *, follow: bool) -> Attributes:
        """Return the attributes that the host has for ``path`` now."""
        with Hold(self.nodes) as hold:
            return (await self.operations.resolve(path, hold, follow=follow)).attributes

    async def readlink(self, path: bytes) -> bytes:
        """Return the target of the symlink at ``path``, as it is written there.

        Raises:
            FileError: EINVAL for anything that is not a symlink.

        """
        with Hold(self.nodes) as hold:
            node = await self.operations.resolve(path, hold, follow=False)
            if not stat.S_ISLNK(node.attributes.mode):
                raise FileError(errno.EINVAL, "not a symbolic link")
            return await self.operations.readlink(node)

    async def statfs(self) -> FileSystemStatistics:
        """Return the statistics of the file system that the export's root is on."""
        return await self._channel.call(fuse.statfs(fuse.ROOT_ID), fuse.decode_statfs)

    async def readdir(
        self, path: bytes, *, attributes: bool, limit: int, after: tuple[int, int] | None
    ) -> DirectoryPage:
        """Return up to ``limit`` entries of the directory at ``path``.

        Args:
            path: the directory.
            attributes: whether each entry comes with its node's attributes.
            limit: the most entries.
            after: the page before's ``ino`` and ``next``; None to begin.

        Raises:
            FileError: ENOTDIR and what the backend says.
            CallError: CHANGED when the directory is another one than the page before's.

        """
        with Hold(self.nodes) as hold:
            node = await self.operations.resolve(path, hold, follow=True)
            if not stat.S_ISDIR(node.attributes.mode):
                raise FileError(errno.ENOTDIR)
            ino = node.attributes.ino
            if after is not None and after[0] != ino:
                raise CallError(
                    ErrorCode.CHANGED, "the directory was replaced since the page before"
                )
            async with self.operations.opened_directory(node) as handle:
                entries, following = await self.operations.read_entries(
                    node, handle, after[1] if after else 0, limit, attributes=attributes
                )
            return DirectoryPage(entries, following, ino)

    async def version(self, path: bytes) -> Version:
        """Return which version of the regular file at ``path`` there is now.

        Raises:
            FileError: EISDIR and EINVAL for what is no regular file, and what the backend says.

        """
        with Hold(self.nodes) as hold:
            node = await self.operations.resolve(path, hold, follow=True)
            _require_regular(node.attributes)
            return await self._settled_version(node)

    @asynccontextmanager
    async def opened(self, path: bytes) -> AsyncIterator[OpenFile]:
        """Open the regular file at ``path`` for the block's time.

        Raises:
            FileError: EISDIR and EINVAL for what is no regular file, and what the backend says.

        """
        with Hold(self.nodes) as hold:
            node = await self.operations.resolve(path, hold, follow=True)
            _require_regular(node.attributes)
            version = await self._settled_version(node)

            def release(body: bytes) -> None:
                self._channel.post(fuse.release(node.id, fuse.decode_open(body)))

            handle = await self._channel.call(fuse.open(node.id), fuse.decode_open, release)
            try:
                yield OpenFile(self._session, node.id, handle, version)
            finally:
                self._channel.post(fuse.release(node.id, handle))

    async def _settled_version(self, node: Node) -> Version:
        """Return the file's version, once a later change cannot hide behind the same ctime.

        Raises:
            CallError: CHANGED, when it went on changing.

        """
        version = Version.of(node.attributes)
        for _ in range(_SETTLING):
            pause = time_to_settle(version)
            if not pause:
                return version
            await trio.sleep(pause)
            version = Version.of(await self.operations.getattr(node))
        if time_to_settle(version):
            raise CallError(ErrorCode.CHANGED, "the file changes all the time")
        return version


def _require_regular(attributes: Attributes) -> None:
    """Refuse to open what is no regular file: a fifo would block, a device would act."""
    if stat.S_ISDIR(attributes.mode):
        raise FileError(errno.EISDIR)
    if not stat.S_ISREG(attributes.mode):
        what = describe_type(attributes.mode)
        raise FileError(errno.EINVAL, f"not a regular file but {what}")
