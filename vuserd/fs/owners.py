"""Owners of files as the host knows them, where a backend's user namespace shows others.

In a user namespace every id that it does not map is shown as the overflow id (user_namespaces(7)),
which is also an id that files may have. So of files with that owner nothing is known.
"""

import contextlib
from typing import Final, NamedTuple

_OVERFLOW: Final = "/proc/sys/kernel/overflow{}"
_ALL_IDS: Final = (1 << 32) - 1


class _Range(NamedTuple):
    """Ids that follow each other: a line of ``uid_map``."""

    inside: int
    outside: int
    length: int


class IdMap(NamedTuple):
    """The user or group ids of one namespace: a file such as ``/proc/PID/uid_map``."""

    ranges: tuple[_Range, ...]
    overflow: int

    @property
    def is_complete(self) -> bool:
        """Whether ids are the same inside and outside."""
        return self.ranges == ((0, 0, _ALL_IDS),)

    def to_host(self, number: int) -> int | None:
        """Return the host's id for one that was seen inside; None where it cannot be known."""
        for inside, outside, length in self.ranges:
            if inside <= number < inside + length:
                return outside + number - inside
        return None if number == self.overflow else number


class Owners(NamedTuple):
    """The ids of a backend's user namespace."""

    users: IdMap
    groups: IdMap


def owners_of(process: int, proc: str = "/proc") -> Owners | None:
    """Return how a backend's process maps ids; None where it sees those of the daemon."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        maps = _read_map(proc, process, "uid"), _read_map(proc, process, "gid")
        own = _read_map(proc, "self", "uid"), _read_map(proc, "self", "gid")
        if maps != own and not all(each.is_complete for each in maps):
            return Owners(*maps)
    return None


def _read_map(proc: str, process: int | str, kind: str) -> IdMap:
    with open(f"{proc}/{process}/{kind}_map") as lines:
        ranges = tuple(_Range(*map(int, line.split())) for line in lines)
    overflow = 65534
    with contextlib.suppress(OSError, ValueError), open(_OVERFLOW.format(kind)) as file:
        overflow = int(file.read())
    return IdMap(ranges, overflow)
