"""Find out how much memory the daemon may still take, by the machine and the daemon's cgroups.

Nothing else limits shared memory: a process that takes too much gets no error, but is killed.
"""

import contextlib
import errno
import math
import time
from collections.abc import Callable, Iterator
from typing import Final

from vuserd.delivery.cgroups import SHORTAGES, UNLIMITED, Cgroup, Room, find_cgroups
from vuserd.errors import FileError, os_reason

#: Bytes that are left for other processes, and for the daemon itself.
RESERVE: Final = 64 << 20
#: Bytes that have to stay free while images are kept for later fetches; an eighth of a small limit
#: is enough.
_KEPT_FREE: Final = 256 << 20
_KEPT_PART: Final = 8
_MEMINFO: Final = (b"MemAvailable:", b"MemTotal:")
#: Seconds after which mounts and cgroups are looked up again even if the memberships are the same.
_LOOK_AGAIN: Final = 5.0


class Headroom:
    """Tells how many bytes may be taken now; every answer is current.

    Swap does not count. Nothing is kept open, and a call takes some 100 microseconds.

    Args:
        proc: where procfs is mounted.

    """

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._cgroups: list[Cgroup] = []
        self._memberships: bytes | None = None
        self._looked = 0.0
        self._total, self._totalled = UNLIMITED, -math.inf
        #: Bytes that were promised, and are not taken yet as far as is known.
        self._promised = 0
        #: Frees about that many bytes of images kept for later fetches, as far as there are any.
        self.give_back: Callable[[int], None] = lambda _: None

    def available(self, enough: int = UNLIMITED) -> int:
        """Return the bytes that are available without swapping, exact if below ``enough``.

        This is the least of MemAvailable and of the room under each limit up to the root, without
        what is promised.

        Raises:
            OSError: there is no descriptor to look with.

        """
        return min((room.free for room in self._rooms(enough)), default=UNLIMITED)

    def total(self) -> int:
        """Return the least of all limits, in bytes, at most some seconds old.

        Where there is no descriptor to look with it is what it was.
        """
        now = time.monotonic()
        if now - self._totalled > _LOOK_AGAIN:
            with contextlib.suppress(OSError):
                self._total = min((room.total for room in self._rooms(0)), default=UNLIMITED)
                self._totalled = now
        return self._total

    def require(self, size: int, purpose: str) -> None:
        """Check that ``size`` bytes can be taken beside a reserve; free kept images if needed.

        Raises:
            FileError: ENOMEM: they are not available; EMFILE or ENFILE: that cannot be told.

        """
        wanted = size + RESERVE
        try:
            available = self.available(wanted)
            if available < wanted:
                self.give_back(wanted - available)
                available = self.available(wanted)
        except OSError as error:
            reason = f"how much memory is free cannot be told: {os_reason(error)}"
            raise FileError(error.errno or 0, reason) from error
        if available < wanted:
            raise FileError(
                errno.ENOMEM,
                f"{size} bytes of {purpose} do not fit into the {available} bytes of free memory",
            )

    @contextlib.contextmanager
    def promise(self, size: int) -> Iterator[None]:
        """Count ``size`` bytes as taken for the block's time.

        A backend takes them some time then, and until it does they look free to others.
        """
        self._promised += size
        try:
            yield
        finally:
            self._promised -= size

    def bytes_to_give_back(self) -> int:
        """Return how many bytes of images kept for later fetches should be freed.

        0 while 256 MiB are free under each limit, or an eighth of a limit below 2 GiB.
        """
        with contextlib.suppress(OSError):  # whoever needs memory is told
            rooms = self._rooms(_KEPT_FREE)
            lacking = (min(_KEPT_FREE, room.total // _KEPT_PART) - room.free for room in rooms)
            return max(max(lacking, default=0), 0)
        return 0

    def _rooms(self, enough: int) -> Iterator[Room]:
        promised = self._promised
        machine = self._machine()
        if machine is not None:
            yield machine.without(promised)
        for cgroup in self._limiting():
            for room in cgroup.rooms(enough + promised):
                yield room.without(promised)

    def _machine(self) -> Room | None:
        """Return the machine's memory by proc_meminfo(5); None if that is not shown."""
        text = self._read("meminfo")
        fields = (text.partition(name)[2].split(None, 1) for name in _MEMINFO)
        try:
            free, total = (int(words[0]) * 1024 for words in fields)
        except (IndexError, ValueError):
            return None
        return Room(free, total)

    def _limiting(self) -> list[Cgroup]:
        """Return the cgroups, found anew at times: the daemon may be moved while it runs."""
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
        except OSError as error:
            if error.errno in SHORTAGES:
                raise
            return b""  # a container without it


#: The one of this process.
HEADROOM: Final = Headroom()
