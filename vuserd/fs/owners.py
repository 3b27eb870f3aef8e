"""Translate owners of files from a backend's user namespace to the host's ids.

A user namespace shows every id that it does not map as the overflow id (user_namespaces(7)), which
files may also really have. So the owner of a file with that id is unknown.
"""

import contextlib
from typing import Final, NamedTuple

_OVERFLOW: Final = "/proc/sys/kernel/overflow{}"
_ALL_IDS: Final = (1 << 32) - 1


class _Range(NamedTuple):
    """A range of ids: a line of ``uid_map``."""

    inside: int
    outside: int
    length: int


class IdMap(NamedTuple):
    """The map of user or group ids of one namespace: a file such as ``/proc/PID/uid_map``."""

    ranges: tuple[_Range, ...]
    overflow: int

    @property
    def is_complete(self) -> bool:
        """Whether ids are the same inside and outside."""
        return self.ranges == ((0, 0, _ALL_IDS),)

    def to_host(self, number: int) -> int | None:
        """Return the host's id for an id inside the namespace; None if it cannot be known."""
        for inside, outside, length in self.ranges:
            if inside <= number < inside + length:
                return outside + number - inside
        return None if number == self.overflow else number

    def all_to_host(self, numbers: list[int]) -> list[int | None]:
        """Return the host's ids for many of them."""
        known = {number: self.to_host(number) for number in set(numbers)}
        return [known[number] for number in numbers]


class Owners(NamedTuple):
    """The maps of user and group ids of a backend's user namespace."""

    users: IdMap
    groups: IdMap


def owners_of(process: int, proc: str = "/proc") -> Owners | None:
    """Return how a backend's process maps ids; None if it sees the same ids as the daemon."""
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
