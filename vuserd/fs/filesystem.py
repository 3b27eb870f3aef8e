"""What can be asked of an export's file system, in terms of FUSE: stat, readlink, readdir, open."""

import errno
import functools
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import trio

from protocol import fuse
from protocol.dirent import LONGEST_RECORD, DirectoryEntry, decode_directory
from protocol.fuse import Attributes, FileHandle, FileSystemStatistics
from vuserd.device.layout import REQUEST_ROOM
from vuserd.device.payloads import given_back
from vuserd.device.session import Session
from vuserd.errors import CallError, ErrorCode, FileError
from vuserd.fs.nodes import Hold, Node, NodeTable, root_node
from vuserd.fs.openfile import OpenFile
from vuserd.fs.paths import resolve
from vuserd.fs.version import Version, time_to_settle

_TYPE_NAMES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}
_DESCRIPTIONS: Final = {
    "fifo": "a fifo",
    "socket": "a socket",
    "char": "a character device",
    "block": "a block device",
    "symlink": "a symbolic link",
}


def type_name(mode: int) -> str:
    """Return the RPC's word for the file type in ``mode``."""
    return _TYPE_NAMES.get(stat.S_IFMT(mode), "unknown")


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

    def close(self) -> None:
        """Give every lookup count back, as far as the backend still listens."""
        self.nodes.forget_idle()

    async def stat(self, path: bytes, *, follow: bool) -> Attributes:
        """Return the attributes that the host has for ``path`` now."""
        with Hold(self.nodes) as hold:
            return (await self._resolve(path, hold, follow=follow)).attributes

    async def readlink(self, path: bytes) -> bytes:
        """Return the target of the symlink at ``path``, as it is written there.

        Raises:
            FileError: EINVAL for anything that is not a symlink.

        """
        with Hold(self.nodes) as hold:
            node = await self._resolve(path, hold, follow=False)
            if not stat.S_ISLNK(node.attributes.mode):
                raise FileError(errno.EINVAL, "not a symbolic link")
            return await self._readlink(node)

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
            node = await self._resolve(path, hold, follow=True)
            if not stat.S_ISDIR(node.attributes.mode):
                raise FileError(errno.ENOTDIR)
            ino = node.attributes.ino
            if after is not None and after[0] != ino:
                raise CallError(
                    ErrorCode.CHANGED, "the directory was replaced since the page before"
                )
            async with self._opened_directory(node) as handle:
                return await self._read_page(
                    node, handle, attributes=attributes, limit=limit, start=after[1] if after else 0
                )

    async def version(self, path: bytes) -> Version:
        """Return which version of the regular file at ``path`` there is now.

        Raises:
            FileError: EISDIR and EINVAL for what is no regular file, and what the backend says.

        """
        with Hold(self.nodes) as hold:
            node = await self._resolve(path, hold, follow=True)
            _require_regular(node.attributes)
            return await self._settled_version(node)

    @asynccontextmanager
    async def opened(self, path: bytes) -> AsyncIterator[OpenFile]:
        """Open the regular file at ``path`` for the block's time.

        Raises:
            FileError: EISDIR and EINVAL for what is no regular file, and what the backend says.

        """
        with Hold(self.nodes) as hold:
            node = await self._resolve(path, hold, follow=True)
            _require_regular(node.attributes)
            version = await self._settled_version(node)

            def release(body: bytes) -> None:
                self._channel.post(fuse.release(node.id, fuse.decode_open(body)))

            handle = await self._channel.call(fuse.open(node.id), fuse.decode_open, release)
            try:
                yield OpenFile(self._session, node.id, handle, version)
            finally:
                self._channel.post(fuse.release(node.id, handle))

    # --- nodes ------------------------------------------------------------------------------------

    async def _resolve(self, path: bytes, hold: Hold, *, follow: bool) -> Node:
        async def lookup(directory: Node, name: bytes) -> Node:
            return hold.add(await self._lookup(directory, name))

        root = root_node()
        node = await resolve(root, path, follow=follow, lookup=lookup, readlink=self._readlink)
        if node is root:
            node.attributes = await self._getattr(node)
        return node

    async def _getattr(self, node: Node) -> Attributes:
        return await self._channel.call(fuse.getattr(node.id), fuse.decode_attributes)

    async def _lookup(self, directory: Node, name: bytes) -> fuse.Entry:
        """Look a name up; the lookup count is the caller's, also when it is cancelled too late."""
        request = fuse.lookup(directory.id, name)
        entry = await self._channel.call(request, fuse.decode_lookup, self._undo_lookup)
        if entry is None:
            raise FileError(errno.ENOENT)
        return entry

    def _undo_lookup(self, body: bytes) -> None:
        entry = fuse.decode_lookup(body)
        if entry is not None:
            self.nodes.forget(entry.node)

    async def _readlink(self, node: Node) -> bytes:
        return await self._channel.call(fuse.readlink(node.id), fuse.decode_readlink)

    async def _settled_version(self, node: Node) -> Version:
        """Return the file's version, once a later change cannot hide behind the same ctime."""
        version = Version.of(node.attributes)
        pause = time_to_settle(version)
        if pause:
            await trio.sleep(pause)
            version = Version.of(await self._getattr(node))
        return version

    # --- directories ------------------------------------------------------------------------------

    @asynccontextmanager
    async def _opened_directory(self, node: Node) -> AsyncIterator[FileHandle]:
        def release(body: bytes) -> None:
            self._channel.post(fuse.releasedir(node.id, fuse.decode_open(body)))

        handle = await self._channel.call(fuse.opendir(node.id), fuse.decode_open, release)
        try:
            yield handle
        finally:
            self._channel.post(fuse.releasedir(node.id, handle))

    async def _read_page(
        self, node: Node, handle: FileHandle, *, attributes: bool, limit: int, start: int
    ) -> DirectoryPage:
        entries: list[DirectoryEntry] = []
        position: int | None = start
        while position is not None and len(entries) < limit:
            batch, position = await self._read_batch(
                node, handle, position, limit - len(entries), plus=attributes
            )
            entries += batch
        self.nodes.flush()
        return DirectoryPage(entries, position, node.attributes.ino)

    async def _read_batch(
        self, node: Node, handle: FileHandle, offset: int, limit: int, *, plus: bool
    ) -> tuple[list[DirectoryEntry], int | None]:
        """Read one buffer of entries; return at most ``limit`` of them, and where to go on.

        READDIRPLUS gave a lookup count with each entry: all of them are given back here.
        """
        # Room for the entries that are wanted with names of the usual length, not for many more:
        # each more is a descriptor in the backend.
        size = max(LONGEST_RECORD, limit * (192 if plus else 64))
        size = min(size, self._session.max_read)
        request = (fuse.readdirplus if plus else fuse.readdir)(node.id, handle, offset, size)
        decode = functools.partial(decode_directory, plus=plus, after=offset)

        def undo(body: bytes) -> None:
            self._give_back_lookups(decode(body)[0])

        with given_back(await self._session.payloads.take(1, self)) as buffers:
            length = await self._channel.call_into(request, buffers[0], undo if plus else None)
            body = bytes(buffers[0].view[:length])
        entries, following = self._channel.decoded(decode, body)
        if plus:
            self._give_back_lookups(entries)
            entries = [await self._with_attributes(node, entry) for entry in entries]
        if len(entries) > limit:
            del entries[limit:]
            following = entries[-1].offset
        return entries, following

    async def _with_attributes(self, node: Node, entry: DirectoryEntry) -> DirectoryEntry:
        """Look up what READDIRPLUS named without its node."""
        if entry.entry is not None:
            return entry
        with Hold(self.nodes) as hold:
            found = await self._lookup(node, entry.name)
            hold.add(found)
            return entry._replace(entry=found)

    def _give_back_lookups(self, entries: list[DirectoryEntry]) -> None:
        for entry in entries:
            if entry.entry is not None:
                self.nodes.forget(entry.entry.node)


def _require_regular(attributes: Attributes) -> None:
    """Refuse to open what is no regular file: a fifo would block, a device would act."""
    name = type_name(attributes.mode)
    if name == "dir":
        raise FileError(errno.EISDIR)
    if name != "file":
        what = _DESCRIPTIONS.get(name, "of an unknown type")
        raise FileError(errno.EINVAL, f"not a regular file but {what}")
