"""Buffers cut from a region: who owns them, and which of them the device may still write.

::

              take                    lend
      FREE ---------->   OWNED   ------------>   LENT
        ^                 | ^                     |  |
        |    give_back    | |      reclaim        |  |  give_back (the owner is gone,
        |<----------------' '---------------------'  |  the device is not done)
        |                                            v
        '---------------------------------------- QUARANTINED
                         reclaim

A buffer that was published on a ring belongs to the device until the used ring returns it, whatever
becomes of the request: until then no other request gets it.
"""

from collections.abc import Callable
from enum import Enum, auto

from memory.guest import GuestRegion


class BufferState(Enum):
    """Where a buffer stands in the picture above."""

    FREE = auto()
    OWNED = auto()
    LENT = auto()
    QUARANTINED = auto()


class ArenaExhaustedError(Exception):
    """No free buffer of that size is left; some come back when requests end."""


class Buffer:
    """Bytes of the region: ``view`` to touch them, ``address`` (guest-physical) for descriptors."""

    __slots__ = ("_pool", "address", "state", "view")

    def __init__(self, pool: "Pool", view: memoryview, address: int) -> None:
        self._pool = pool
        self.view = view
        self.address = address
        self.state = BufferState.FREE

    @property
    def size(self) -> int:
        """Bytes of the buffer."""
        return len(self.view)

    def lend(self) -> None:
        """Lend it to the device: it is about to be published on a ring."""
        self._move(BufferState.OWNED, BufferState.LENT)

    def reclaim(self) -> None:
        """Take it back from the device: the used ring returned it, or the backend is gone."""
        if self.state is BufferState.QUARANTINED:
            self._pool.quarantined -= 1
            self._pool.put(self)
        else:
            self._move(BufferState.LENT, BufferState.OWNED)

    def give_back(self) -> None:
        """End the ownership; a buffer that the device still has goes into quarantine."""
        if self.state is BufferState.LENT:
            self.state = BufferState.QUARANTINED
            self._pool.quarantined += 1
        elif self.state is BufferState.OWNED:
            self._pool.put(self)
        else:
            raise ValueError(f"a buffer that is {self.state.name} was given back")

    def _move(self, before: BufferState, after: BufferState) -> None:
        if self.state is not before:
            raise ValueError(f"a buffer that is {self.state.name}, not {before.name}")
        self.state = after


class Pool:
    """Buffers of one size. The one given back last is taken first, since its pages are warm.

    Args:
        view: all bytes of the region.
        placed: the region's addresses.
        offset: where the first buffer begins in it.
        size: bytes of each buffer.
        count: how many there are.

    """

    def __init__(
        self, view: memoryview, placed: GuestRegion, offset: int, size: int, count: int
    ) -> None:
        if len(view) != placed.region.size:
            raise ValueError(f"{len(view)} bytes of a region of {placed.region.size}")
        self.buffer_size = size
        self.count = count
        #: How many buffers the device still has though their owners are gone.
        self.quarantined = 0
        self._closed = False
        #: Called whenever a buffer becomes free, so that a waiting task looks again.
        self.on_free: Callable[[], None] | None = None
        self._free = [
            Buffer(self, view[at : at + size], placed.guest_address(at, size))
            for at in range(offset + (count - 1) * size, offset - 1, -size)
        ]

    @property
    def available(self) -> int:
        """How many buffers are free."""
        return len(self._free)

    def take(self) -> Buffer:
        """Take a free buffer; it still has its former bytes.

        Raises:
            ArenaExhaustedError: none is free.

        """
        if not self._free:
            raise ArenaExhaustedError(f"all {self.count} buffers of {self.buffer_size} are taken")
        buffer = self._free.pop()
        buffer.state = BufferState.OWNED
        return buffer

    def put(self, buffer: Buffer) -> None:
        """Take a buffer back among the free ones (only :class:`Buffer` itself calls this)."""
        buffer.state = BufferState.FREE
        if self._closed:
            return
        self._free.append(buffer)
        if self.on_free is not None:
            self.on_free()

    def close(self) -> None:
        """Drop the free buffers, so that the region's mapping can go; the others follow."""
        self._closed = True
        self._free.clear()
        self.on_free = None
