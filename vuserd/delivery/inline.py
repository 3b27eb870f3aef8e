"""Bytes of a file inline in a reply: sent from the buffers that the backend wrote them to."""

from memory.arena import Buffer
from vuserd.delivery.whole import deliver_whole
from vuserd.device.payloads import given_back
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.openfile import OpenFile


class FileContent:
    """Bytes of a file in payload buffers; whoever has this gives the buffers back."""

    def __init__(self, buffers: list[Buffer], lengths: list[int]) -> None:
        self._buffers = buffers
        self._lengths = lengths
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
        CallError: CHANGED when the file went on changing.

    """

    async def deliver(file: OpenFile) -> FileContent:
        return await _read_parts(file, offset, length)

    return await deliver_whole(filesystem, path, deliver, FileContent.give_back)


async def _read_parts(file: OpenFile, offset: int, length: int) -> FileContent:
    """Read as many parts at once as it takes, each into a buffer of its own."""
    part = file.max_read
    # A size of 0 can be untrue: READs tell.
    wanted = min(length, max(file.size - offset, 0)) if file.size else length
    if wanted == 0:
        return FileContent([], [])
    # Asking beyond the end, where the caller does, lets a short answer show that it is there.
    sizes = [min(part, length - at) for at in range(0, wanted, part)]
    with given_back(await file.session.payloads.take(len(sizes))) as buffers:
        if not file.size:
            return await _read_to_the_end(file, offset, buffers, sizes)
        lengths = await file.read_all_into(
            [
                (buffer, offset + index * part, size)
                for index, (buffer, size) in enumerate(zip(buffers, sizes, strict=True))
            ]
        )
        # After a short READ the file ends, whatever a later one found.
        for index, (got, size) in enumerate(zip(lengths, sizes, strict=True)):
            if got < size:
                lengths[index + 1 :] = [0] * (len(lengths) - index - 1)
                break
        content = FileContent(buffers[:], lengths)
        buffers.clear()
        return content


async def _read_to_the_end(
    file: OpenFile, offset: int, buffers: list[Buffer], sizes: list[int]
) -> FileContent:
    """Read a file whose size is not known; take those of the buffers that it needs."""
    lengths: list[int] = []
    for buffer, size in zip(buffers, sizes, strict=True):
        lengths.append(await file.read_on_into(buffer, offset + sum(lengths), size))
        if lengths[-1] < size:
            break
    content = FileContent(buffers[: len(lengths)], lengths)
    del buffers[: len(lengths)]
    return content
