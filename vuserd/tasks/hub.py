"""The hub: one worker watches the sockets of all clients, and users have a turn in each pass.

A connection stands in the queue of its user as long as it could go on: bytes came, or their end;
requests are left of those that were received; or a limit made it wait, and does so no more. In each
pass of trio's scheduler the hub lets the connections of each user go on for one turn, those that
have waited longest first, and then all other tasks have theirs. Whoever comes next waits for these:
so a turn of a user who is alone is large while its requests are little work, and small otherwise::

    bytes of a client -> epoll -> queue of its user -> go_on() -> tasks of its calls
                                          ^                              |
                                          +----------- wake() ----------+

Between the steps of long work it makes a small pass, too (:mod:`vuserd.tasks.short_work`). Nothing
but the hub lets a connection go on; whoever changes what one waits for wakes it. The epoll reports
a socket once for what comes, so a connection that was not read to its end has to say so
(``has_more``).
"""

import itertools
import math
import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

import trio

from vuserd.tasks.short_work import short_work
from vuserd.tasks.turns import Turns
from vuserd.tasks.workers import Workers

#: Sockets that one pass asks the kernel for, and users that have a turn in it.
_EVENTS: Final = 256
_USERS: Final = 64
#: What is watched for, and of that what one receive may stop at: the end and urgent data. Plain
#: numbers are faster than flags.
_WATCHED: Final = int(select.EPOLLIN | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLET)
_STOPS: Final = int(select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR)


class Turn(NamedTuple):
    """What one user's connections may do in a pass."""

    #: Messages, in all.
    steps: int
    #: How many of these a request is, which is more work than its message.
    request: int


#: Of a user who has the daemon alone, at most, and of one who shares it.
ALONE: Final = Turn(64, 1)
SHARED: Final = Turn(16, 16)
#: Seconds of the processor between two passes: after more than that, turns of who is alone become
#: half as large, down to so many steps; after less than this, twice as large.
_LONG: Final = 0.003
_SHORT: Final = 0.0015
FEWEST: Final = 8


class User(Protocol):
    """Whose turn it is: all connections of one user."""

    def is_only_user(self) -> bool:
        """Return whether no other user wants anything."""


class Client(Protocol):
    """A connection, as the hub sees it."""

    #: Whether it stands in its user's queue; the hub's own.
    is_queued: bool
    #: Whether something has come, be it the end; set by the hub, and cleared by who receives it.
    is_readable: bool
    #: Whether a receive may stop before it has all that came; set by the hub.
    has_stops: bool

    @property
    def user(self) -> User:
        """Whose connection it is."""

    @property
    def sharer(self) -> object:
        """Who shares the daemon with others by it, as :meth:`Turns.hear` is told."""

    @property
    def descriptor(self) -> int:
        """The number of its socket."""

    @property
    def has_more(self) -> bool:
        """Whether it could go on right after :meth:`go_on`."""

    @property
    def finish_by(self) -> float:
        """When the request that has begun has to be whole, by trio's clock; inf if none has."""

    def go_on(self, most: int, request: int) -> int:
        """Go on for about ``most`` steps; return how many these were, one at least."""

    def time_out(self) -> None:
        """End, as the request that has begun was not whole in time."""


class Hub:
    """Lets the connections of all clients go on; :meth:`run` has to run.

    Args:
        turns: the turns of the users, who have others beside those of the hub.
        begin: is called at the end of each pass, to begin what clients ask for in it.
        spent: returns the seconds of the processor that this thread has had.

    Raises:
        OSError: there is no descriptor to watch with.

    """

    def __init__(
        self,
        turns: Turns,
        begin: Callable[[], None],
        spent: Callable[[], float] = time.thread_time,
    ) -> None:
        self._turns = turns
        self._begin = begin
        self._spent = spent
        self._alone = ALONE
        #: What was spent when the pass before ended, if it had a turn that was not small.
        self._spent_then: float | None = None
        self._epoll = select.epoll()
        try:
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:
            self._epoll.close()
            raise
        self._epoll.register(self._bell, select.EPOLLIN | select.EPOLLET)
        self._clients: dict[int, Client] = {}
        self._queues: dict[User, deque[Client]] = {}
        #: Whether the next pass comes without a ring of the bell.
        self._is_awake = False
        self._is_stopped = False
        #: Clients with a request that has begun, and is not whole.
        self._unfinished: dict[Client, None] = {}
        #: When the first of these is out of time, as far as the task knows that waits for it here.
        self._first_late = math.inf
        self._earlier = trio.lowlevel.ParkingLot()

    def add(self, client: Client) -> None:
        """Watch a client's socket, and let it go on from now on.

        Raises:
            OSError: the kernel has no memory to watch one more.

        """
        self._epoll.register(client.descriptor, _WATCHED)
        self._clients[client.descriptor] = client

    def remove(self, client: Client) -> None:
        """Stop watching a client's socket, which has to be open still."""
        del self._clients[client.descriptor]
        self._epoll.unregister(client.descriptor)
        self._unfinished.pop(client, None)

    def wake(self, client: Client) -> None:
        """Let a client go on in the next pass."""
        if client.is_queued:
            return
        self._enqueue(client)
        if not self._is_awake:
            self._ring()

    def watch_time(self, client: Client) -> None:
        """Begin to watch a client's ``finish_by``, or stop if it is infinite."""
        if client.finish_by == math.inf:
            self._unfinished.pop(client, None)
        else:
            self._unfinished[client] = None
            if client.finish_by < self._first_late:
                self._earlier.unpark_all()

    async def run(self, workers: Workers) -> None:
        """Let clients go on until cancelled, or until the workers are: these take their jobs."""
        workers.lead(self._wait, self._pass)
        with short_work(self._pass_between):
            await self._time_out()

    def stop(self) -> None:
        """Let no client go on from now on."""
        self._is_stopped = True

    def close(self) -> None:
        """Close the descriptors; nothing may be woken from now on."""
        self._epoll.close()
        os.close(self._bell)

    async def _wait(self) -> None:
        """Wait for the next pass: until a client could go on."""
        if self._queues:
            await trio.lowlevel.checkpoint()
        else:
            self._is_awake = False
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            self._is_awake = True

    def _ring(self) -> None:
        self._is_awake = True
        os.eventfd_write(self._bell, 1)

    def _pass(self) -> None:
        """Let users go on; a turn of who is alone is as large as its work lets it be."""
        if self._spent_then is not None:
            self._fit_turn(self._spent() - self._spent_then)
            self._spent_then = None
        if self._go_on(self._alone):
            self._spent_then = self._spent()

    def _pass_between(self) -> None:
        """Let users go on for a small turn, between the steps of long work."""
        self._is_awake = True
        try:
            self._go_on(SHARED)
        finally:
            # A worker may wait for what the epoll has reported here, be it the bell.
            self._is_awake = False
            if self._queues:
                self._ring()

    def _go_on(self, alone: Turn) -> bool:
        """Let users go on, one who is alone for ``alone``; return whether a turn was large."""
        if self._is_stopped:
            return False
        for descriptor, events in self._epoll.poll(0, _EVENTS):
            client = self._clients.get(descriptor)
            if client is not None:  # None: the bell
                client.is_readable = True
                if events & _STOPS:
                    client.has_stops = True
                if not client.is_queued:
                    self._enqueue(client)
        queues = self._queues
        users = [*itertools.islice(queues, _USERS)]
        is_large = False
        for user in users:
            self._turns.want(user)
        for user in users:
            queue = queues[user]
            if not user.is_only_user():
                self._take_turn(queue, SHARED)
            elif self._take_turn(queue, alone) >= FEWEST:
                is_large = True
            del queues[user]
            if queue:
                queues[user] = queue  # behind the others
        self._begin()
        return is_large

    def _fit_turn(self, seconds: float) -> None:
        """Fit turns of a user who is alone to the work that the latest one was."""
        steps = self._alone.steps
        if seconds > _LONG:
            self._alone = Turn(max(FEWEST, steps // 2), ALONE.request)
        elif seconds < _SHORT and steps < ALONE.steps:
            self._alone = Turn(2 * steps, ALONE.request)

    def _take_turn(self, queue: deque[Client], turn: Turn) -> int:
        """Let a user's connections go on; return how many steps these were."""
        left = turn.steps
        heard: Client | None = None
        are_several = False
        while queue and left > 0:
            client = queue.popleft()
            if client is not heard and not are_several:
                # A second one tells that they are several, and further ones tell no more.
                self._turns.hear(client.sharer)
                are_several = heard is not None
                heard = client
            client.is_queued = False
            left -= client.go_on(left, turn.request)
            if client.has_more and not client.is_queued:
                client.is_queued = True
                queue.append(client)
        return turn.steps - left

    def _enqueue(self, client: Client) -> None:
        client.is_queued = True
        queue = self._queues.get(client.user)
        if queue is None:
            queue = self._queues[client.user] = deque()
        queue.append(client)

    async def _time_out(self) -> None:
        """Time out clients whose requests were not whole in time."""
        while True:
            times = [client.finish_by for client in self._unfinished]
            self._first_late = min(times, default=math.inf)
            with trio.move_on_at(self._first_late):
                await self._earlier.park()
            now = trio.current_time()
            for client in [client for client in self._unfinished if client.finish_by <= now]:
                del self._unfinished[client]
                client.time_out()
