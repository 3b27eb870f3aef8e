"""Keep the events that one client traces until it takes them; drop the oldest beyond a limit."""

import time
from collections import deque
from typing import Final

import trio

from vuserd.errors import CallError, ErrorCode
from vuserd.tracing.event import Event
from vuserd.tracing.tap import Tracing
from vuserd.users.holdings import Holdings

#: Events that may wait in one trace.
CAPACITY: Final = 10_000
#: Seconds after which a trace ends if the client takes nothing from it.
_PATIENCE: Final = 60.0


class Trace:
    """A trace in progress."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._events: deque[Event] = deque(maxlen=capacity)
        self._lost = 0
        self._closed = False
        self._takers = 0
        self._taken_at = time.monotonic()
        self._news = trio.lowlevel.ParkingLot()

    @property
    def is_abandoned(self) -> bool:
        """Whether the client has taken nothing for so long that it probably never will."""
        return not self._takers and time.monotonic() > self._taken_at + _PATIENCE

    def add(self, event: Event) -> None:
        """Keep an event until it is taken; where there is no room, drop the oldest."""
        if len(self._events) == self._events.maxlen:
            self._lost += 1
        self._events.append(event)
        if self._news:
            self._news.unpark_all()

    async def take(self, limit: int, wait: float) -> tuple[list[Event], int]:
        """Return up to ``limit`` events, and how many before them were lost.

        If there is none, wait up to ``wait`` seconds for the first.
        """
        self._takers += 1
        try:
            if not self._events and not self._closed:
                with trio.move_on_after(wait):
                    await self._news.park()
        finally:
            self._takers -= 1
            self._taken_at = time.monotonic()
        taken = [self._events.popleft() for _ in range(min(limit, len(self._events)))]
        lost, self._lost = self._lost, 0
        return taken, lost

    def close(self) -> None:
        """Wake all waiters; from now on :meth:`take` does not wait."""
        self._closed = True
        self._news.unpark_all()


class TraceTable:
    """The traces of one client, by the exports that it follows.

    Args:
        most: the limit of traces at once.
        holdings: what the client's user holds; each trace counts in it.

    """

    def __init__(self, most: int, holdings: Holdings) -> None:
        self._most = most
        self._holdings = holdings
        self._traces: dict[str, tuple[Trace, Tracing]] = {}
        self._closed = False

    def find(self, export: str, tracing: Tracing) -> Trace:
        """Return the client's trace of an export; begin one if there is none.

        Raises:
            CallError: TOO_LARGE: the client or its user has too many others.

        """
        trace, followed = self._traces.get(export, (None, None))
        if trace is None:
            if len(self._traces) >= self._most:
                raise CallError(
                    ErrorCode.TOO_LARGE,
                    f"a client may trace {self._most} exports at once",
                    limit=self._most,
                )
            self._holdings.take()
            trace = Trace()
            if self._closed:
                trace.close()
        if followed is not tracing:  # a reload may put another export in its place
            if followed is not None:
                followed.end(trace)
            self._traces[export] = trace, tracing
        tracing.begin(trace)
        return trace

    def end(self, export: str) -> None:
        """End the trace of an export, if there is one, and wake the calls that wait for it."""
        trace, followed = self._traces.pop(export, (None, None))
        if trace is not None and followed is not None:
            self._holdings.give_back()
            followed.end(trace)
            trace.close()

    def close(self) -> None:
        """End all traces; those begun from here on do not wait."""
        self._closed = True
        for export in list(self._traces):
            self.end(export)
