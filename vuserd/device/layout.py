"""Lay out a session's shared memory: two rings, then rooms for messages, then payload buffers."""

import mmap
from typing import Final, NamedTuple

from memory.arena import Pool
from memory.guest import GuestMemory, GuestRegion
from memory.region import Region
from memory.virtqueue import Rooms, Virtqueue
from protocol.fuse import OUT_HEADER_SIZE, PAGE_SIZE
from protocol.vhost_user import VringAddress
from protocol.virtio_fs import HIPRIO_QUEUE, QUEUES, REQUEST_QUEUE
from protocol.virtio_ring import DESCRIPTOR_ALIGNMENT, RingLayout

#: Descriptors of each ring, by queue.
RING_SIZES: Final = {HIPRIO_QUEUE: 128, REQUEST_QUEUE: 1024}

#: Bytes of the messages of a slot: a request, then its reply. LOOKUP of the longest name is the
#: longest request, and READLINK's the longest reply of a fixed limit.
_MESSAGES: Final = 12288
REPLY_ROOM: Final = OUT_HEADER_SIZE + PAGE_SIZE
REQUEST_ROOM: Final = _MESSAGES - REPLY_ROOM

#: Bytes of a payload buffer: the most that one READ can return.
PAYLOAD_SIZE: Final = 1 << 20

#: Bytes of a request and of its reply, by queue: on the hiprio queue nothing is answered.
_ROOMS: Final = {
    HIPRIO_QUEUE: (REQUEST_ROOM, 0),
    REQUEST_QUEUE: (REQUEST_ROOM, REPLY_ROOM),
}


class Ring(NamedTuple):
    """A ring, its place in the region, and where its messages lie."""

    layout: RingLayout
    offset: int
    rooms: Rooms


def _in_flight(queue: int) -> int:
    return Rooms(0, *_ROOMS[queue]).count(RingLayout.for_size(RING_SIZES[queue]))


#: Requests that each queue can hold, by queue.
IN_FLIGHT: Final = {queue: _in_flight(queue) for queue in QUEUES}


class SharedLayout:
    """One region with the rings, their messages and the payload buffers of a session."""

    def __init__(self, payloads: int) -> None:
        layouts = {queue: RingLayout.for_size(RING_SIZES[queue]) for queue in QUEUES}
        end = sum(map(_aligned, layouts.values()))
        end += -end % mmap.PAGESIZE
        offset = 0
        self.rings: dict[int, Ring] = {}
        for queue, layout in layouts.items():
            rooms = Rooms(end, *_ROOMS[queue])
            self.rings[queue] = Ring(layout, offset, rooms)
            offset += _aligned(layout)
            end += rooms.count(layout) * rooms.size
        payloads_at = end + -end % mmap.PAGESIZE

        self.memory = GuestMemory()
        size = payloads_at + payloads * PAYLOAD_SIZE
        self._region = Region(size, "vuserd-device")
        self._placed: GuestRegion = self.memory.add(self._region)
        self.payloads = Pool(self._region.view, self._placed, payloads_at, PAYLOAD_SIZE, payloads)

    def virtqueue(self, queue: int) -> Virtqueue:
        """Return a queue, whose ring is zeroed here."""
        layout, offset, rooms = self.rings[queue]
        return Virtqueue(self._region.mapping, self._placed, offset, layout, rooms)

    def ring_address(self, queue: int) -> VringAddress:
        """Return the addresses of a queue's ring for SET_VRING_ADDR."""
        layout, offset, _ = self.rings[queue]
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
        self.payloads.close()
        self._region.close()


def _aligned(layout: RingLayout) -> int:
    """Return the bytes from a ring to where the next one may begin."""
    return layout.size + -layout.size % DESCRIPTOR_ALIGNMENT
