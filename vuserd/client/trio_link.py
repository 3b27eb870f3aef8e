"""One connection of the trio client, which any number of tasks wait on.

There is no task in the background. Of the tasks that wait for an answer one exchanges bytes with
the daemon, for all; when it has its own answer, or is cancelled, it passes that duty on.
"""

import itertools
import os
import select
import socket
from typing import Any

import trio

from vuserd.client.core import ClientCore, Ticket
from vuserd.client.errors import describe_loss
from vuserd.client.exchange import MOST_AT_ONCE, receive_some, send_some
from vuserd.client.foreign import hang_up


class TrioLink:
    """A connected stream socket, which is the link's from now on, and its core."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(0)
        self._socket = sock
        self._maker = os.getpid()
        self.core = ClientCore()
        self._exchanging = False
        self._waiting: dict[Ticket[Any], trio.Event] = {}
        # An epoll descriptor is readable when what it watches for has come: so one task can wait
        # for the socket to give or to take, whichever is first.
        self._epoll = select.epoll()
        self._watched = select.EPOLLIN
        self._epoll.register(sock, self._watched)

    def close(self) -> None:
        """Close the connection; calls in flight fail with ConnectionLost."""
        self._wake(self.core.lost("the client was closed"))
        if not self._epoll.closed:
            trio.lowlevel.notify_closing(self._epoll)
            self._epoll.close()
            hang_up(self._socket, self._maker)

    async def wait(self, ticket: Ticket[Any]) -> None:
        """Wait until a call is done; while nobody else exchanges bytes, do that."""
        try:
            while not ticket.done:
                if self._exchanging:
                    await self._wait_turn(ticket)
                else:
                    await self._exchange_until(ticket)
        finally:
            self._pass_on()

    def send(self) -> None:
        """Send what the socket takes at once; the rest is sent by whoever exchanges."""
        if self._epoll.closed:
            return
        failed: list[Ticket[Any]] = []
        try:
            while self.core.outgoing:
                send_some(self._socket, self.core, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            pass
        except BrokenPipeError:  # what it said before it went away can still be received
            failed = self.core.closed_for_requests()
        except ConnectionResetError:
            failed = self.core.closed_for_requests(unread=True)
        except OSError as error:
            failed = self.core.lost(describe_loss(error))
        self._wake(failed)
        # That it can take bytes wakes who exchanges, whose call may be among those that failed.
        watched = select.EPOLLIN | (select.EPOLLOUT if self.core.outgoing or failed else 0)
        if watched != self._watched:
            self._watched = watched
            self._epoll.modify(self._socket, watched)

    def hear(self) -> None:
        """Take in what has come: the daemon's last words, after it has ended.

        A task that exchanges bytes hears them itself, and would not notice that they were taken.
        """
        if self._epoll.closed or self._exchanging:
            return
        try:
            for _ in range(MOST_AT_ONCE):
                if self.core.is_over:
                    break
                self._receive()
        except BlockingIOError:
            pass
        except OSError as error:
            self._wake(self.core.lost(describe_loss(error)))

    async def _wait_turn(self, ticket: Ticket[Any]) -> None:
        """Wait until the call is done, or it is this task's turn to exchange."""
        self._waiting[ticket] = event = trio.Event()
        try:
            await event.wait()
        finally:
            del self._waiting[ticket]

    def _wake(self, tickets: list[Ticket[Any]]) -> None:
        for ticket in tickets:
            if (event := self._waiting.get(ticket)) is not None:
                event.set()

    def _pass_on(self) -> None:
        """See to it that somebody exchanges bytes while anybody waits."""
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
                try:
                    done = self._receive()
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(self._epoll)
                    continue
                if done or not turn % MOST_AT_ONCE:  # a daemon may send ever more of no use
                    await trio.lowlevel.checkpoint()
        except OSError as error:
            self._wake(self.core.lost(describe_loss(error)))
        except trio.ClosedResourceError:
            self._wake(self.core.lost("the client was closed"))
        finally:
            self._exchanging = False

    def _receive(self) -> list[Ticket[Any]]:
        try:
            done = receive_some(self._socket, self.core)
        except ConnectionResetError:
            done = self.core.ended(unread=True)
        self._wake(done)
        return done
