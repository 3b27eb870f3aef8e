"""An open regular file: READs of it, and whether it is still the version that was opened."""

import stat
from collections.abc import Sequence

from protocol import MalformedError, fuse
from protocol.fuse import FileHandle, NodeId
from vuserd.device.request import Rest, Target
from vuserd.device.session import Session
from vuserd.fs.version import Version


class OpenFile:
    """A file that :meth:`~vuserd.fs.filesystem.FileSystem.opened` holds open.

    ``version`` is what it was when it was opened, ``size`` the number of bytes that says.
    """

    def __init__(
        self, session: Session, node: NodeId, handle: FileHandle, version: Version
    ) -> None:
        self.session = session
        self.version = version
        self._node = node
        self._handle = handle

    @property
    def size(self) -> int:
        """Bytes, by its attributes: 0 can be untrue, as procfs has it."""
        return self.version.size

    @property
    def max_read(self) -> int:
        """The most bytes of one :meth:`read_into`."""
        return self.session.max_read

    async def read_into(self, target: Target, offset: int, length: int) -> int:
        """Have the backend write ``length`` bytes at ``offset`` into ``target``.

        Returns:
            How many it wrote: fewer where the file ends, and perhaps before in one of procfs.

        """
        request = fuse.read(self._node, self._handle, offset, length)
        return await self.session.channel.call_into(request, target)

    async def read_on_into(self, target: Target, offset: int, length: int) -> int:
        """Do :meth:`read_into` again and again, until all is there or one brings nothing.

        That alone is the end of a file whose size is not known: procfs gives read(2) the lines that
        are whole in a page, and a backend may hand that on.

        Returns:
            How many bytes there are: fewer where the file ends.

        """
        end = 0
        while end < length:
            got = await self.read_into(Rest(target, end), offset + end, length - end)
            if not got:
                break
            end += got
        return end

    async def read_all_into(self, parts: Sequence[tuple[Target, int, int]]) -> list[int]:
        """Do :meth:`read_into` for several (target, offset, length) at once."""
        return await self.session.channel.call_all_into(
            [
                (fuse.read(self._node, self._handle, offset, length), target)
                for target, offset, length in parts
            ]
        )

    async def unchanged(self) -> bool:
        """Ask whether it is still the version that was opened."""
        request = fuse.getattr(self._node)
        channel = self.session.channel
        attributes = await channel.call(request, fuse.decode_attributes)
        if not stat.S_ISREG(attributes.mode):
            raise channel.broken(MalformedError(f"node {self._node} changed its type"))
        return Version.of(attributes) == self.version
