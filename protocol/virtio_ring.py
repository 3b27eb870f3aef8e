"""The split virtqueue's layout in shared memory, and the virtio feature bits that shape it.

Source: VIRTIO 1.2, section 2.7 (split virtqueues) and chapter 6 (reserved feature bits). All
numbers are little-endian.

::

    descriptors  | (addr u64, len u32, flags u16, next u16) * num |            16 * num bytes
    available    | flags u16 | idx u16 | ring u16 * num | used_event u16 |      6 + 2 * num bytes
    used         | flags u16 | idx u16 | (id u32, len u32) * num | avail_event | 6 + 8 * num bytes
"""

import struct
from enum import IntFlag
from typing import Final, NamedTuple

DESCRIPTOR: Final = struct.Struct("<QIHH")
USED_ELEMENT: Final = struct.Struct("<II")

#: Section 2.7: alignment of the three parts, in bytes.
DESCRIPTOR_ALIGNMENT: Final = 16
AVAILABLE_ALIGNMENT: Final = 2
USED_ALIGNMENT: Final = 4
MAX_RING_SIZE: Final = 32768


class DescriptorFlag(IntFlag):
    """``VIRTQ_DESC_F_*``."""

    NEXT = 1  #: the chain goes on at ``next``
    WRITE = 2  #: the device writes this buffer (else it reads it)
    INDIRECT = 4  #: the buffer is a table of descriptors


class Feature(IntFlag):
    """Virtio feature bits that a virtio-fs backend offers or that vhost-user adds."""

    NOTIFY_ON_EMPTY = 1 << 24
    LOG_ALL = 1 << 26  #: vhost: log writes to guest memory
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30  #: vhost-user: protocol features can be negotiated
    VERSION_1 = 1 << 32  #: virtio 1.0 or later
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35


class RingLayout(NamedTuple):
    """Byte offsets of a split ring's parts from its own start, for ``num`` descriptors."""

    num: int
    descriptors: int
    available: int
    used: int
    size: int

    @classmethod
    def for_size(cls, num: int) -> "RingLayout":
        """Lay a ring out; ``num`` is a power of two up to 32768."""
        if not 2 <= num <= MAX_RING_SIZE or num & (num - 1):
            raise ValueError(f"a ring has a power of two up to {MAX_RING_SIZE} of slots, not {num}")
        available = DESCRIPTOR.size * num
        used = available + 6 + 2 * num
        used += -used % USED_ALIGNMENT
        return cls(num, 0, available, used, used + 6 + USED_ELEMENT.size * num)
