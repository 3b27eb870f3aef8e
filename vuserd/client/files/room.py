"""Set the blocks of a large new file aside before it is written, which then costs less.

ext4 reserves, counts and records each block of 4 KiB that it is to allocate later: a third of the
time that a write takes.
"""

import fcntl
import os
import struct
from contextlib import suppress
from typing import Final

from vuserd.client.files.sinks import is_sparse
from vuserd.client.records import Stat

#: FS_IOC_RESVSP64 of include/linux/falloc.h: fallocate(2) with FALLOC_FL_KEEP_SIZE. Python has that
#: of posix_fallocate(3) only, which writes to each block where the file system has no such call;
#: and which gives the file its length, so that after a crash it would look like a whole one.
_RESERVE: Final = 0x4030582A
#: struct space_resv: type, whence, start and length, and what Linux does not look at.
_SPACE: Final = struct.Struct("@hhqq24x")
#: Bytes of the smallest file that it pays for.
_LEAST: Final = 8 << 20


def set_aside(fileno: int, source: Stat) -> None:
    """Set blocks aside for an empty file that is to have the content of ``source``.

    Its length stays 0, and cutting it off at its end gives back what was too much. The file must
    replace no other one: ext4 would not write it before the other one is gone, as it does where it
    has yet to allocate the blocks. Nothing is done for sparse files, where little room is left, and
    on file systems that are not those of one block device: in memory each page would be touched
    twice, and Btrfs does not compress what was set aside.
    """
    if source.size < _LEAST or is_sparse(source) or not os.major(os.fstat(fileno).st_dev):
        return
    with suppress(OSError):  # the file system cannot do it, or has no room for it
        found = os.fstatvfs(fileno)
        if source.size <= found.f_bavail * found.f_frsize // 2:
            fcntl.ioctl(fileno, _RESERVE, _SPACE.pack(0, os.SEEK_SET, 0, source.size))
