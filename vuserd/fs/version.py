"""Identify the version of a file, to notice a change while it is delivered."""

import time
from typing import Final, NamedTuple

from protocol.fuse import Attributes

#: The longest step of the clock that the kernel stamps files with (CONFIG_HZ=100), in seconds.
TICK: Final = 0.010
#: Steps of coarser timestamps, in seconds, by the digits that they lack: two seconds if there are
#: at most tenths (FAT; ext4 with inodes of 128 bytes), a tenth if there are at most hundredths
#: (exFAT).
_COARSE: Final = ((100_000_000, 2.0), (10_000_000, 0.1))

_NANOSECONDS: Final = 1_000_000_000


class Version(NamedTuple):
    """The attributes that change when a file's content does.

    On one file system the four also identify the file. On two, files may have the same four and
    different bytes, as images that are made reproducibly do.
    """

    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, attributes: Attributes) -> "Version":
        """Return the version with these attributes."""
        return cls(
            attributes.ino,
            attributes.size,
            attributes.mtime * _NANOSECONDS + attributes.mtime_nsec,
            attributes.ctime * _NANOSECONDS + attributes.ctime_nsec,
        )


def time_to_settle(version: Version, now_ns: int | None = None) -> float:
    """Return the seconds until a later change is certain to get other timestamps.

    A file that changed less than one step of its timestamps ago can change again without getting
    new ones; git calls such an index entry racy. Times in the future are settled, unless they are
    less than a step away: a change would set them to the present.
    """
    now = time.time_ns() if now_ns is None else now_ns
    return max(_time_to_settle(version.mtime_ns, now), _time_to_settle(version.ctime_ns, now))


def _time_to_settle(stamp_ns: int, now_ns: int) -> float:
    step = _step(stamp_ns)
    age = (now_ns - stamp_ns) / _NANOSECONDS
    return step - age if -step < age < step else 0.0


def _step(stamp_ns: int) -> float:
    """Return how many seconds apart two changes must be not to share this timestamp."""
    for unit, step in _COARSE:
        if stamp_ns % unit == 0:
            return step + TICK  # the clock that is rounded down has steps as well
    return TICK
