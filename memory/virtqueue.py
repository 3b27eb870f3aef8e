"""The driver's side of a split virtqueue whose chains are laid once.

Each slot of the queue has a chain of its own and a room for its messages, and both stay where they
are::

    head        | its request |  request room
    head + 1    | its reply   |  reply room         (no slot of a queue without replies has it)
    head + 2    | a target    |  a span that the request names, behind the reply

So a request writes its bytes and a few words: how long each part is, and where the target lies.
Of requests of one :class:`~memory.form.Form`, which differ in some words only, a slot keeps the
others, too, and the chain: as long as no other request needs it, it serves requests of its form.

Source: VIRTIO 1.2, sections 2.7.13 (supplying buffers) and 2.7.14 (receiving used buffers). What
the device can write is never trusted: lengths and the free list are kept privately, a used element
is believed only when it names the head of a chain that the device has, and a reply is copied out
before its slot may serve again. Notifications are not suppressed on either side (no EVENT_IDX,
flags 0 and unread): a kick for every batch costs less than the fence that suppression needs.
"""

import mmap
from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

from memory.fence import own_fence
from memory.form import Form
from memory.guest import GuestRegion
from protocol import Check, MalformedError
from protocol.virtio_ring import DescriptorFlag, RingLayout

#: Indices are counted modulo this.
WRAP: Final = 0x10000
#: A descriptor's second 64-bit word: length, flags from bit 32 on, the next one from bit 48 on.
_FLAGS: Final = 32
_FOLLOWING: Final = 48
_NEXT: Final = DescriptorFlag.NEXT << _FLAGS
_WRITE: Final = DescriptorFlag.WRITE << _FLAGS
_CHAIN: Final = 3
#: Bytes of a word of a room.
_WORD: Final = 8

#: A slot, by the head of its chain; the bytes written to its chain; those in its own reply room.
Used: TypeAlias = tuple[int, int, bytes]


class RingFullError(Exception):
    """No slot is free; some come back when requests end."""


class Rooms(NamedTuple):
    """Where the messages of a queue's slots lie: ``offset`` of the first room in the region."""

    offset: int
    request: int  #: bytes that a request may have
    reply: int  #: bytes behind them that a reply may have; 0 for a queue without replies

    @property
    def size(self) -> int:
        """Bytes of each room."""
        return self.request + self.reply

    @property
    def chain(self) -> int:
        """Descriptors of each slot."""
        return _CHAIN if self.reply else 1

    def count(self, layout: RingLayout) -> int:
        """Return how many slots a ring has."""
        return layout.num // self.chain


class Virtqueue:
    """A split ring at ``offset`` of a region (zeroed here), with a room for each of its slots.

    Args:
        mapping: the whole region.
        placed: its addresses.
        offset: where the ring begins in it.
        layout: the ring's parts.
        rooms: where the slots' messages lie.
        base: the index at which both rings begin, as told to the device by SET_VRING_BASE.

    Raises:
        NoFenceError: the machine has no memory fence.
        ValueError: the rooms do not begin at words of 64 bits.

    """

    def __init__(
        self,
        mapping: mmap.mmap,
        placed: GuestRegion,
        offset: int,
        layout: RingLayout,
        rooms: Rooms,
        base: int = 0,
    ) -> None:
        count = rooms.count(layout)
        placed.guest_address(offset, layout.size)
        address = placed.guest_address(rooms.offset, count * rooms.size)
        if rooms.offset % _WORD or rooms.size % _WORD:
            raise ValueError(f"rooms of {rooms.size} bytes from {rooms.offset} on")
        self.layout = layout
        #: Descriptors of each slot, which has the number of the first.
        self.chain = rooms.chain
        self._longest_request, self._longest_reply = rooms.request, rooms.reply
        self._mapping = mapping
        self._fence = own_fence()
        self._mask = layout.num - 1
        mapping[offset : offset + layout.size] = bytes(layout.size)
        # Index words are single 16-bit accesses: struct.pack_into() zeroes its target first, and a
        # device that reads a zero index in that instant is lost.
        with memoryview(mapping) as whole, whole[offset : offset + layout.size] as ring:
            elements = layout.used + 4
            self._descriptors = ring[: layout.available].cast("Q")
            self._available = ring[layout.available : layout.used].cast("H")
            self._used_words = ring[layout.used :].cast("H")
            self._elements = ring[elements : elements + 8 * layout.num].cast("I")
            #: All rooms, as words.
            self.words = whole[rooms.offset : rooms.offset + count * rooms.size].cast("Q")
        heads = range(0, count * rooms.chain, rooms.chain)
        #: How many slots there are, free ones without a form, and the forms that were laid.
        self._slots = count
        self._free = [*reversed(heads)]
        self._forms: list[Form] = []
        #: The chains that the device has, and whether one that it has used is looked at.
        self._out: set[int] = set()
        self._looked_at = 0
        #: By head: where its slot is when it is free; at which word its request begins; how many
        #: bytes the device may write there; where the slot's request and reply lie in the region,
        #: and how much of the latter is used.
        self._homes = [self._free] * layout.num
        self.first_words = [0] * layout.num
        self._writable = [0] * layout.num
        self._requests = [0] * layout.num
        self._replies = [0] * layout.num
        self._own = [0] * layout.num
        #: By head: the flags and the next one of a descriptor that is not the last.
        self._to_reply = [_NEXT | (head + 1) << _FOLLOWING for head in range(layout.num)]
        self._to_target = [_NEXT | _WRITE | (head + 2) << _FOLLOWING for head in range(layout.num)]
        #: The two addresses of each slot.
        self._laid: list[tuple[int, int, int]] = []
        for number, head in enumerate(heads):
            room = number * rooms.size
            self.first_words[head] = room // _WORD
            self._requests[head] = rooms.offset + room
            self._replies[head] = rooms.offset + room + rooms.request
            self._laid.append((head, address + room, address + room + rooms.request))
        #: Heads of the chains that wait for publish(), in order.
        self._unpublished: list[int] = []
        self._published = base
        # The device reads used.idx when it gets the ring's addresses, and goes on from there.
        self._available[1] = base
        self._used_words[1] = base
        self._lay()

    def _lay(self) -> None:
        """Write what stays of all chains: where their messages lie."""
        descriptors = self._descriptors
        for head, request, reply in self._laid:
            descriptors[2 * head] = request
            if self._longest_reply:
                descriptors[2 * head + 2] = reply

    @property
    def free(self) -> int:
        """How many slots are free."""
        return self._slots - self._looked_at - len(self._out) - len(self._unpublished)

    @property
    def outstanding(self) -> int:
        """Requests added and not yet reaped."""
        return len(self._out) + len(self._unpublished)

    @property
    def is_idle(self) -> bool:
        """Whether the device has nothing."""
        return not self._out

    @property
    def reaped(self) -> int:
        """How many chains were reaped, modulo 65536."""
        return (self._published - len(self._out)) % WRAP

    def add(self, message: bytes, reply: int, target: int = 0, length: int = 0) -> int:
        """Write a request into a free slot; the device sees it after the next :meth:`publish`.

        Args:
            message: the request.
            reply: bytes of its reply that go into the slot's own room; 0 for no reply.
            target: the guest-physical address where the others go.
            length: how many bytes may go there; 0 for no target.

        Returns:
            The slot, which :meth:`reap` names when the device is done with it.

        Raises:
            RingFullError: no slot is free; nothing has changed.
            ValueError: a part is too long for its place, or an empty one that kills backends.

        """
        size = len(message)
        if not 0 < size <= self._longest_request or not 0 <= reply <= self._longest_reply:
            raise ValueError(f"a request of {size} bytes with a reply of {reply} bytes")
        if not self._free:
            self._take_back()
        head = self._free[-1]
        descriptors = self._descriptors
        place = 2 * head + 1
        if length:
            if not reply or length >> 32:
                raise ValueError(f"a target of {length} bytes with a reply of {reply} bytes")
            descriptors[place + 3] = target
            descriptors[place + 4] = length | _WRITE
            descriptors[place + 2] = reply | self._to_target[head]
            descriptors[place] = size | self._to_reply[head]
        elif reply:
            descriptors[place + 2] = reply | _WRITE
            descriptors[place] = size | self._to_reply[head]
        else:
            descriptors[place] = size
        begin = self._requests[head]
        self._mapping[begin : begin + size] = message
        self._own[head] = reply
        self._writable[head] = reply + length
        self._unpublished.append(head)
        return self._free.pop()

    def take(self, form: Form) -> int:
        """Return a slot that has a form's request in it; the device sees it after :meth:`publish`.

        Until then the caller writes what differs into :attr:`words`, from the slot's one of
        :attr:`first_words` on, and calls :meth:`aim` if the form has a target.

        Raises:
            RingFullError: no slot is free; nothing has changed.
            ValueError: as :meth:`add`, of the form.

        """
        free = form.free
        if not free:
            self._lay_form(form)
        head = free.pop()
        self._unpublished.append(head)
        return head

    def aim(self, head: int, target: int, length: int) -> None:
        """Direct the reply of a slot just taken to ``length`` bytes at a guest-physical address.

        Raises:
            ValueError: no such length is possible.

        """
        if length <= 0 or length >> 32:
            raise ValueError(f"a target of {length} bytes")
        place = 2 * head + 4
        self._descriptors[place] = target
        self._descriptors[place + 1] = length | _WRITE
        self._writable[head] = self._own[head] + length

    def _lay_form(self, form: Form) -> None:
        """Write a form's request into a free slot, which keeps it; :meth:`aim` adds a target."""
        head = self.add(form.message, form.reply, length=int(form.has_target))
        self._unpublished.pop()
        if form not in self._forms:
            self._forms.append(form)
        self._homes[head] = form.free
        form.free.append(head)

    def _take_back(self) -> None:
        """Take a free slot back from any form.

        Raises:
            RingFullError: no slot is free.

        """
        for form in self._forms:
            if form.free:
                head = form.free.pop()
                self._homes[head] = self._free
                self._free.append(head)
                return
        raise RingFullError("no slot is free")

    def publish(self) -> bool:
        """Offer all requests added since the last call; return whether there are any: then kick."""
        heads = self._unpublished
        if not heads:
            return False
        published = self._published
        entries = array("H", heads)
        begin, last = published & self._mask, self.layout.num
        if begin + len(entries) > last:
            entries, over = entries[: last - begin], entries[last - begin :]
            self._available[2 : 2 + len(over)] = over
        self._available[2 + begin : 2 + begin + len(entries)] = entries
        published += len(heads)
        self._out.update(heads)
        heads.clear()
        # Pairs with the device's read fence after it reads avail.idx: chains first, then the index.
        self._fence()
        self._available[1] = self._published = published % WRAP
        return True

    def reap(self, most: int = WRAP) -> Iterator[Used]:
        """Yield up to ``most`` chains that the device has used: a slot, a length, and the reply.

        The length is what was written to the whole chain, the reply what is of it in the slot's own
        room. The slot is free when the next one is asked for.

        Raises:
            MalformedError: the used ring is impossible; what was yielded before is valid, the ring
                must not be used again.

        """
        used = self._used_words[1]
        # Pairs with the device's write fence before used.idx: the index first, then the elements.
        self._fence()
        out, reaped = self._out, self.reaped
        step = (used - reaped) % WRAP
        if step > len(out):
            raise MalformedError(
                f"used.idx moved by {step} with {len(out)} outstanding", Check.USED_INDEX
            )
        begin = 2 * (reaped & self._mask)
        end = begin + 2 * min(step, most)
        # Copied out at once: what is checked is what is used.
        numbers = self._elements[begin:end].tolist()
        if end > 2 * self.layout.num:
            numbers += self._elements[: end - 2 * self.layout.num].tolist()
        writable, replies, owns = self._writable, self._replies, self._own
        mapping, homes, remove = self._mapping, self._homes, out.remove
        pairs = iter(numbers)
        for head, length in zip(pairs, pairs, strict=True):
            if head not in out:
                raise MalformedError(
                    f"used id {head} is not the head of an outstanding chain", Check.USED_ID
                )
            if length > writable[head]:
                raise MalformedError(
                    f"used length {length} of {writable[head]} writable bytes", Check.USED_LENGTH
                )
            remove(head)
            self._looked_at = 1
            begin = replies[head]
            own = owns[head]
            # No min() here: it takes twice as long.
            end = begin + (length if length < own else own)  # noqa: FURB136
            yield head, length, mapping[begin:end]
            homes[head].append(head)
            self._looked_at = 0

    def hand_over(self) -> int:
        """Return the index at which a device begins, or another one goes on, for SET_VRING_BASE.

        Where the used ring goes on, a device reads from memory, whatever its predecessor wrote; the
        chains are laid anew, too.

        Raises:
            ValueError: chains are outstanding; they are that device's.

        """
        if self.outstanding:
            raise ValueError(f"a ring with {self.outstanding} chains outstanding")
        self._lay()
        for form in self._forms:
            while form.free:
                self._take_back()
        self._used_words[1] = self.reaped
        return self.reaped

    def abandon(self) -> None:
        """Give up all that is outstanding: the device is gone for good."""
        self._slots -= self.outstanding
        self._published -= len(self._out)
        self._out.clear()
        self._unpublished.clear()

    def close(self) -> None:
        """Release the ring's memory."""
        views = self._descriptors, self._available, self._used_words, self._elements, self.words
        for view in views:
            view.release()
        vars(self).pop("_mapping", None)
