"""Fit the limits of one user to the memory that the daemon may take.

No call fails for lack of memory: beyond the limit of its cgroup the kernel kills the daemon. So no
user may have it hold more than a part of that. Images are not among this: each is counted, and
looked for in the memory that is free, before it is made.
"""

from typing import Final

from vuserd.config.model import ClientLimits

#: What the daemon holds for one user in bytes, and the part of its memory that each may be.
_HELD: Final = ("user_payload", "user_frames", "user_remembered")
_PART: Final = 8
#: The fewest bytes of each that the daemon can work with, as the configuration has it.
_LEAST: Final = 1 << 20


def limits_within_memory(limits: ClientLimits, total: int) -> ClientLimits:
    """Return the limits, cut so that a user at all of them leaves half of ``total`` bytes.

    Those of a connection stay within its user's, as the configuration has it.
    """
    most = max(total // _PART, _LEAST)
    cut = limits._replace(**{name: min(getattr(limits, name), most) for name in _HELD})
    payload, frame = min(cut.payload, cut.user_payload), min(cut.frame, cut.user_frames)
    return cut._replace(payload=payload, frame=frame)
