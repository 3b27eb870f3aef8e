"""Read bytes of a file for a reply, which sends them from the buffers the backend wrote to."""

import functools
import operator

from memory.arena import Buffer
from protocol.fuse import Attributes
from vuserd.delivery.one_version import Delivery, deliver_whole
from vuserd.device.payloads import given_back
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.openfile import OpenFile


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
        again = await read_open(file, offset, length)
        try:
            # Copies: comparing memoryviews would take longer.
            return b"".join(content.views()) == b"".join(again.views())
        finally:
            again.give_back()

    deliver = functools.partial(read_open, offset=offset, length=length)
    way = Delivery(deliver, agrees, FileContent.give_back, operator.attrgetter("seen"))
    return await deliver_whole(filesystem, path, way)


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
