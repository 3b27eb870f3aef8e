"""How the synchronous client waits: the driver of all that its methods ask for."""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from vuserd.client.calls import Call
from vuserd.client.core.conversation import Conversation
from vuserd.client.core.procedure import (
    Do,
    Emit,
    Finish,
    Pause,
    Procedure,
    Running,
    Step,
    Stream,
    Wait,
    Write,
)
from vuserd.client.core.seconds import limit_of
from vuserd.client.core.ticket import Ticket
from vuserd.client.errors import TimedOut
from vuserd.client.sync_link import SyncLink

T = TypeVar("T")


class Driver:
    """A conversation with the daemon, in which one thread waits for one thing after the other."""

    def __init__(self, timeout: float | None) -> None:
        self._limit = limit_of(timeout, None)
        self._talk = Conversation(SyncLink, time.monotonic)

    def close(self) -> None:
        """Close the connection; calls in flight fail with ConnectionLost."""
        self._talk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- calls in flight ---------------------------------------------------------------------------

    def call(self, call: Call[T], *, timeout: float | None = None) -> T:
        """Do one call of :mod:`vuserd.client.calls` and wait for it."""
        ticket = self._talk.begin(call)
        try:
            return self.finish(ticket, timeout=timeout)
        except BaseException:
            self.abandon(ticket)
            raise

    def begin(self, call: Call[T]) -> Ticket[T]:
        """Send one call without waiting for its answer; :meth:`finish` or :meth:`abandon` it."""
        return self._talk.begin(call)

    def finish(self, ticket: Ticket[T], *, timeout: float | None = None) -> T:
        """Wait for a call that was begun. Answers to others may come first, and are kept.

        After a TimedOut it can be waited for again.
        """
        talk = self._talk
        talk.enter()
        limit = limit_of(timeout, self._limit)
        if not ticket.done:
            self._wait(ticket, limit)
        if ticket.refused is not None:
            self._run(talk.send_again(ticket, limit), timeout)
        if talk.former:
            talk.leave_former()
        return ticket.result()

    def abandon(self, ticket: Ticket[Any]) -> None:
        """Forget a call that was begun; what its result holds is let go."""
        self._talk.abandon(ticket)

    # -- the steps of procedures -------------------------------------------------------------------

    def _run(self, procedure: Procedure[T], timeout: float | None = None) -> T:
        """Take the steps of a procedure until it returns."""
        running = Running(procedure)
        while (step := running.next_step()) is not None:
            self._take(step, running, timeout)
            step = None  # the memory that it names is not to outlive its use
        return running.result

    def _iterate(self, stream: Stream[T], timeout: float | None = None) -> Iterator[T]:
        """Take the steps of a procedure, and yield what it emits."""
        running = Running(stream)
        while (step := running.next_step()) is not None:
            if not isinstance(step, Emit):
                self._take(step, running, timeout)
                continue
            try:
                yield from step.values
            except BaseException as error:
                running.failed(error)

    def _take(self, step: Step, running: Running[Any, Any], timeout: float | None) -> None:
        """Take one step, and let its procedure hear what comes of it.

        After an interruption, or where the daemon was silent for too long, it waits for nothing
        more: what it has to say while it cleans up is sent, and the answers are dropped.
        """
        if running.cancelled is not None:
            running.failed(running.cancelled)
            return
        try:
            running.came(self._outcome(step, timeout))
        except BaseException as error:
            if isinstance(error, TimedOut) or not isinstance(error, Exception):
                running.cancelled = error
            running.failed(error)

    def _outcome(self, step: Step, timeout: float | None) -> object:
        match step:
            case Finish(ticket):
                return self.finish(ticket, timeout=timeout)
            case Wait(ticket, None):
                self._wait(ticket, limit_of(timeout, self._limit))
            case Wait(ticket, seconds):
                self._talk.link_of(ticket).wait(ticket, seconds)
            case Write(sink, payload, offset):
                return sink.write(payload, offset)
            case Do(function):
                return function()
            case Pause(seconds):
                time.sleep(seconds)
        return None

    def _wait(self, ticket: Ticket[Any], limit: float | None) -> None:
        """Wait for an answer, for ``limit`` seconds; TimedOut where it does not come."""
        self._talk.link_of(ticket).wait(ticket, limit)
        if not ticket.done:
            assert limit is not None
            raise ticket.timed_out(limit)
