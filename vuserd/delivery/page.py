"""A page of a tree: its entries, and payload buffers in which each file has a place of its own."""

from collections.abc import Sequence
from typing import Final

from memory.arena import Buffer
from vuserd.delivery.inline import FileContent
from vuserd.device.shared_buffer import SharedBuffer
from vuserd.fs.tree.found import Found

#: The most bytes of an entry in a page's index, without its path and a symlink's target.
ENTRY_BYTES: Final = 256
#: Bytes of a page that are kept for the rest of its index, and for its last entry to be too long.
_MARGIN: Final = 16 << 10
#: Places begin at multiples of this, a word of 64 bits, where the backend copies fastest.
_ALIGNMENT: Final = 8


class Place:
    """A part of a buffer: the target of one READ."""

    __slots__ = ("_begin", "_view", "address", "lend", "offset", "reclaim", "size")

    def __init__(self, shared: "_Shared", offset: int, begin: int, size: int) -> None:
        self.address = shared.address + begin
        self.lend = shared.lend
        self.reclaim = shared.reclaim
        #: Where it begins in the page's content.
        self.offset = offset
        self.size = size
        self._view = shared.view
        self._begin = begin

    def clear(self, begin: int = 0) -> None:
        """Put zeros where no file's bytes are, from ``begin`` on: others' bytes were here."""
        if begin < self.size:
            self._view[self._begin + begin : self._begin + self.size] = bytes(self.size - begin)


class _Shared(SharedBuffer):
    """A payload buffer that many files have their places in."""

    def __init__(self, buffer: Buffer) -> None:
        super().__init__(buffer)
        self.words = buffer.view.cast("Q")


class Page:
    """What the next page has so far.

    Args:
        buffers: for files' bytes; they stay the caller's until :meth:`take_content`.
        size: the most bytes of the page, index and all.
        limit: the most entries.

    """

    def __init__(self, buffers: Sequence[Buffer], size: int, limit: int) -> None:
        self.found: list[Found] = []
        self._shared = [_Shared(buffer) for buffer in buffers]
        self._ends = [0] * len(buffers)
        self._filling = 0
        #: Bytes of the content in buffers before the one that is filled.
        self._before = 0
        self._left = size - _MARGIN
        self._limit = limit
        #: Whether one more entry may have room.
        self.has_room = self._left > 0 and limit > 0

    def take(self, size: int) -> None:
        """Take ``size`` bytes of the index; a page's last entry may take more than are left."""
        self._left -= size
        self.has_room = self._left > 0 and len(self.found) < self._limit

    def add(self, found: Found, size: int) -> None:
        """Add an entry, which takes ``size`` bytes of the index."""
        self.found.append(found)
        self.take(size)

    def place(self, length: int) -> Place | None:
        """Return room for ``length`` bytes, zeros in its last word; None where there is none."""
        taken = length + -length % _ALIGNMENT
        if taken > self._left:
            return None
        while self._filling < len(self._shared):
            shared, begin = self._shared[self._filling], self._ends[self._filling]
            if begin + taken <= len(shared.view):
                self._ends[self._filling] = begin + taken
                self._left -= taken
                # Behind the file's last byte, which is in that word, others' bytes were.
                shared.words[(begin + taken) // _ALIGNMENT - 1] = 0
                return Place(shared, self._before + begin, begin, taken)
            if self._filling + 1 == len(self._shared):
                return None
            self._filling += 1
            self._before += begin
        return None

    def take_content(self, buffers: list[Buffer]) -> FileContent:
        """Return the content; its buffers are taken out of the list of the caller's."""
        used = [shared.buffer for shared, end in zip(self._shared, self._ends, strict=True) if end]
        for buffer in used:
            buffers.remove(buffer)
        return FileContent(used, [end for end in self._ends if end])
