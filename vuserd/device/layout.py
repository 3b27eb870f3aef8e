"""Lay out a session's shared memory: two rings, then message buffers, then payload buffers."""

import mmap
from typing import Final, NamedTuple

from memory.arena import Pool
from memory.guest import GuestMemory, GuestRegion
from memory.region import Region
from protocol.fuse import OUT_HEADER_SIZE, PAGE_SIZE
from protocol.vhost_user import VringAddress
from protocol.virtio_fs import HIPRIO_QUEUE, QUEUES, REQUEST_QUEUE
from protocol.virtio_ring import DESCRIPTOR_ALIGNMENT, RingLayout

#: Descriptors of each ring, by queue.
RING_SIZES: Final = {HIPRIO_QUEUE: 128, REQUEST_QUEUE: 1024}
#: The longest chain: request, out-header, payload.
CHAIN_LENGTH: Final = 3

#: Bytes of a message buffer: a request, then room for its reply. LOOKUP of the longest name is the
#: longest request, and READLINK's the longest reply of a fixed limit.
MESSAGE_SIZE: Final = 12288
REPLY_ROOM: Final = OUT_HEADER_SIZE + PAGE_SIZE
REQUEST_ROOM: Final = MESSAGE_SIZE - REPLY_ROOM

#: Bytes of a payload buffer: the most that one READ can return.
PAYLOAD_SIZE: Final = 1 << 20

#: Requests that each queue can hold, by queue: a chain on the hiprio queue is one descriptor.
IN_FLIGHT: Final = {
    HIPRIO_QUEUE: RING_SIZES[HIPRIO_QUEUE],
    REQUEST_QUEUE: RING_SIZES[REQUEST_QUEUE] // CHAIN_LENGTH,
}


class Ring(NamedTuple):
    """A ring and its place in the region."""

    layout: RingLayout
    offset: int


class SharedLayout:
    """One region with the rings, the message buffers and the payload buffers of a session."""

    def __init__(self, payloads: int) -> None:
        self.rings: dict[int, Ring] = {}
        end = 0
        for queue in QUEUES:
            layout = RingLayout.for_size(RING_SIZES[queue])
            self.rings[queue] = Ring(layout, end)
            end += layout.size + -layout.size % DESCRIPTOR_ALIGNMENT
        messages_at = end + -end % mmap.PAGESIZE
        message_count = sum(IN_FLIGHT.values())
        payloads_at = messages_at + message_count * MESSAGE_SIZE

        self.memory = GuestMemory()
        size = payloads_at + payloads * PAYLOAD_SIZE
        self._region = Region(size, "vuserd-device")
        self._placed: GuestRegion = self.memory.add(self._region)
        view = self._region.view
        self.messages = Pool(view, self._placed, messages_at, MESSAGE_SIZE, message_count)
        self.payloads = Pool(view, self._placed, payloads_at, PAYLOAD_SIZE, payloads)

    def ring_memory(self, queue: int) -> memoryview:
        """Return the bytes of a queue's ring."""
        layout, offset = self.rings[queue]
        return self._region.view[offset : offset + layout.size]

    def ring_address(self, queue: int) -> VringAddress:
        """Return the addresses of a queue's ring for SET_VRING_ADDR."""
        layout, offset = self.rings[queue]
        start = self._placed.user_address(offset, layout.size)
        return VringAddress(
            queue,
            flags=0,
            descriptor=start + layout.descriptors,
            used=start + layout.used,
            available=start + layout.available,
            log=0,
        )

    def close(self) -> None:
        """Release the region; payloads on their way to a client keep their pages until sent."""
        self.messages.close()
        self.payloads.close()
        self._region.close()
