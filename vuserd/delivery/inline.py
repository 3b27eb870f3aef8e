"""Read bytes of a file for a reply, which sends them from the buffers the backend wrote to."""

import functools
import operator
from typing import Final

from memory.arena import Buffer
from protocol.fuse import Attributes
from vuserd.delivery.one_version import Delivery, deliver_whole
from vuserd.device.payloads import given_back
from vuserd.device.procedure import NeedsTask, Procedure
from vuserd.fs.filesystem import FileSystem, require_regular
from vuserd.fs.nodes import Hold
from vuserd.fs.openfile import OpenFile, is_version, read_and_look
from vuserd.fs.version import Version, time_to_settle

#: The most bytes that one read returns.
READ_MAX: Final = 8 << 20


class FileContent:
    """Bytes of a file in payload buffers; the owner gives the buffers back."""

    def __init__(
        self, buffers: list[Buffer], lengths: list[int], seen: Attributes | None = None
    ) -> None:
        self._buffers = buffers
        self._lengths = lengths
        #: What the file looked like after they were read, if that is known.
        self.seen = seen
        self.length = sum(lengths)

    def views(self) -> list[memoryview]:
        """Return the bytes in order."""
        pairs = zip(self._buffers, self._lengths, strict=False)
        return [buffer.view[:length] for buffer, length in pairs if length]

    def take_over(self, other: "FileContent") -> None:
        """Have the bytes and buffers of another one, in place of those that were given back."""
        self._buffers, self._lengths = other._buffers, other._lengths  # noqa: SLF001 - of this class
        self.length = other.length

    def give_back(self) -> None:
        """Give the buffers back; a second call does nothing."""
        while self._buffers:
            self._buffers.pop().give_back()


async def read_inline(filesystem: FileSystem, path: bytes, offset: int, length: int) -> FileContent:
    """Read ``length`` bytes of a regular file; fewer only where the file ends.

    Raises:
        FileError: EISDIR and EINVAL for what is no regular file, and what the backend says.
        CallError: CHANGED if the file kept changing.

    """

    async def agrees(file: OpenFile, content: FileContent) -> bool:
        # Copies: comparing memoryviews would take longer, and waiting for buffers while holding
        # some would block others.
        before = b"".join(content.views())
        content.give_back()
        content.take_over(await read_open(file, offset, length))
        return b"".join(content.views()) == before

    deliver = functools.partial(read_open, offset=offset, length=length)
    way = Delivery(deliver, agrees, FileContent.give_back, operator.attrgetter("seen"))
    return await deliver_whole(filesystem, path, way)


def read_small(path: bytes, offset: int, length: int, files: FileSystem) -> Procedure[FileContent]:
    """Do what :func:`read_inline` does, where it waits for nothing but a few replies.

    Raises:
        NeedsTask: :func:`read_inline` has to do it.
        FileError: as there.

    """
    lookups, session = files.lookups, files.session
    # Taken first, or a read for which there is none would have looked its file up in vain.
    buffer = session.payloads.try_take()
    if buffer is None:
        raise NeedsTask
    try:
        with Hold(files.nodes) as hold:
            node, handle = yield from lookups.resolve_and_open(path, hold)
            try:
                before = node.attributes
                require_regular(before)
                version = Version.of(before)
                there = max(version.size - offset, 0)
                wanted = min(length, session.max_read)
                # One byte more than there is, if the caller wants it: a short answer shows the end.
                if min(length, there + 1) > wanted or not version.size:
                    raise NeedsTask
                if time_to_settle(version):
                    raise NeedsTask
                if handle is None:
                    handle = yield from lookups.open(node)
                count, after = yield from read_and_look(
                    session, node.id, handle, buffer, offset, wanted
                )
                if after is None:
                    after = yield from lookups.getattr(node)
                if count != min(length, there) or not is_version(after, version):
                    raise NeedsTask
                content, buffer = FileContent([buffer], [count]), None
                return content
            finally:
                if handle is not None:
                    lookups.release(node, handle)
    finally:
        if buffer is not None:
            buffer.give_back()


async def read_open(file: OpenFile, offset: int, length: int) -> FileContent:
    """Read ``length`` bytes of an open file, in whatever version; fewer only where it ends.

    Its size is trusted as long as READs agree with it.
    """
    if not length:
        return FileContent([], [])
    content = await _read_parts(file, offset, length) if file.size else None
    return content or await _read_to_the_end(file, offset, length)


async def _read_parts(file: OpenFile, offset: int, length: int) -> FileContent | None:
    """Read all parts at once; return None if the size proves to be wrong."""
    part = file.max_read
    there = max(file.size - offset, 0)
    # If the caller wants it, one byte more than there is: a short answer then shows the end.
    wanted = min(length, there + 1)
    # ... and no less than a whole part, for which nothing has to be copied.
    sizes = [min(part, length - at) for at in range(0, wanted, part)]
    with given_back(await file.session.payloads.take(len(sizes))) as buffers:
        seen = None
        if len(sizes) == 1:
            count, seen = await file.read_and_look_into(buffers[0], offset, sizes[0])
            lengths = [count]
        else:
            lengths = await file.read_all_into(
                [
                    (buffer, offset + index * part, size)
                    for index, (buffer, size) in enumerate(zip(buffers, sizes, strict=True))
                ]
            )
        if sum(lengths) != min(length, there):
            return None
        content = FileContent(buffers[:], lengths, seen)
        buffers.clear()
        return content


async def _read_to_the_end(file: OpenFile, offset: int, length: int) -> FileContent:
    """Read one part after the other until one is empty: that is the end."""
    part = file.max_read
    sizes = [min(part, length - at) for at in range(0, length, part)]
    lengths: list[int] = []
    # All at once, even if few may do: waiting for more while holding some would block others.
    with given_back(await file.session.payloads.take(len(sizes))) as buffers:
        for buffer, size in zip(buffers, sizes, strict=True):
            lengths.append(await file.read_on_into(buffer, offset + sum(lengths), size))
            if lengths[-1] < size:
                break
        content = FileContent(buffers[: len(lengths)], lengths)
        del buffers[: len(lengths)]
        return content
