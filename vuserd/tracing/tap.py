"""Carry events from an export's sessions, one after the other, to the traces that follow it."""

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from protocol.fuse import NodeId, Request
from vuserd.device.lane.lane import Lane
from vuserd.device.observer import Observer
from vuserd.tracing.event import LOST, OK, TIMEOUT, Event, arguments


class Listener(Protocol):
    """A trace, as its sources see it."""

    @property
    def is_abandoned(self) -> bool:
        """Whether the trace wants no more events."""

    def add(self, event: Event) -> None:
        """Take an event."""


class Places(Protocol):
    """Knows the paths of nodes: a session's table of nodes."""

    def path(self, node: NodeId) -> bytes | None:
        """Return the path at which a node was last found."""


class Tracing:
    """The traces that follow one export, and the taps of the export's sessions."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._taps: set[Tap] = set()

    @property
    def is_on(self) -> bool:
        """Whether any trace follows the export now."""
        return bool(self._listeners)

    def begin(self, listener: Listener) -> None:
        """Add a trace: it gets every event from now on."""
        if listener not in self._listeners:
            self._listeners.append(listener)
            self._turn()

    def end(self, listener: Listener) -> None:
        """Remove a trace: it gets no more events."""
        if listener in self._listeners:
            self._listeners.remove(listener)
            self._turn()

    @contextmanager
    def session(self) -> Iterator["Tap"]:
        """Yield a tap for one session, for the block's time."""
        tap = Tap(self)
        self._taps.add(tap)
        try:
            yield tap
        finally:
            self._taps.discard(tap)

    def tell(self, event: Event) -> None:
        """Pass an event to all traces, and drop those that are abandoned."""
        for listener in self._listeners:
            listener.add(event)
        if any(listener.is_abandoned for listener in self._listeners):
            self._listeners = [one for one in self._listeners if not one.is_abandoned]
            self._turn()

    def _turn(self) -> None:
        for tap in self._taps:
            tap.turn()


class _Sent(NamedTuple):
    """A request that has no reply yet."""

    request: Request
    path: bytes | None
    wall: int
    monotonic: int
    late: bool = False  #: whether its caller has given up waiting


class Tap:
    """Makes events of the requests of one session's lane, as its :class:`Observer`."""

    def __init__(self, tracing: Tracing) -> None:
        #: The paths of nodes, once there is a file system on the session.
        self.places: Places | None = None
        self._tracing = tracing
        self._lane: Lane | None = None
        self._sent: dict[int, _Sent] = {}

    def observer(self) -> Observer | None:
        """Return the observer of a new lane; None while no trace follows the export."""
        return self if self._tracing.is_on else None

    def follow(self, lane: Lane) -> None:
        """Observe this lane whenever a trace follows the export."""
        self._lane = lane
        self.turn()

    def turn(self) -> None:
        """Start or stop observing, after the first trace came or the last one went."""
        if self._lane is not None:
            self._lane.observer = self.observer()
        if not self._tracing.is_on:
            self._sent.clear()

    def sent(self, unique: int, request: Request) -> None:
        """Record a request, its time and its node's path, which may be forgotten by its end."""
        path = self.places.path(request.node) if self.places is not None else None
        self._sent[unique] = _Sent(request, path, time.time_ns(), time.monotonic_ns())

    def ended(self, unique: int, error: int, length: int) -> None:
        """Pass on the event of a request that has ended with an errno, or 0, and a length."""
        sent = self._sent.pop(unique, None)
        if sent is not None:
            self._tell(
                unique, sent, errno.errorcode.get(error, str(error)) if error else OK, length
            )

    def timed_out(self, unique: int) -> None:
        """Pass on that a request is overdue; if its reply still comes, that is a second event."""
        sent = self._sent.get(unique)
        if sent is not None:
            self._sent[unique] = sent._replace(late=True)
            self._tell(unique, sent, TIMEOUT, 0)

    def lost(self) -> None:
        """Pass on that no pending request will get its reply."""
        while self._sent:
            unique, sent = next(iter(self._sent.items()))
            del self._sent[unique]
            if not sent.late:
                self._tell(unique, sent, LOST, 0)

    def _tell(self, unique: int, sent: _Sent, outcome: str, length: int) -> None:
        request = sent.request
        self._tracing.tell(
            Event(
                unique,
                request.opcode.name,
                request.node,
                sent.path,
                arguments(request),
                request.size,
                sent.wall,
                sent.monotonic,
                time.monotonic_ns() - sent.monotonic,
                outcome,
                length,
            )
        )
