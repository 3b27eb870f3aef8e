"""What one user's connections use together, and what each of them has of that."""

from typing import Protocol

import trio

from vuserd.config.model import ClientLimits
from vuserd.errors import CallError, ErrorCode
from vuserd.rpc.counters import Counters
from vuserd.rpc.outbox import Reply
from vuserd.tasks.budget import Budget, Share
from vuserd.tasks.turns import Turns
from vuserd.users.foreign_descriptors import ForeignDescriptors
from vuserd.users.holdings import Holdings


class Waiter(Protocol):
    """A connection that waits for a request of its user's to end, so that its own can begin."""

    def wake(self) -> None:
        """Try again."""


class Account:
    """One user's share, for all of the user's connections."""

    def __init__(
        self,
        uid: int,
        rig: str | None,
        limits: ClientLimits,
        turns: Turns,
    ) -> None:
        self.uid = uid
        self.rig = rig
        self._limits = limits
        self.turns = turns
        self.connections = 0
        #: Bytes that were received and are no request yet.
        self.unread = 0
        #: Requests in the daemon, and the connections that wait to begin one, in their order.
        self.requests = 0
        self._waiting: dict[Waiter, None] = {}
        self.payload = Budget(limits.user_payload)
        self.foreign = ForeignDescriptors(limits.user_descriptors)
        self.holdings = Holdings(limits.user_kept, limits.user_remembered)
        #: Held by a call that is as much work as the user has connections.
        self.reporting = trio.Lock()

    @property
    def is_unused(self) -> bool:
        """Whether nothing is left of this user, so that it may start anew."""
        return not (self.connections or self.foreign.held)

    def enter(self) -> None:
        """Count one more connection; :meth:`leave` ends that.

        Raises:
            CallError: BUSY: the user has as many as may be, or those before cannot be closed.

        """
        most = self._limits.user_connections
        if self.connections >= most:
            raise CallError(
                ErrorCode.BUSY,
                f"user {self.uid} has {self.connections} connections, as many as one user may have",
                limit=most,
            )
        if self.foreign.is_stuck:
            raise CallError(
                ErrorCode.BUSY,
                f"{self.foreign.held} descriptors and connections of user {self.uid} wait to be"
                " closed",
                limit=self._limits.user_descriptors,
            )
        self.connections += 1

    def leave(self) -> None:
        """Count one connection less."""
        self.connections -= 1

    def count_unread(self, size: int) -> None:
        """Count bytes that were received and are no request yet; what is negative is gone."""
        self.unread += size

    def refuse_unread(self) -> None:
        """Refuse more of these than one user may have.

        Raises:
            CallError: BUSY.

        """
        most = self._limits.user_frames
        if self.unread > most:
            raise CallError(
                ErrorCode.BUSY,
                f"user {self.uid} has {self.unread} bytes of unfinished requests in the daemon",
                limit=most,
            )

    def is_only_user(self) -> bool:
        """Return whether no other user wants anything, so that no turn has to be taken."""
        return self.turns.is_free(self)

    async def take_turn(self) -> None:
        """Wait until it is this user's turn to keep the daemon busy."""
        await self.turns.take(self)

    def begin_request(self, waiter: Waiter) -> bool:
        """Count one more request, unless there are as many as may be or others wait for that.

        Returns:
            Whether it is counted; if not, the waiter is woken when it may try again.

        """
        if self.requests >= self._limits.user_requests or (
            self._waiting and next(iter(self._waiting)) is not waiter
        ):
            self._waiting.setdefault(waiter)
            return False
        if self._waiting:
            self.stop_waiting(waiter)
        self.requests += 1
        return True

    def stop_waiting(self, waiter: Waiter) -> None:
        """Remove a waiter, and let the next one try."""
        self._waiting.pop(waiter, None)
        self._wake_next()

    def end_requests(self, count: int) -> None:
        """Stop counting ``count`` requests."""
        self.requests -= count
        if self._waiting:
            self._wake_next()

    def _wake_next(self) -> None:
        for first in self._waiting:
            first.wake()
            return


class Accounts:
    """The accounts of the users who are connected, or of whom something is left."""

    def __init__(self) -> None:
        self.turns = Turns()
        self._accounts: dict[tuple[int, str | None], Account] = {}

    def of(self, uid: int, rig: str | None, limits: ClientLimits) -> Account:
        """Return the account of a user.

        In each rig a user is another one: root of a rig shares nothing with root of the host.
        """
        account = self._accounts.get((uid, rig))
        if account is None:
            for key in [key for key, other in self._accounts.items() if other.is_unused]:
                del self._accounts[key]
            account = self._accounts[uid, rig] = Account(uid, rig, limits, self.turns)
        return account


class Allowance:
    """A connection's requests and bytes in flight, which count among its user's, too."""

    def __init__(self, limits: ClientLimits, account: Account, counters: Counters) -> None:
        #: Requests in the daemon, each until its reply has left.
        self.requests = 0
        self._most = limits.requests
        self.payload = Share(limits.payload, account.payload)
        #: Bytes that were received and are no whole request yet, or none that may begin.
        self.unread = 0
        self._account = account
        self._counters = counters

    def begin_request(self, waiter: Waiter) -> bool:
        """Count one more request, until its reply has left, if the limits have room for it.

        Returns:
            Whether it is counted. If not, a reply of the same client has to leave first; or the
            user has too many requests in the daemon, and the waiter is woken when that is over.

        """
        if self.requests >= self._most or not self._account.begin_request(waiter):
            return False
        self.requests += 1
        self._counters.in_flight += 1
        return True

    def begin_notice(self) -> None:
        """Count a reply that answers no request, whatever the limits say; there are two at most."""
        self.requests += 1
        self._account.requests += 1
        self._counters.in_flight += 1

    def gone(self, reply: Reply) -> None:
        """Take back what a reply used."""
        if reply.payload:
            self.payload.give_back(reply.payload)
        self.requests -= 1
        self._counters.in_flight -= 1
        self._account.end_requests(1)

    def count_unread(self, size: int) -> None:
        """Count what was received and is not taken as a request, in place of what was before.

        Raises:
            CallError: BUSY: it is more than the user may have.

        """
        self._account.count_unread(size - self.unread)
        self.unread = size
        self._account.refuse_unread()

    def is_only_client(self) -> bool:
        """Return whether no other client has requests in the daemon."""
        return self._counters.in_flight == self.requests

    def close(self) -> None:
        """Take back what is left: of calls that were cancelled."""
        self._account.count_unread(-self.unread)
        self.unread = 0
        self._counters.in_flight -= self.requests
        self._account.end_requests(self.requests)
        self.requests = 0
        self.payload.close()
