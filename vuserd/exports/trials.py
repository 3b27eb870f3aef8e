"""Calls that may have killed a backend: each is tried again alone, while others wait a moment.

Of the calls that a backend had when it was lost, one may be what killed it, and will kill the next
one. Tried together again, it would take the others with it; tried alone, it is known.
"""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from vuserd.errors import BackendTimeout

#: Seconds for which a call has a backend to itself: what kills one does so at once, as a rule.
_ALONE: Final = 0.25
#: Seconds for all calls of one loss together: others are not to wait for a thousand of them.
_TOGETHER: Final = 2.0


class Trials:
    """Turns for calls whose backend was lost, and a gate for all others."""

    def __init__(self) -> None:
        self._turn = trio.StrictFIFOLock()
        #: Calls that have a turn or wait for one.
        self._suspects = 0
        #: When the gate opens for others at the latest; None where it is open.
        self._closed_until: float | None = None
        self._others = trio.lowlevel.ParkingLot()

    @property
    def are_on(self) -> bool:
        """Whether others have to :meth:`wait`."""
        return self._closed_until is not None

    async def wait(self, deadline: float) -> None:
        """Wait until the gate is open, or the deadline is over."""
        while self._closed_until is not None:
            opens = min(self._closed_until, deadline)
            if trio.current_time() >= opens:
                return
            with trio.move_on_at(opens):
                await self._others.park()

    @asynccontextmanager
    async def turn(self, deadline: float) -> AsyncIterator[None]:
        """Make other calls wait during the block; :meth:`begin` limits how long.

        Raises:
            BackendTimeout: other calls had their turns until the deadline.

        """
        self._suspects += 1
        self._close(math.inf)
        try:
            with trio.move_on_at(deadline) as patience:
                await self._turn.acquire()
            if patience.cancelled_caught:
                raise BackendTimeout("calls that may have killed the backend are tried first")
            try:
                self._close(math.inf)
                yield
            finally:
                self._turn.release()
        finally:
            self._suspects -= 1
            self._close(math.inf if self._suspects else None)

    def begin(self) -> None:
        """Limit the turn from now on: the call that has it is put to a backend."""
        share = min(_ALONE, _TOGETHER / max(1, self._suspects))
        self._close(trio.current_time() + share)

    def _close(self, until: float | None) -> None:
        self._closed_until = until
        self._others.unpark_all()
