"""Which version of a file was read: how a change while it is delivered is noticed."""

import time
from typing import Final, NamedTuple

from protocol.fuse import Attributes

#: The longest step of the clock that the kernel stamps files with (CONFIG_HZ=100), in seconds.
TICK: Final = 0.010

_NANOSECONDS: Final = 1_000_000_000


class Version(NamedTuple):
    """What changes when a file's content does."""

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
    """Return the seconds until a later change is certain to get another ctime.

    A file that changed less than a tick ago can change again under the same timestamp; git calls
    such an index entry racy. 0 for all others, and for a ctime in the future.
    """
    age = ((time.time_ns() if now_ns is None else now_ns) - version.ctime_ns) / _NANOSECONDS
    return TICK - age if 0 <= age < TICK else 0.0
