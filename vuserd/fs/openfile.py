"""An open regular file: READs of it, where its holes are, and whether it is what was opened."""

import errno
import stat
from collections.abc import Sequence
from typing import Final, NamedTuple

from protocol import fuse
from protocol.fuse import Attributes, FileHandle, Whence
from vuserd.device.request import Rest, Target
from vuserd.device.session import Session
from vuserd.errors import FileError
from vuserd.fs.nodes import Hold, Node
from vuserd.fs.operations import NodeOperations
from vuserd.fs.version import Version

#: Bytes of one of ``Attributes.blocks``.
BLOCK: Final = 512


class Extent(NamedTuple):
    """A part of a file that is not a hole, in bytes."""

    offset: int
    length: int


class OpenFile:
    """A file that is open in the backend, with all that the way there holds, until :meth:`close`.

    ``version`` is what it was when it was opened, ``size`` the number of bytes that says. It is
    ``settled`` where a later change is certain to show in its timestamps.
    """

    def __init__(
        self,
        session: Session,
        operations: NodeOperations,
        hold: Hold,
        node: Node,
        handle: FileHandle,
        attributes: Attributes,
        *,
        settled: bool,
    ) -> None:
        self.session = session
        self.node = node
        self.attributes = attributes
        self.version = Version.of(attributes)
        self.settled = settled
        self._operations = operations
        self._hold = hold
        self._handle = handle

    def close(self) -> None:
        """Close it in the backend, and let go of its node."""
        self._operations.release(self.node, self._handle)
        self._hold.leave()

    @property
    def size(self) -> int:
        """Bytes, by its attributes: procfs and others have there what its length is not."""
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
        request = fuse.read(self.node.id, self._handle, offset, length)
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
                (fuse.read(self.node.id, self._handle, offset, length), target)
                for target, offset, length in parts
            ]
        )

    async def look_again(self) -> Attributes:
        """Return the attributes that it has now."""
        return await self._operations.getattr(self.node)

    async def unchanged(self) -> bool:
        """Ask whether it is still the version that was opened."""
        attributes = await self.look_again()
        return stat.S_ISREG(attributes.mode) and Version.of(attributes) == self.version

    async def extents(self, begin: int, limit: int) -> tuple[list[Extent], int | None]:
        """Return where there is data from ``begin`` on, and where to go on: None at the end.

        Where neither its attributes nor the backend tell of holes there are none. So a file of any
        size but 0 has an extent up to its size unless it is sparse.
        """
        if self.attributes.blocks * BLOCK >= self.size:
            return [Extent(begin, self.size - begin)] if begin < self.size else [], None
        found: list[Extent] = []
        position = begin
        while position < self.size:
            if len(found) == limit:
                return found, position
            data = await self._seek(position, Whence.DATA)
            if data is None or data >= self.size:
                break
            hole = await self._seek(data, Whence.HOLE)
            position = self.size if hole is None or hole <= data else min(hole, self.size)
            found.append(Extent(data, position - data))
        return found, None

    async def _seek(self, offset: int, whence: Whence) -> int | None:
        """Return where data or a hole begins; None where there is none.

        A backend or file system without LSEEK has data everywhere.
        """
        request = fuse.lseek(self.node.id, self._handle, offset, whence)
        try:
            found = await self.session.channel.call(request, fuse.decode_lseek)
        except FileError as error:
            if error.number == errno.ENXIO or whence is Whence.HOLE:
                return None
            return offset
        return max(found, offset)
