"""The virtio-fs device: its id, queues, feature bits and configuration space.

Source: VIRTIO 1.2, section 5.11 (File System Device).
"""

import struct
from enum import IntFlag
from typing import Final, NamedTuple

from protocol import MalformedError

DEVICE_ID: Final = 26
#: FORGET, BATCH_FORGET and INTERRUPT go here, and nothing else does.
HIPRIO_QUEUE: Final = 0
#: The first request queue, when VIRTIO_FS_F_NOTIFICATION is not negotiated.
REQUEST_QUEUE: Final = 1
#: Both queues that a session drives.
QUEUES: Final = (HIPRIO_QUEUE, REQUEST_QUEUE)


class DeviceFeature(IntFlag):
    """``VIRTIO_FS_F_*``."""

    NOTIFICATION = 1 << 0  #: the device has a notification queue


_CONFIG = struct.Struct("<36sII")
CONFIG_SIZE: Final = _CONFIG.size


class DeviceConfig(NamedTuple):
    """``struct virtio_fs_config``, section 5.11.4."""

    tag: bytes
    num_request_queues: int
    notify_buf_size: int

    @classmethod
    def decode(cls, payload: bytes) -> "DeviceConfig":
        """Decode the 44 bytes of configuration space; the tag ends at its first NUL.

        Raises:
            MalformedError: another length, or no request queue.

        """
        if len(payload) != CONFIG_SIZE:
            raise MalformedError(f"a virtio-fs configuration of {len(payload)} bytes")
        tag, queues, notify = _CONFIG.unpack(payload)
        if queues < 1:
            raise MalformedError("a virtio-fs device without a request queue")
        return cls(tag.partition(b"\0")[0], queues, notify)
