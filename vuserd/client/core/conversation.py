"""What a client says to the daemon, over one connection after the other.

It is all that the clients have in common; they differ in how they wait. So nothing here waits, and
what has to is a procedure.
"""

import socket
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

from vuserd.client import calls
from vuserd.client.calls import Call, RemotePath
from vuserd.client.core.exchange import Link
from vuserd.client.core.owner import Owner
from vuserd.client.core.procedure import Finish, Pause, Procedure, Wait
from vuserd.client.core.reconnect import (
    PAUSE,
    QUEUE_PAUSE,
    Approach,
    Search,
    breaks_protocol,
    connect_once,
    is_bound,
    is_silent,
    queue_is_full,
    why_not_taken,
)
from vuserd.client.core.ticket import Carrier, Ticket
from vuserd.client.errors import BadReply, ClientError, RemoteError
from vuserd.client.listing.columns import COLUMNS_LEVEL
from vuserd.wire.address import Candidate, socket_candidates

A = TypeVar("A")
T = TypeVar("T")
L = TypeVar("L", bound=Link)


class Conversation(Generic[L]):
    """The connection that calls go over, and those before it that still owe answers.

    Args:
        make_link: makes a link of a connected socket.
        now: the time, in seconds, by the clock of the procedures' driver.

    """

    #: Calls go over this one.
    link: L

    def __init__(self, make_link: Callable[[socket.socket], L], now: Callable[[], float]) -> None:
        self.now = now
        #: The thread that may call.
        self.owner = Owner()
        #: Seconds that a call may take to find the daemon's successor.
        self.patience = 0.0
        #: Connections that answers are awaited on, and that take no more calls.
        self.former: list[L] = []
        self._make_link = make_link
        #: What was to be forgotten or told in the midst of something else.
        self._postponed: deque[Callable[[], object]] = deque()
        #: True while a call is begun or forgotten.
        self._is_changing = False
        self._address: Candidate | None = None
        self._next_look = now()

    def connect(self, address: str | None, *, limit: float, patience: float) -> Procedure[None]:
        """Connect to the daemon at an address, or where it may be.

        Raises:
            CannotConnect: with each address that was tried, for ``limit`` seconds at most.

        """
        approach = Approach(socket_candidates(address), limit)
        for candidate, connecting, answering in approach:
            try:
                yield from self._reach(candidate, connecting, answering)
            except OSError as error:
                approach.failed(candidate, error)
            else:
                self._address, self.patience = candidate, patience
                return
        raise approach.error()

    def use(self, sock: socket.socket) -> None:
        """Talk over a connected socket."""
        self.link = self._make_link(sock)

    def close(self) -> None:
        """Close all connections; calls in flight fail with ConnectionLost."""
        self._address = None
        self._postponed.clear()
        for link in (self.link, *self.former):
            link.close()
        self.former.clear()

    # -- calls -------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Let this thread call, if it may; what was postponed comes first."""
        self.owner.check()
        while self._postponed:
            self._postponed.popleft()()

    def begin(self, call: Call[T], core: Carrier | None = None) -> Ticket[T]:
        """Send one call over the connection that has what it is about; where that ended, fail."""
        self.enter()
        return self._begin(call, core)

    def abandon(self, ticket: Ticket[Any]) -> None:
        """Forget a call that was begun; what its result holds is let go."""
        self._do_or_postpone(partial(self._forget, ticket))

    def tell(self, call: Call[Any], core: Carrier | None = None) -> None:
        """Send one call whose answer is of no interest."""
        self._do_or_postpone(lambda: self._forget(self._begin(call, core)))

    def _do_or_postpone(self, deed: Callable[[], object]) -> None:
        """Do something, or have it done before the next call if something else is under way.

        What ends generators and open files may be Python's cycle collector: in any thread, and
        between any two steps of this one. Where the child of a fork cleans up, nothing is done: the
        connection is the parent's.
        """
        if not self.owner.is_of_this_process:
            return
        is_busy = self._is_changing or any(link.is_moving for link in (self.link, *self.former))
        if is_busy or not self.owner.is_this_thread:
            self._postponed.append(deed)
        else:
            deed()

    def _begin(self, call: Call[T], core: Carrier | None) -> Ticket[T]:
        carrier: Carrier = core or self.link.core
        ticket = self._undisturbed(carrier.begin, call)
        try:
            self.link.send()
        except BaseException:  # an interruption: the caller would not have the ticket
            self.abandon(ticket)
            raise
        return ticket

    def _forget(self, ticket: Ticket[Any]) -> None:
        self._undisturbed(ticket.core.abandon, ticket)
        self.link.send()  # what undoes its result, where that was there

    def _undisturbed(self, change: Callable[[A], T], about: A) -> T:
        self._is_changing = True
        try:
            return change(about)
        finally:
            self._is_changing = False

    def ask(self, call: Call[T], core: Carrier | None = None) -> Procedure[T]:
        """Do one call, as :meth:`begin` sends it, and wait for its result."""
        ticket = self.begin(call, core)
        try:  # here, where no interruption comes before it
            result: T = yield Finish(ticket)
        except BaseException:
            self.abandon(ticket)
            raise
        return result

    def clean_up(self, call: Call[Any], core: Carrier | None = None) -> Procedure[None]:
        """Do a call that ends something; wait for that unless an interruption is under way."""
        under_way = sys.exc_info()[1]
        if under_way is None or isinstance(under_way, Exception):
            with suppress(ClientError):
                yield from self.ask(call, core)
        else:
            self.tell(call, core)

    def finish(self, ticket: Ticket[T]) -> Procedure[T]:
        """Wait for the result of a call that was begun; where that fails, forget it."""
        try:
            result: T = yield Finish(ticket)
        except BaseException:
            self.abandon(ticket)
            raise
        return result

    def has_columns(self, export: str, path: RemotePath) -> Procedure[bool]:
        """Return whether the daemon sends listings in columns; an error names this directory."""
        return (yield from self.level(export, path)) >= COLUMNS_LEVEL

    def level(self, export: str, path: RemotePath) -> Procedure[int]:
        """Return the daemon's API level; each connection is asked once.

        An error names the file that it is wanted for.
        """
        level = self.link.core.api_level
        if level is None:
            ticket = self.begin(calls.api_info())
            try:
                level = (yield from self.finish(ticket)).api_level
            except (RemoteError, BadReply):
                level = 1  # what it can do, the next call finds out
            except ClientError as error:
                error.filename = calls.filename_of(export, path)
                raise
            ticket.core.api_level = level
        return level

    def link_of(self, ticket: Ticket[Any]) -> L:
        """Return the connection that carries a call."""
        core = ticket.core
        if core is self.link.core:
            return self.link
        return next(link for link in self.former if link.core is core)

    # -- the daemon's successor --------------------------------------------------------------------

    @property
    def goes_on(self) -> bool:
        """Whether calls are taken, or may be by the daemon's successor."""
        core = self.link.core
        has_successor = self._address is not None and self.patience > 0 and core.can_be_replaced
        return core.takes_requests or has_successor

    @property
    def is_unused(self) -> bool:
        """Whether calls are taken and none before has left anything on the connection."""
        core = self.link.core
        return self.goes_on and not (core.held or core.is_awaited or self.former)

    def send_again(self, ticket: Ticket[Any], limit: float | None = None) -> Procedure[None]:
        """Send a call that was not taken again, over another connection if there can be one.

        One is looked for in the client's patience, and ``limit`` seconds at most.
        """
        patience = self.patience if limit is None else min(self.patience, limit)
        search: Search | None = None
        while ticket.refused is not None and not is_bound(ticket):
            core = self.link.core
            if core.takes_requests:
                self._undisturbed(core.begin_again, ticket)
                self.link.send()
                yield Wait(ticket)
                continue
            self.link.hear()
            if not self.goes_on or self._address is None:
                break
            search = search or Search(self._address.address, patience, self.now())
            if search.is_over(self.now()):
                ticket.fail(search.error())
            elif (pause := self._next_look - self.now()) > 0:
                yield Pause(pause)
            else:
                self._look(self._address, search, ticket)
        if ticket.refused is not None:
            ticket.fail(why_not_taken(ticket))

    def _look(self, address: Candidate, search: Search, ticket: Ticket[Any]) -> None:
        """Look once for the successor of the connection, for all calls that want one."""
        self._next_look = self.now() + PAUSE
        search.has_begun = True
        try:
            sock = connect_once(address)
        except OSError as error:
            if not search.failed(error):
                ticket.fail(search.error())
        else:
            self.former.append(self.link)
            self.link = self._make_link(sock)

    def leave_former(self) -> None:
        """Close the connections that no call awaits an answer on."""
        for link in self.former:
            if not link.core.is_awaited:
                link.close()
        self.former = [link for link in self.former if link.core.is_awaited]

    # -- the first connection ----------------------------------------------------------------------

    def _reach(self, candidate: Candidate, connecting: float, answering: float) -> Procedure[None]:
        """Connect in ``connecting`` seconds; a guessed address has to answer in ``answering``."""
        deadline = self.now() + connecting
        while True:
            try:
                sock = connect_once(candidate)
                break
            except BlockingIOError:
                pass
            if self.now() >= deadline:
                raise queue_is_full(connecting)
            yield Pause(QUEUE_PAUSE)
        self.link = self._make_link(sock)
        if candidate.is_guessed:
            try:
                yield from self._require_daemon(answering)
            except BaseException:
                self.link.close()
                raise

    def _require_daemon(self, seconds: float) -> Procedure[None]:
        """Wait for the answer to a first call, or raise OSError."""
        ticket = self.begin(calls.api_info())
        yield Wait(ticket, seconds)
        if not ticket.done:
            raise is_silent(seconds)
        if (error := breaks_protocol(self.link.core)) is not None:
            raise error


#: A conversation, whatever its links are.
Talk: TypeAlias = Conversation[Any]
