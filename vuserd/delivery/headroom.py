"""How much memory the daemon may still take: what the machine has, and its cgroups allow.

Shared memory has no other limit than these: who goes beyond is killed, not told.
"""

import errno
import math
import time
from collections.abc import Callable, Iterator
from typing import Final

from vuserd.delivery.cgroups import UNLIMITED, Cgroup, Room, find_cgroups
from vuserd.errors import FileError

#: Bytes that are left to others, and to the daemon itself, when some are taken.
RESERVE: Final = 64 << 20
#: Bytes that have to stay free while some are kept for a next time alone; of a small limit an
#: eighth will do.
_KEPT_FREE: Final = 256 << 20
_KEPT_PART: Final = 8
_MEMINFO: Final = (b"MemAvailable:", b"MemTotal:")
#: Seconds after which mounts and cgroups are looked up anew, if the memberships did not change.
_LOOK_AGAIN: Final = 5.0


class Headroom:
    """Says how many bytes may be taken now; every answer is of the moment.

    Swap counts for nothing. Nothing is kept open, and a call takes some 100 microseconds.

    Args:
        proc: where procfs is.

    """

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._cgroups: list[Cgroup] = []
        self._memberships: bytes | None = None
        self._looked = 0.0
        self._total, self._totalled = UNLIMITED, -math.inf
        #: Frees about so many bytes of what is kept for a next time, as far as there are any.
        self.give_back: Callable[[int], None] = lambda _: None

    def available(self, enough: int = UNLIMITED) -> int:
        """Return the bytes that can be had without swapping, exact where that is below ``enough``.

        This is the least of MemAvailable and of what each limit on the way to the root leaves.
        """
        return min((room.free for room in self._rooms(enough)), default=UNLIMITED)

    def total(self) -> int:
        """Return the least of all limits, in bytes, as it was some seconds ago at most."""
        now = time.monotonic()
        if now - self._totalled > _LOOK_AGAIN:
            self._total = min((room.total for room in self._rooms(0)), default=UNLIMITED)
            self._totalled = now
        return self._total

    def require(self, size: int, purpose: str) -> None:
        """Check that ``size`` bytes can be taken and leave a reserve, if what is kept gives way.

        Raises:
            FileError: ENOMEM: they cannot be had.

        """
        wanted = size + RESERVE
        available = self.available(wanted)
        if available < wanted:
            self.give_back(wanted - available)
            available = self.available(wanted)
        if available < wanted:
            raise FileError(
                errno.ENOMEM,
                f"{size} bytes of {purpose} do not fit into the {available} bytes of free memory",
            )

    def bytes_to_give_back(self) -> int:
        """Return how many bytes should be freed of those that are kept for a next time.

        0 while each limit leaves 256 MiB free, or an eighth of a limit below 2 GiB.
        """
        rooms = self._rooms(_KEPT_FREE)
        lacking = (min(_KEPT_FREE, room.total // _KEPT_PART) - room.free for room in rooms)
        return max(max(lacking, default=0), 0)

    def _rooms(self, enough: int) -> Iterator[Room]:
        machine = self._machine()
        if machine is not None:
            yield machine
        for cgroup in self._limiting():
            yield from cgroup.rooms(enough)

    def _machine(self) -> Room | None:
        """Return what the machine has by proc_meminfo(5); None where that is not told."""
        text = self._read("meminfo")
        fields = (text.partition(name)[2].split(None, 1) for name in _MEMINFO)
        try:
            free, total = (int(words[0]) * 1024 for words in fields)
        except (IndexError, ValueError):
            return None
        return Room(free, total)

    def _limiting(self) -> list[Cgroup]:
        """Return the cgroups: systemd or an operator may move the daemon while it runs."""
        memberships = self._read("self/cgroup")
        now = time.monotonic()
        if memberships != self._memberships or now - self._looked > _LOOK_AGAIN:
            self._cgroups = find_cgroups(memberships, self._read("self/mountinfo"))
            self._memberships = memberships
            self._looked = now
        return self._cgroups

    def _read(self, name: str) -> bytes:
        try:
            with open(f"{self._proc}/{name}", "rb", buffering=0) as file:
                return file.readall()
        except OSError:  # a container without it
            return b""


#: That of this process.
HEADROOM: Final = Headroom()
