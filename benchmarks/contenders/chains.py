"""A virtqueue that lays a chain anew for each request, and buffers for messages: ring-4's.

It is what :mod:`memory.virtqueue` was before its chains were laid once, and is kept to show what
that is worth.
"""

from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from memory.arena import Buffer, Pool
from memory.fence import own_fence
from memory.region import Region
from memory.virtqueue import RingFullError
from protocol import Check, MalformedError
from protocol.virtio_ring import DESCRIPTOR, USED_ELEMENT, DescriptorFlag, RingLayout
from vuserd.device.layout import SharedLayout

Token = TypeVar("Token")

_WRAP = 0x10000
# Plain numbers: arithmetic on IntFlag members costs more than the rest of add().
_NEXT = int(DescriptorFlag.NEXT)
_WRITE = int(DescriptorFlag.WRITE)


class Span(NamedTuple):
    """A buffer as a descriptor names it: guest-physical address and length in bytes."""

    address: int
    length: int


class _Chain(NamedTuple, Generic[Token]):
    """The private record of a chain that the device has."""

    token: Token
    descriptors: list[int]
    writable: int


class ChainQueue(Generic[Token]):
    """A split ring in ``memory`` (zeroed here), each chain with a token of the caller's.

    ``base`` is the index at which both rings begin, as told to the device by SET_VRING_BASE.

    Raises:
        NoFenceError: the machine has no memory fence.

    """

    def __init__(self, memory: memoryview, layout: RingLayout, base: int = 0) -> None:
        if len(memory) != layout.size:
            raise ValueError(f"{len(memory)} bytes for a ring of {layout.size}")
        self.layout = layout
        self._fence = own_fence()
        memory[:] = bytes(layout.size)
        # Index words are single 16-bit accesses: struct.pack_into() zeroes its target first, and a
        # device that reads a zero index in that instant is lost.
        self._descriptors = memory[: layout.available]
        self._available = memory[layout.available : layout.used].cast("H")
        self._used_words = memory[layout.used :].cast("H")
        self._used_elements = memory[layout.used + 4 :]
        self._free = list(range(layout.num - 1, -1, -1))
        #: By their heads: chains the device was told of, and those that wait for publish().
        self._chains: dict[int, _Chain[Token]] = {}
        self._unpublished: dict[int, _Chain[Token]] = {}
        self._published = base
        self._added = base
        self._reaped = base
        # The device reads used.idx when it gets the ring's addresses, and goes on from there.
        self._available[1] = base
        self._used_words[1] = base

    @property
    def free(self) -> int:
        """Free descriptors: a chain takes one a span."""
        return len(self._free)

    @property
    def outstanding(self) -> int:
        """Chains added and not yet reaped."""
        return len(self._chains) + len(self._unpublished)

    def add(
        self,
        readable: Sequence[tuple[int, int]],
        writable: Sequence[tuple[int, int]],
        token: Token,
    ) -> None:
        """Lay a chain into the ring; the device sees it after the next :meth:`publish`.

        Args:
            readable: what the device reads, in order: a :class:`Span` or an equal pair each.
            writable: what it may write, in order.
            token: returned by :meth:`reap` when the chain is used.

        Raises:
            RingFullError: too few free descriptors; nothing has changed.
            ValueError: no span at all, or an empty one, which kills backends.

        """
        count = len(readable) + len(writable)
        if count > len(self._free):
            raise RingFullError(f"{count} descriptors wanted, {len(self._free)} free")
        if not count or min(span[1] for span in (*readable, *writable)) < 1:
            raise ValueError("a chain of no or empty spans")
        slots = self._free[-count:]
        # Each descriptor points to the one after it; the last one's flags say that there is none.
        place = 0
        capacity = 0
        for address, length in readable:
            place += 1
            flags, following = (_NEXT, slots[place]) if place < count else (0, 0)
            self._describe(slots[place - 1], address, length, flags, following)
        for address, length in writable:
            place += 1
            capacity += length
            flags, following = (_NEXT, slots[place]) if place < count else (0, 0)
            self._describe(slots[place - 1], address, length, flags | _WRITE, following)
        del self._free[-count:]
        head = slots[0]
        self._unpublished[head] = _Chain(token, slots, capacity)
        self._available[2 + self._added % self.layout.num] = head
        self._added = (self._added + 1) % _WRAP

    def _describe(self, slot: int, address: int, length: int, flags: int, following: int) -> None:
        """Write a descriptor that the device may not use yet."""
        at = slot * DESCRIPTOR.size
        DESCRIPTOR.pack_into(self._descriptors, at, address, length, flags, following)

    def publish(self) -> bool:
        """Offer all chains added since the last call; return whether there are any: then kick."""
        if self._published == self._added:
            return False
        self._chains |= self._unpublished
        self._unpublished.clear()
        # Pairs with the device's read fence after it reads avail.idx: chains first, then the index.
        self._fence()
        self._available[1] = self._published = self._added
        return True

    def reap(self) -> Iterator[tuple[Token, int]]:
        """Yield the token and the length written of each chain that the device has used.

        Raises:
            MalformedError: the used ring is impossible; chains reaped before are valid, the ring
                must not be used again.

        """
        used = self._used_words[1]
        # Pairs with the device's write fence before used.idx: the index first, then the elements.
        self._fence()
        step = (used - self._reaped) % _WRAP
        if step > len(self._chains):
            raise MalformedError(
                f"used.idx moved by {step} with {len(self._chains)} outstanding", Check.USED_INDEX
            )
        for _ in range(step):
            position = self._reaped % self.layout.num
            head, length = USED_ELEMENT.unpack_from(
                self._used_elements, position * USED_ELEMENT.size
            )
            chain = self._chains.get(head)
            if chain is None:
                raise MalformedError(
                    f"used id {head} is not the head of an outstanding chain", Check.USED_ID
                )
            if length > chain.writable:
                raise MalformedError(
                    f"used length {length} of {chain.writable} writable bytes", Check.USED_LENGTH
                )
            del self._chains[head]
            self._free += chain.descriptors
            self._reaped = (self._reaped + 1) % _WRAP
            yield chain.token, length

    def close(self) -> None:
        """Release the ring's memory."""
        for view in (
            self._descriptors,
            self._available,
            self._used_words,
            self._used_elements,
        ):
            view.release()


class ChainedSlots(Generic[Token]):
    """A queue of a session, with a buffer for each request's messages."""

    def __init__(self, layout: SharedLayout, queue: int) -> None:
        ring, offset, rooms = layout.rings[queue]
        [placed] = layout.memory
        region = placed.region
        assert isinstance(region, Region)
        self.ring: ChainQueue[tuple[Token, Buffer, int]] = ChainQueue(
            region.view[offset : offset + ring.size], ring
        )
        count = rooms.count(ring)
        self._messages = Pool(region.view, placed, rooms.offset, rooms.size, count)
        self._reply_at = rooms.request

    @property
    def free(self) -> int:
        """How many requests it takes."""
        return self._messages.available

    @property
    def outstanding(self) -> int:
        """Requests added and not yet reaped."""
        return self.ring.outstanding

    def add(self, message: bytes, reply: int, target: int, length: int, token: Token) -> None:
        """Add a request, as :meth:`memory.virtqueue.Virtqueue.add` does."""
        buffer = self._messages.take()
        buffer.view[: len(message)] = message
        buffer.lend()
        writable = [Span(buffer.address + self._reply_at, reply)] if reply else []
        if length:
            writable.append(Span(target, length))
        self.ring.add([Span(buffer.address, len(message))], writable, (token, buffer, reply))

    def publish(self) -> bool:
        """Offer all requests added since the last call; return whether there are any."""
        return self.ring.publish()

    def reap(self) -> Iterator[tuple[Token, int, bytes]]:
        """Yield what was used: its token, the length written, and what of it is no target's."""
        for (token, buffer, reply), used in self.ring.reap():
            end = self._reply_at + min(used, reply)
            answer = bytes(buffer.view[self._reply_at : end])
            buffer.reclaim()
            buffer.give_back()
            yield token, used, answer

    def close(self) -> None:
        """Release the ring's memory."""
        self.ring.close()
        self._messages.close()
