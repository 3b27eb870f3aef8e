"""The vhost-user protocol, front-end side: requests, features, payloads, and checks on replies.

Source: QEMU's ``docs/interop/vhost-user.rst`` (QEMU 11). All numbers travel in the machine's own
byte order. This module knows neither the socket nor the order in which messages make sense.

::

    message   | request u32 | flags u32 | size u32 | payload: size bytes |   + descriptors
    flags     bits 0-1 version (1), bit 2 REPLY, bit 3 NEED_REPLY
"""

import struct
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from protocol import MalformedError

VERSION: Final = 1
#: No message that a front-end of ours receives is longer; a larger size field is a lie.
MAX_PAYLOAD: Final = 4096
#: The most descriptors that one message carries (``VHOST_USER_MAX_FDS`` regions in a table).
MAX_DESCRIPTORS: Final = 8
#: ``SET_VRING_KICK`` and its kin: bits 0-7 are the queue's index, bit 8 says "no descriptor".
VRING_NO_DESCRIPTOR: Final = 1 << 8


class Request(IntEnum):
    """Messages from the front-end, by the id on the wire."""

    GET_FEATURES = 1  #: virtio feature bits the backend offers: u64 in reply
    SET_FEATURES = 2  #: the subset the front-end takes: u64
    SET_OWNER = 3  #: this front-end owns the session from here on
    RESET_OWNER = 4  #: deprecated: never sent
    SET_MEM_TABLE = 5  #: all memory regions at once, one descriptor each
    SET_LOG_BASE = 6  #: shared memory for the dirty log
    SET_LOG_FD = 7  #: eventfd for the dirty log
    SET_VRING_NUM = 8  #: size of a ring
    SET_VRING_ADDR = 9  #: where a ring's three parts are
    SET_VRING_BASE = 10  #: next index in the available ring
    GET_VRING_BASE = 11  #: stop a ring and tell its next index
    SET_VRING_KICK = 12  #: eventfd: the front-end made buffers available
    SET_VRING_CALL = 13  #: eventfd: the backend used buffers
    SET_VRING_ERR = 14  #: eventfd: the backend found a fault
    GET_PROTOCOL_FEATURES = 15  #: protocol feature bits the backend offers: u64 in reply
    SET_PROTOCOL_FEATURES = 16  #: the subset the front-end takes: u64
    GET_QUEUE_NUM = 17  #: number of queues: u64 in reply
    SET_VRING_ENABLE = 18  #: enable or disable a ring
    SEND_RARP = 19  #: network devices: announce a MAC address
    NET_SET_MTU = 20  #: network devices: set the MTU
    SET_BACKEND_REQ_FD = 21  #: socket for requests of the backend
    IOTLB_MSG = 22  #: IOTLB updates
    SET_VRING_ENDIAN = 23  #: byte order of a legacy ring
    GET_CONFIG = 24  #: read the device's configuration space
    SET_CONFIG = 25  #: write it
    CREATE_CRYPTO_SESSION = 26  #: crypto devices
    CLOSE_CRYPTO_SESSION = 27  #: crypto devices
    POSTCOPY_ADVISE = 28  #: postcopy migration is about to come
    POSTCOPY_LISTEN = 29  #: postcopy migration begins
    POSTCOPY_END = 30  #: postcopy migration is over
    GET_INFLIGHT_FD = 31  #: shared memory that tracks requests in flight
    SET_INFLIGHT_FD = 32  #: give it to a new backend
    GPU_SET_SOCKET = 33  #: GPU devices
    RESET_DEVICE = 34  #: reset the device, keep the ownership
    VRING_KICK = 35  #: a kick in band
    GET_MAX_MEM_SLOTS = 36  #: how many regions ADD_MEM_REG may add: u64 in reply
    ADD_MEM_REG = 37  #: add one region, with its descriptor
    REM_MEM_REG = 38  #: remove one region
    SET_STATUS = 39  #: the virtio device status field
    GET_STATUS = 40  #: the virtio device status field: u64 in reply
    GET_SHARED_OBJECT = 41  #: a dma-buf by UUID
    SET_DEVICE_STATE_FD = 42  #: begin to save or load the device's state through a descriptor
    CHECK_DEVICE_STATE = 43  #: did that succeed: u64 in reply
    GET_SHMEM_CONFIG = 44  #: sizes of VIRTIO shared memory regions


class MessageFlag(IntFlag):
    """The header's flags above the two version bits."""

    REPLY = 1 << 2
    NEED_REPLY = 1 << 3


class ProtocolFeature(IntFlag):
    """``VHOST_USER_PROTOCOL_F_*`` bits up to 19; above, implementations disagree on the meaning."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19


#: Requests of ours that the backend answers with a payload of their own, NEED_REPLY or not.
REPLIED: Final = frozenset(
    {
        Request.GET_FEATURES,
        Request.GET_PROTOCOL_FEATURES,
        Request.GET_VRING_BASE,
        Request.GET_QUEUE_NUM,
        Request.GET_CONFIG,
        Request.GET_INFLIGHT_FD,
        Request.GET_MAX_MEM_SLOTS,
        Request.GET_STATUS,
        Request.GET_SHARED_OBJECT,
        Request.GET_SHMEM_CONFIG,
        Request.SET_DEVICE_STATE_FD,
        Request.CHECK_DEVICE_STATE,
    }
)

_HEADER = struct.Struct("=III")
HEADER_SIZE: Final = _HEADER.size


class Header(NamedTuple):
    """The twelve bytes before every payload."""

    request: int
    flags: int
    size: int

    def encode(self) -> bytes:
        """Encode for the wire."""
        return _HEADER.pack(*self)


def encode_message(request: Request, payload: bytes = b"", *, need_reply: bool = False) -> bytes:
    """Encode a front-end message: header and payload, to be sent in one ``sendmsg``."""
    flags = VERSION | (MessageFlag.NEED_REPLY if need_reply else 0)
    return Header(request, flags, len(payload)).encode() + payload


def decode_reply_header(header: bytes, request: Request) -> int:
    """Check the header of the reply to ``request``; return the size of its payload in bytes.

    Raises:
        MalformedError: another length or version, not a reply, to another request, or too large.

    """
    if len(header) != HEADER_SIZE:
        raise MalformedError(f"a vhost-user header of {len(header)} bytes")
    answered, flags, size = _HEADER.unpack(header)
    if answered != request:
        raise MalformedError(f"a reply to vhost-user request {answered}, not to {request.name}")
    if flags & 3 != VERSION:
        raise MalformedError(f"vhost-user version {flags & 3} in the reply to {request.name}")
    if not flags & MessageFlag.REPLY:
        raise MalformedError(f"no REPLY flag in the reply to {request.name}")
    if size > MAX_PAYLOAD:
        raise MalformedError(f"a payload of {size} bytes in the reply to {request.name}")
    return int(size)


_U64 = struct.Struct("=Q")


def encode_u64(value: int) -> bytes:
    """Encode the payload that is one 64-bit number."""
    return _U64.pack(value)


def decode_u64(payload: bytes) -> int:
    """Decode the payload that is one 64-bit number."""
    return int(_unpack(_U64, payload)[0])


def encode_vring_descriptor(queue: int, *, descriptor: bool = True) -> bytes:
    """Encode the payload of SET_VRING_KICK, _CALL and _ERR; no descriptor means "none"."""
    if not 0 <= queue <= 0xFF:
        raise ValueError(f"queue index {queue} is not one of 0..255")
    return _U64.pack(queue | (0 if descriptor else VRING_NO_DESCRIPTOR))


_VRING_STATE = struct.Struct("=II")


class VringState(NamedTuple):
    """``struct vhost_vring_state``: a queue's index and one number about it."""

    queue: int
    num: int

    def encode(self) -> bytes:
        """Encode for SET_VRING_NUM, _BASE, _ENABLE and GET_VRING_BASE."""
        return _VRING_STATE.pack(*self)

    @classmethod
    def decode(cls, payload: bytes) -> "VringState":
        """Decode the reply to GET_VRING_BASE: a split ring's index has 16 bits."""
        state = cls(*_unpack(_VRING_STATE, payload))
        if state.num > 0xFFFF:
            raise MalformedError(f"a ring at index {state.num}")
        return state


_VRING_ADDRESS = struct.Struct("=IIQQQQ")


class VringAddress(NamedTuple):
    """``struct vhost_vring_addr``: a ring's parts as user addresses of the memory table."""

    queue: int
    flags: int
    descriptor: int
    used: int
    available: int
    log: int

    def encode(self) -> bytes:
        """Encode for SET_VRING_ADDR."""
        return _VRING_ADDRESS.pack(*self)


_MEMORY_REGION = struct.Struct("=QQQQ")
_MEMORY_TABLE_HEAD = struct.Struct("=II")


class MemoryRegion(NamedTuple):
    """One region of guest memory; its memfd travels beside it.

    All in bytes: where the guest sees it, its size, the address that rings are given in, and where
    it begins in the memfd.
    """

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int


def encode_memory_table(regions: Sequence[MemoryRegion]) -> bytes:
    """Encode the payload of SET_MEM_TABLE: the regions in the order of their descriptors."""
    if not 1 <= len(regions) <= MAX_DESCRIPTORS:
        raise ValueError(f"{len(regions)} regions in a memory table of 1..{MAX_DESCRIPTORS}")
    head = _MEMORY_TABLE_HEAD.pack(len(regions), 0)
    return head + b"".join(_MEMORY_REGION.pack(*region) for region in regions)


_SINGLE_REGION = struct.Struct("=QQQQQ")


def encode_memory_region(region: MemoryRegion) -> bytes:
    """Encode the payload of ADD_MEM_REG and REM_MEM_REG."""
    return _SINGLE_REGION.pack(0, *region)


class TransferDirection(IntEnum):
    """Which way SET_DEVICE_STATE_FD moves the state, seen from the front-end."""

    SAVE = 0  #: out of the backend
    LOAD = 1  #: into the backend


class TransferPhase(IntEnum):
    """In which phase of a migration; only one is defined."""

    STOPPED = 0  #: the device is stopped


_DEVICE_STATE = struct.Struct("=II")


def encode_device_state(direction: TransferDirection, phase: TransferPhase) -> bytes:
    """Encode the payload of SET_DEVICE_STATE_FD; one end of a pipe travels beside it."""
    return _DEVICE_STATE.pack(direction, phase)


class DeviceStateReply(NamedTuple):
    """The reply to SET_DEVICE_STATE_FD."""

    accepted: bool
    #: The backend sends a descriptor of its own to use in place of ours.
    own_descriptor: bool


def decode_device_state_reply(payload: bytes) -> DeviceStateReply:
    """Decode: bits 0-7 are 0 for success, bit 8 (the invalid-descriptor flag) for "use yours".

    Raises:
        MalformedError: a failure that brings a descriptor, which the specification rules out.

    """
    value = decode_u64(payload)
    if value & 0xFF and not value & VRING_NO_DESCRIPTOR:
        raise MalformedError(f"a device state transfer that failed ({value:#x}) with a descriptor")
    return DeviceStateReply(value & 0xFF == 0, value & VRING_NO_DESCRIPTOR == 0)


def _unpack(layout: struct.Struct, payload: bytes) -> tuple[int, ...]:
    if len(payload) != layout.size:
        raise MalformedError(f"a payload of {len(payload)} bytes where {layout.size} belong")
    return layout.unpack(payload)
