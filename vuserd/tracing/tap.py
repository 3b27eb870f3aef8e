"""From the sessions of an export to those who trace it, however many sessions there are."""

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from protocol.fuse import NodeId, Request
from vuserd.device.channel import FuseChannel
from vuserd.device.observer import Observer
from vuserd.tracing.event import LOST, OK, TIMEOUT, Event, arguments


class Listener(Protocol):
    """A trace, as its sources see it."""

    @property
    def is_abandoned(self) -> bool:
        """Whether it is to be told nothing more."""

    def add(self, event: Event) -> None:
        """Take an event."""


class Places(Protocol):
    """Who knows where nodes are: a session's table of nodes."""

    def path(self, node: NodeId) -> bytes | None:
        """Return where a node was found last."""


class Tracing:
    """Who traces one export, and the sessions that the export has."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._taps: set[Tap] = set()

    @property
    def is_on(self) -> bool:
        """Whether anybody traces the export now."""
        return bool(self._listeners)

    def begin(self, listener: Listener) -> None:
        """Tell somebody of each request from now on."""
        if listener not in self._listeners:
            self._listeners.append(listener)
            self._turn()

    def end(self, listener: Listener) -> None:
        """Tell somebody nothing any more."""
        if listener in self._listeners:
            self._listeners.remove(listener)
            self._turn()

    @contextmanager
    def session(self) -> Iterator["Tap"]:
        """Give what follows one session, for the block's time."""
        tap = Tap(self)
        self._taps.add(tap)
        try:
            yield tap
        finally:
            self._taps.discard(tap)

    def tell(self, event: Event) -> None:
        """Tell all of them."""
        for listener in self._listeners:
            listener.add(event)
        if any(listener.is_abandoned for listener in self._listeners):
            self._listeners = [one for one in self._listeners if not one.is_abandoned]
            self._turn()

    def _turn(self) -> None:
        for tap in self._taps:
            tap.turn()


class _Sent(NamedTuple):
    """A request that has not ended."""

    request: Request
    path: bytes | None
    wall: int
    monotonic: int
    late: bool = False  #: whether nobody waits for it any more


class Tap:
    """Makes events of what one session's channel tells: an :class:`Observer` of it."""

    def __init__(self, tracing: Tracing) -> None:
        #: Where the nodes are, once there is a file system on the session.
        self.places: Places | None = None
        self._tracing = tracing
        self._channel: FuseChannel | None = None
        self._sent: dict[int, _Sent] = {}

    def observer(self) -> Observer | None:
        """Return what a new channel is to begin with."""
        return self if self._tracing.is_on else None

    def follow(self, channel: FuseChannel) -> None:
        """Look at this channel, whenever anybody wants to know."""
        self._channel = channel
        self.turn()

    def turn(self) -> None:
        """Look, or look away, as there are some who want to know or not."""
        if self._channel is not None:
            self._channel.observer = self.observer()
        if not self._tracing.is_on:
            self._sent.clear()

    def sent(self, unique: int, request: Request) -> None:
        """Note a request, its time, and where its node is: that may not be known any more later."""
        path = self.places.path(request.node) if self.places is not None else None
        self._sent[unique] = _Sent(request, path, time.time_ns(), time.monotonic_ns())

    def ended(self, unique: int, error: int, length: int) -> None:
        """Tell of a request's end."""
        sent = self._sent.pop(unique, None)
        if sent is not None:
            self._tell(
                unique, sent, errno.errorcode.get(error, str(error)) if error else OK, length
            )

    def timed_out(self, unique: int) -> None:
        """Tell that a request is overdue; of its end, too, where that comes after all."""
        sent = self._sent.get(unique)
        if sent is not None:
            self._sent[unique] = sent._replace(late=True)
            self._tell(unique, sent, TIMEOUT, 0)

    def lost(self) -> None:
        """Tell that no reply will come to any request that has none."""
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
