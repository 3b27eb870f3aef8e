"""One payload buffer for many small replies at once, each in a part of its own."""

from memory.arena import Buffer


class SharedBuffer:
    """A payload buffer that many requests write to: lent as long as any part of it is."""

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer
        self.address, self.view = buffer.address, buffer.view
        self._lent = 0

    def parts(self, size: int) -> list["BufferPart"]:
        """Return it in parts of ``size`` bytes each."""
        return [
            BufferPart(self, begin, size) for begin in range(0, self.buffer.size - size + 1, size)
        ]

    def lend(self) -> None:
        """Lend a part to the device."""
        if not self._lent:
            self.buffer.lend()
        self._lent += 1

    def reclaim(self) -> None:
        """Take a part back from the device."""
        self._lent -= 1
        if not self._lent:
            self.buffer.reclaim()


class BufferPart:
    """Bytes of a shared buffer: the target of one request."""

    __slots__ = ("address", "lend", "reclaim", "view")

    def __init__(self, shared: SharedBuffer, begin: int, size: int) -> None:
        self.address = shared.address + begin
        self.view = shared.view[begin : begin + size]
        self.lend = shared.lend
        self.reclaim = shared.reclaim
