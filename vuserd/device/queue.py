"""One virtqueue with its two pipes: kicks go out a batch at a time, calls come in.

Everybody else has eventfds here. But whoever is given an eventfd shares its open file description
(fcntl(2)): a backend could make ours block again, and the whole daemon with it. Of a pipe each side
has a description of its own. Backends read kicks and write calls as the eight bytes of an eventfd's
counter, and do not see the difference.
"""

import contextlib
import fcntl
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

import trio

from memory.virtqueue import WRAP, Used, Virtqueue

_ONE: Final = (1).to_bytes(8, sys.byteorder)
#: Bytes of calls that are read at once: more than an honest backend has reason to write.
_CALLS: Final = 8192
#: Used chains that are taken at once, and seconds after which other tasks have their turn.
_AT_ONCE: Final = 16
_TURN: Final = 0.0002


class NotifiedQueue:
    """A virtqueue whose requests are kicked in batches and reaped when the backend calls.

    Everything that was submitted in one pass of the scheduler goes out with one kick; a request
    that finds the ring idle is kicked at once. A device that is busy finds the others, too, before
    it is kicked.

    Args:
        ring: the virtqueue.
        take: is handed what the device has used, a part at a time, and takes all of it.

    """

    def __init__(self, ring: Virtqueue, take: Callable[[Iterator[Used]], None]) -> None:
        self.ring = ring
        self._take = take
        with contextlib.ExitStack() as descriptors:
            #: What the backend reads kicks from, and what it writes calls to. They stay open here,
            #: too: of a pipe whose other end is closed there is always something to tell.
            self.kick, self._kick = _pipe(descriptors, os.O_DIRECT)
            self._call, self.call = _pipe(descriptors)
            # One packet is all that this one holds: kicks do not queue up, just as in an eventfd.
            fcntl.fcntl(self._kick, fcntl.F_SETPIPE_SZ, mmap.PAGESIZE)
            # A backend that cannot write a call ends. It may well wait until those before are read.
            os.set_blocking(self.call, True)
            self._descriptors = descriptors.pop_all()
        self._kicker: trio.lowlevel.Task | None = None
        #: Whether the device was given requests that it was not kicked for.
        self._is_kick_due = False
        #: Whether what the device has used is being taken now: all that is submitted meanwhile goes
        #: out when that is over.
        self.is_reaping = False
        #: When that began.
        self.now = 0.0
        #: When the device last used a chain, or was given the first one after a time without.
        self.heard = 0.0

    def offer(self) -> None:
        """Give the backend what was added, and see to it that it is kicked soon."""
        if self.is_reaping:
            return
        if self.ring.is_idle:
            self.publish()
        elif self._published():
            self._is_kick_due = True
            if self._kicker is not None:
                trio.lowlevel.reschedule(self._kicker)
                self._kicker = None

    def publish(self) -> None:
        """Give the backend all that was added, unless what it has used is being taken."""
        if self.is_reaping:
            return
        if self._published() or self._is_kick_due:
            self._is_kick_due = False
            # Where the last kick was not read yet, the backend is about to look anyway.
            with contextlib.suppress(BlockingIOError):
                os.write(self._kick, _ONE)

    def _published(self) -> bool:
        """Offer what was added to the device; return whether there was anything."""
        was_idle = self.ring.is_idle
        if not self.ring.publish():
            return False
        if was_idle:
            self.heard = trio.current_time()
        return True

    async def kick_batches(self) -> None:
        """Kick once for all that was offered since the last pass; runs until cancelled."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._kicker = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            self.publish()
            self._kicker = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abort)

    async def reap_calls(self) -> None:
        """Take every used chain, and others have their turn now and then; runs until cancelled.

        Raises:
            MalformedError: the used ring is not to be believed.

        """
        while True:
            await trio.lowlevel.wait_readable(self._call)
            # The calls first, then used.idx: a chain used in between calls again.
            with contextlib.suppress(BlockingIOError):
                os.read(self._call, _CALLS)
            while self._reap():
                await trio.lowlevel.checkpoint()

    def reap(self) -> None:
        """Take some of what the device has used, without a call of the backend.

        Raises:
            As :meth:`reap_calls`.

        """
        if not (self.ring.is_idle or self.is_reaping):
            self._reap()

    def _reap(self) -> bool:
        """Take some of what the device has used; return whether there may be more."""
        ring = self.ring
        before = reaped = ring.reaped
        self.now = trio.current_time()
        end = time.perf_counter() + _TURN
        self.is_reaping = True
        try:
            while True:
                self._take(ring.reap(_AT_ONCE))
                has_more = (ring.reaped - reaped) % WRAP == _AT_ONCE
                reaped = ring.reaped
                if not has_more or time.perf_counter() > end:
                    break
        finally:
            self.is_reaping = False
            if reaped != before:
                self.heard = self.now
        self.publish()
        return has_more

    def close(self) -> None:
        """Close the pipes and let go of the ring's memory. The tasks have ended."""
        self._descriptors.close()
        self.ring.close()
        del self._take  # which keeps who made this one


def _pipe(descriptors: contextlib.ExitStack, flags: int = 0) -> tuple[int, int]:
    """Return the end to read from and the end to write to, which the stack closes."""
    pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK | flags)
    for descriptor in pipe:
        descriptors.callback(os.close, descriptor)
    return pipe
