"""An open regular file: read it, find its holes, and check that it is still what was opened."""

import errno
import stat
from collections.abc import Sequence
from typing import Final, NamedTuple

from protocol import fuse
from protocol.fuse import Attributes, FileHandle, NodeId, Whence
from vuserd.device.payloads import given_back
from vuserd.device.procedure import Procedure, carry_out
from vuserd.device.request import Ask, InOrder, Rest, Target
from vuserd.device.results import Failed, body_of, length_of
from vuserd.device.session import Session
from vuserd.errors import FileError
from vuserd.fs.lookups import Lookups
from vuserd.fs.nodes import Hold, Node
from vuserd.fs.version import Version

#: Bytes of each of ``Attributes.blocks``.
BLOCK: Final = 512


class Extent(NamedTuple):
    """A part of a file that is not a hole, in bytes."""

    offset: int
    length: int


def is_version(attributes: Attributes, version: Version) -> bool:
    """Return whether a file with these attributes is a regular one, and of this version."""
    return stat.S_ISREG(attributes.mode) and Version.of(attributes) == version


def read_and_look(
    session: Session, node: NodeId, handle: FileHandle, target: Target, offset: int, length: int
) -> Procedure[tuple[int, Attributes | None]]:
    """Read part of a file into ``target``, and look at it right after, if that can be had at once.

    A backend with one thread does one request after the other, so a GETATTR that it used after the
    READ of the same batch was done after it, too.

    Returns:
        How many bytes were read, and the attributes that the file had then; None to look again.

    """
    read = Ask(fuse.read(node, handle, offset, length), target)
    if not session.lane.answers_in_order:
        [done] = yield [read]
        return length_of(done), None
    done, looked = yield InOrder((read, Ask(fuse.getattr(node))))
    count = length_of(done)
    if isinstance(looked, Failed) or not session.lane.answers_in_order:
        return count, None
    return count, session.lane.decoded(fuse.decode_attributes, body_of(looked))


class OpenFile:
    """A file that is open in the backend, and its node in use, until :meth:`close`.

    ``version`` is the version that was opened, and ``size`` the number of bytes by its attributes.
    It is ``settled`` if a later change is certain to show in its timestamps.
    """

    def __init__(
        self,
        session: Session,
        lookups: Lookups,
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
        self._lookups = lookups
        self._hold = hold
        self._handle = handle

    def close(self) -> None:
        """Close it in the backend, and leave its node."""
        self._lookups.release(self.node, self._handle)
        self._hold.leave()

    @property
    def size(self) -> int:
        """Bytes by its attributes, which in procfs and the like is not the true length."""
        return self.version.size

    @property
    def max_read(self) -> int:
        """The most bytes that one :meth:`read_into` can read."""
        return self.session.max_read

    async def read_into(self, target: Target, offset: int, length: int) -> int:
        """Have the backend write ``length`` bytes at ``offset`` into ``target``.

        Returns:
            How many it wrote: fewer at the end of the file, in procfs perhaps before.

        """
        request = fuse.read(self.node.id, self._handle, offset, length)
        return await self.session.lane.call_into(request, target)

    async def read_and_look_into(
        self, target: Target, offset: int, length: int
    ) -> tuple[int, Attributes | None]:
        """Run :meth:`read_into`, and look at the file: see :func:`read_and_look`."""
        reading = read_and_look(self.session, self.node.id, self._handle, target, offset, length)
        return await carry_out(self.session.lane, reading)

    async def read_on_into(self, target: Target, offset: int, length: int) -> int:
        """Repeat :meth:`read_into` until all bytes are there or a read returns nothing.

        Only an empty read is the end of a file of unknown size: procfs returns the whole lines of a
        page to read(2), and a backend may pass that on.

        Returns:
            How many bytes were read: fewer at the end of the file.

        """
        end = 0
        while end < length:
            got = await self.read_into(Rest(target, end), offset + end, length - end)
            if not got:
                break
            end += got
        return end

    async def goes_on(self, offset: int) -> bool:
        """Return whether the file, whose size may be wrong, has bytes from an offset on."""
        with given_back(await self.session.payloads.take(1)) as buffers:
            return await self.read_into(buffers[0], offset, fuse.PAGE_SIZE) > 0

    async def read_all_into(self, parts: Sequence[tuple[Target, int, int]]) -> list[int]:
        """Run :meth:`read_into` for several (target, offset, length) at once."""
        return await self.session.lane.call_all_into(
            [
                (fuse.read(self.node.id, self._handle, offset, length), target)
                for target, offset, length in parts
            ]
        )

    async def look_again(self) -> Attributes:
        """Return the file's present attributes."""
        return await carry_out(self.session.lane, self._lookups.getattr(self.node))

    async def unchanged(self, seen: Attributes | None = None) -> bool:
        """Return whether the file is still the version that was opened.

        ``seen`` is what it looked like after it was read, if that is known.
        """
        attributes = seen or await self.look_again()
        return is_version(attributes, self.version)

    async def extents(self, begin: int, limit: int) -> tuple[list[Extent], int | None]:
        """Return extents of data from ``begin``, and the offset to continue at: None at the end.

        A file has no holes unless its attributes and the backend show some. So any file with a size
        other than 0 has an extent up to its size unless it is sparse.
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
        """Return where data or a hole begins; None if there is none.

        Where the backend or file system has no LSEEK, all is data.
        """
        request = fuse.lseek(self.node.id, self._handle, offset, whence)
        try:
            found = await self.session.lane.call(request, fuse.decode_lseek)
        except FileError as error:
            if error.number == errno.ENXIO or whence is Whence.HOLE:
                return None
            return offset
        return max(found, offset)
