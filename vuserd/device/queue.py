"""One virtqueue with its two eventfds: kicks go out a batch at a time, calls come in."""

import contextlib
import os
from collections.abc import Callable
from typing import Generic, TypeVar

import trio

from memory.virtqueue import Virtqueue

Token = TypeVar("Token")


class NotifiedQueue(Generic[Token]):
    """A virtqueue whose chains are kicked in batches and reaped when the backend calls.

    Everything that was submitted in one pass of the scheduler goes out with one kick; a request
    that finds the ring idle goes out at once.
    """

    def __init__(self, ring: Virtqueue[Token], used: Callable[[Token, int], None]) -> None:
        self.ring = ring
        self._used = used
        self.kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:
            os.close(self.kick)
            raise
        self._kicker: trio.lowlevel.Task | None = None
        #: When the device last used a chain, or was given the first one after a time without.
        self.heard = 0.0

    def offer(self) -> None:
        """See to it that the chains that were added reach the backend soon."""
        if self.ring.outstanding == 1:
            self.heard = trio.current_time()
            self._publish()
        elif self._kicker is not None:
            trio.lowlevel.reschedule(self._kicker)
            self._kicker = None

    async def kick_batches(self) -> None:
        """Kick once for all that was offered since the last pass; runs until cancelled."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._kicker = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            self._publish()
            self._kicker = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abort)

    async def reap_calls(self) -> None:
        """Hand every used chain to the callback; runs until cancelled.

        Raises:
            MalformedError: the used ring is not to be believed.

        """
        while True:
            await trio.lowlevel.wait_readable(self.call)
            # The eventfd first, then used.idx: a chain used in between calls again.
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.call)
            now = trio.current_time()
            for token, length in self.ring.reap():
                self.heard = now
                self._used(token, length)

    def _publish(self) -> None:
        if self.ring.publish():
            # Only a counter at its limit, 2**64 - 2, would block; the backend is woken already.
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(self.kick, 1)

    def close(self) -> None:
        """Close the eventfds and let go of the ring's memory. The tasks have ended."""
        os.close(self.kick)
        os.close(self.call)
        self.ring.close()
