"""Which version of a file was read: how a change while it is delivered is noticed."""

import time
from typing import Final, NamedTuple

from protocol.fuse import Attributes

#: The longest step of the clock that the kernel stamps files with (CONFIG_HZ=100), in seconds.
TICK: Final = 0.010
#: Steps of timestamps that are coarser than that, by the digits that they lack: two seconds where
#: there is no more than a tenth (FAT; ext4 with inodes of 128 bytes), and a tenth where there is no
#: more than a hundredth (exFAT).
_COARSE: Final = ((100_000_000, 2.0), (10_000_000, 0.1))

_NANOSECONDS: Final = 1_000_000_000


class Version(NamedTuple):
    """What changes when a file's content does, as long as it is known which file it is.

    On one file system the four say that, too. On another one a file may have the same four and
    other bytes: images that are made reproducibly do.
    """

    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, attributes: Attributes) -> "Version":
        """Return the version that the attributes tell of."""
        return cls(
            attributes.ino,
            attributes.size,
            attributes.mtime * _NANOSECONDS + attributes.mtime_nsec,
            attributes.ctime * _NANOSECONDS + attributes.ctime_nsec,
        )


def time_to_settle(version: Version, now_ns: int | None = None) -> float:
    """Return the seconds until a later change is certain to get other timestamps.

    A file that changed less than a step of its timestamps ago can change again under the same
    ones; git calls such an index entry racy. Times in the future are settled, unless they are less
    than a step away: a change would bring them back to the present.
    """
    now = time.time_ns() if now_ns is None else now_ns
    return max(_time_to_settle(version.mtime_ns, now), _time_to_settle(version.ctime_ns, now))


def _time_to_settle(stamp_ns: int, now_ns: int) -> float:
    step = _step(stamp_ns)
    age = (now_ns - stamp_ns) / _NANOSECONDS
    return step - age if -step < age < step else 0.0


def _step(stamp_ns: int) -> float:
    """Return how far apart two changes are, in seconds, that cannot have this same timestamp."""
    for unit, step in _COARSE:
        if stamp_ns % unit == 0:
            return step + TICK  # the clock that is rounded down to it has steps of its own
    return TICK
