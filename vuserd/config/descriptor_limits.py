"""Fit the limits of one user to the number of descriptors that the daemon may open.

When the descriptor table is full, the kernel closes received descriptors on the receiving thread,
and each close may block. So no user may fill the table.
"""

import resource
from typing import Final, NamedTuple

from vuserd.config.model import ClientLimits
from vuserd.wire.descriptors import MOST_DESCRIPTORS

#: The fewest open files that the daemon can work with: a backend alone takes 610.
LEAST_DESCRIPTORS: Final = 1024

#: The most images that are kept, however small: each takes at least a page and a descriptor.
_MOST_IMAGES: Final = 4096


class _Part(NamedTuple):
    """How many descriptors one unit of a limit takes, and its share of a user's room if short."""

    cost: int
    part: float


_PARTS: Final = {
    "user_connections": _Part(1, 1 / 2),
    "user_descriptors": _Part(3, 1 / 4),  # with twice as many connections that wait to be closed
    "user_requests": _Part(2, 1 / 4),  # a fetch has its image and the client's descriptor
}


def descriptors_allowed() -> int | None:
    """Return how many descriptors this process may have; None where there is no limit."""
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
        allowed: how many descriptors the daemon may have; None for any number.

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
    """Return which limits were cut, for people; empty if none was."""
    return ", ".join(
        f"{name} is {getattr(cut, name)} instead of {getattr(limits, name)}"
        for name in limits._fields
        if getattr(cut, name) != getattr(limits, name)
    )
