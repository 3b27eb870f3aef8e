"""The virtio-fs device's queues.

Source: VIRTIO 1.2, section 5.11.2 (Virtqueues of the File System Device).
"""

from typing import Final

#: FORGET, BATCH_FORGET and INTERRUPT go here, and nothing else does.
HIPRIO_QUEUE: Final = 0
#: The first request queue, when VIRTIO_FS_F_NOTIFICATION is not negotiated.
REQUEST_QUEUE: Final = 1
#: Both queues that a session drives.
QUEUES: Final = (HIPRIO_QUEUE, REQUEST_QUEUE)
