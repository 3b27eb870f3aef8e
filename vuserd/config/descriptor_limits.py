"""What one user may have, by how many descriptors the daemon may open.

The kernel closes descriptors that it passes on where the table is full, on the thread that
receives, and each may block: so nobody may fill it.
"""

import resource
from typing import Final, NamedTuple

from vuserd.config.model import ClientLimits
from vuserd.wire.descriptors import MOST_DESCRIPTORS

#: Images that are kept, however small: each takes a page and a descriptor at least.
_MOST_IMAGES: Final = 4096


class _Part(NamedTuple):
    """What one of something takes in the end, and its part of a user's room where that is short."""

    cost: int
    part: float


_PARTS: Final = {
    "user_connections": _Part(1, 1 / 2),
    "user_descriptors": _Part(3, 1 / 4),  # and connections that wait to be closed: twice as many
    "user_requests": _Part(2, 1 / 4),  # a fetch has its image and the client's descriptor
}


def descriptors_allowed() -> int | None:
    """Return how many descriptors this process may come to have; None where that has no limit."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return None if allowed == resource.RLIM_INFINITY else allowed


def most_images(allowed: int | None) -> int:
    """Return how many images may be kept."""
    return _MOST_IMAGES if allowed is None else min(_MOST_IMAGES, allowed // 16)


def most_connections(allowed: int | None) -> int | None:
    """Return how many connections all users may have together; None for any number."""
    return None if allowed is None else allowed // 2


def limits_within(limits: ClientLimits, allowed: int | None) -> ClientLimits:
    """Return the limits, cut so that a user at all of them leaves half of the descriptors.

    Args:
        limits: as they were configured.
        allowed: descriptors that the daemon may have; None for any number.

    """
    if allowed is None:
        return limits
    room = allowed // 2 - most_images(allowed) - MOST_DESCRIPTORS  # one message may come on top
    wanted = sum(each.cost * getattr(limits, name) for name, each in _PARTS.items())
    if wanted <= room:
        return limits
    most = {name: max(1, int(room * each.part) // each.cost) for name, each in _PARTS.items()}
    return limits._replace(**{name: min(getattr(limits, name), most[name]) for name in most})


def cuts(limits: ClientLimits, cut: ClientLimits) -> str:
    """Say what was cut; empty where nothing was."""
    return ", ".join(
        f"{name} is {getattr(cut, name)} instead of {getattr(limits, name)}"
        for name in _PARTS
        if getattr(cut, name) != getattr(limits, name)
    )
