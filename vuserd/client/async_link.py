"""One connection of an asynchronous client, which any number of tasks wait on.

There is no task in the background. Of the tasks that wait for an answer one exchanges bytes with
the daemon, for all; when it has its own answer, or is cancelled, it passes that duty on.
"""

import itertools
import select
import socket
from typing import Any

from vuserd.client.core.exchange import MOST_AT_ONCE, Link
from vuserd.client.core.ticket import Ticket
from vuserd.client.runtime import Closed, Event, Runtime


class AsyncLink(Link):
    """A socket that does not block, in a loop."""

    def __init__(self, sock: socket.socket, runtime: Runtime) -> None:
        sock.settimeout(0)
        super().__init__(sock)
        self._runtime = runtime
        self._exchanging = False
        self._waiting: dict[Ticket[Any], Event] = {}
        # An epoll descriptor is readable when what it watches for has come: so one task can wait
        # for the socket to give or to take, whichever is first.
        self._epoll = select.epoll()
        self._watched = select.EPOLLIN
        self._epoll.register(sock, self._watched)

    def close(self) -> None:
        """Close the connection; calls in flight fail with ConnectionLost."""
        self._wake(self.core.lost("the client was closed"))
        if not self._epoll.closed:
            self._runtime.closing(self._epoll.fileno())
            self._epoll.close()
            super().close()

    async def wait(self, ticket: Ticket[Any]) -> None:
        """Wait until a call is done; while no other task exchanges bytes, do that."""
        try:
            while not ticket.done:
                if self._exchanging:
                    await self._wait_turn(ticket)
                else:
                    await self._exchange_until(ticket)
        finally:
            self._pass_on()

    def send(self) -> None:
        """Send what the socket takes at once; the exchanging task sends the rest."""
        if self._epoll.closed:
            return
        failed = self._send()
        self._wake(failed)
        # That it can take bytes wakes the exchanging task, whose call may be one that failed.
        watched = select.EPOLLIN | (select.EPOLLOUT if self.core.outgoing or failed else 0)
        if watched != self._watched:
            self._watched = watched
            self._epoll.modify(self._socket, watched)

    def hear(self) -> None:
        """Take in what has come: the daemon's last words, after it has ended.

        A task that exchanges bytes hears them itself, and would not notice that they were taken.
        """
        if not (self._epoll.closed or self._exchanging):
            super().hear()

    async def _wait_turn(self, ticket: Ticket[Any]) -> None:
        """Wait until the call is done, or it is this task's turn to exchange."""
        self._waiting[ticket] = event = self._runtime.event()
        try:
            await event.wait()
        finally:
            del self._waiting[ticket]

    def _wake(self, tickets: list[Ticket[Any]]) -> None:
        for ticket in tickets:
            if (event := self._waiting.get(ticket)) is not None:
                event.set()

    def _pass_on(self) -> None:
        """Wake one waiting task to exchange bytes, where no task does."""
        if not self._exchanging and self._waiting:
            next(iter(self._waiting.values())).set()

    async def _exchange_until(self, ticket: Ticket[Any]) -> None:
        """Send and receive for all until ``ticket`` is done.

        The buffer is asked for anew for each attempt: while this task waits, the caller that it
        belongs to may be cancelled.
        """
        self._exchanging = True
        try:
            for turn in itertools.count(1):
                self.send()
                if ticket.done:
                    return
                done = self._receive()
                if done is None:
                    await self._runtime.readable(self._epoll.fileno())
                elif done or not turn % MOST_AT_ONCE:  # a daemon may send ever more of no use
                    await self._runtime.checkpoint()
        except Closed:
            self._wake(self.core.lost("the client was closed"))
        finally:
            self._exchanging = False

    def _receive(self, flags: int = 0) -> list[Ticket[Any]] | None:
        done = super()._receive(flags)
        if done:
            self._wake(done)
        return done
