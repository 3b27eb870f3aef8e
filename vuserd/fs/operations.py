"""FUSE operations on nodes, which leak no lookup count and no handle when a call is cancelled."""

from collections.abc import Sequence

from protocol import fuse
from protocol.fuse import FileHandle
from vuserd.device.procedure import carry_out
from vuserd.device.request import Ask, Undo
from vuserd.device.results import Failed, body_of
from vuserd.device.session import Session
from vuserd.errors import FileError
from vuserd.fs.lookups import Lookups, require_identity
from vuserd.fs.nodes import Hold, Node, NodeTable, root_node


class NodeOperations:
    """The operations on one session of which :class:`~vuserd.fs.filesystem.FileSystem` is made."""

    def __init__(self, session: Session, nodes: NodeTable, *, tells_mounts: bool) -> None:
        self._lane = session.lane
        #: If the backend does not mark mounts, any file may be on another file system.
        self.tells_mounts = bool(tells_mounts or session.init.flags & fuse.InitFlag.SUBMOUNTS)
        self.lookups = Lookups(session.lane, nodes, tells_mounts=self.tells_mounts)

    async def look_up(self, directory: Node, name: bytes, hold: Hold) -> Node:
        """Return the node of ``name`` in ``directory``, in use as long as ``hold``.

        Raises:
            FileError: ENOENT, or what the backend says.

        """
        return await carry_out(self._lane, self.lookups.look_up(directory, name, hold))

    async def open_directory(self, node: Node) -> FileHandle:
        """Open a directory; the caller returns the handle by :meth:`release_directory`."""
        require_identity(node)
        undo = self._undo_open_directory(node)
        return await self._lane.call(fuse.opendir(node.id), fuse.decode_open, undo)

    async def open_directories(self, nodes: Sequence[Node]) -> list[FileHandle | Exception]:
        """Do that for several all at once; return what became of each."""
        for node in nodes:
            require_identity(node)
        asked = [Ask(fuse.opendir(node.id), undo=self._undo_open_directory(node)) for node in nodes]
        return [
            reply.error
            if isinstance(reply, Failed)
            else self._lane.decoded(fuse.decode_open, body_of(reply))
            for reply in await self._lane.ask_all(asked)
        ]

    def _undo_open_directory(self, node: Node) -> Undo:
        return lambda body: self.release_directory(node, fuse.decode_open(body))

    def release_directory(self, node: Node, handle: FileHandle) -> None:
        """Close a directory."""
        self._lane.post(fuse.releasedir(node.id, handle))

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
