"""What one user's connections use together, and what each of them has of that."""

import socket
from typing import Final

import trio

from vuserd.config.model import ClientLimits
from vuserd.errors import CallError, ErrorCode
from vuserd.rpc.counters import Counters
from vuserd.rpc.outbox import Reply
from vuserd.tasks.budget import Budget, Share
from vuserd.tasks.crowd import Arrivals
from vuserd.tasks.turns import Turns
from vuserd.users.foreign_descriptors import ForeignDescriptors
from vuserd.users.holdings import Holdings

#: Connections of a user that may go on all at once; of more than these, a few at a time do.
_MOST_AT_ONCE: Final = 64


class Account:
    """One user's share, for all of the user's connections."""

    def __init__(
        self,
        uid: int,
        rig: str | None,
        limits: ClientLimits,
        turns: Turns,
        arrivals: Arrivals,
    ) -> None:
        self.uid = uid
        self.rig = rig
        self._limits = limits
        self._turns = turns
        self._arrivals = arrivals
        self.connections = 0
        #: Bytes that were received and are no request yet.
        self.unread = 0
        self.requests = Budget(limits.user_requests)
        self.payload = Budget(limits.user_payload)
        self.foreign = ForeignDescriptors(limits.user_descriptors)
        self.holdings = Holdings(limits.user_kept, limits.user_remembered)
        #: Passed through by one connection at a time that has many values to decode.
        self.decoding = trio.Lock()
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
        return self._turns.is_free(self)

    async def take_turn(self) -> None:
        """Wait until it is this user's turn to keep the daemon busy."""
        await self._turns.take(self)

    async def wait_readable(self, sock: socket.socket) -> None:
        """Wait until one of the user's connections can be read, or is closed by the client.

        Raises:
            OSError: the kernel has no memory for one more to wait for.

        """
        if self.connections <= _MOST_AT_ONCE:
            await trio.lowlevel.wait_readable(sock)
        else:
            await self._arrivals.wait_readable(sock)


class Accounts:
    """The accounts of the users who are connected, or of whom something is left."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.arrivals = Arrivals()
        self._accounts: dict[tuple[int, str | None], Account] = {}

    def of(self, uid: int, rig: str | None, limits: ClientLimits) -> Account:
        """Return the account of a user.

        In each rig a user is another one: root of a rig shares nothing with root of the host.
        """
        account = self._accounts.get((uid, rig))
        if account is None:
            for key in [key for key, other in self._accounts.items() if other.is_unused]:
                del self._accounts[key]
            account = self._accounts[uid, rig] = Account(
                uid, rig, limits, self.turns, self.arrivals
            )
        return account


class Allowance:
    """A connection's requests and bytes in flight, which count among its user's, too."""

    def __init__(self, limits: ClientLimits, account: Account, counters: Counters) -> None:
        self.requests = Share(limits.requests, account.requests)
        self.payload = Share(limits.payload, account.payload)
        #: Bytes that were received and are no whole request yet, or none that may begin.
        self.unread = 0
        self._account = account
        self._counters = counters

    async def begin_request(self) -> None:
        """Wait until the client may have one more request in the daemon; its reply ends that."""
        if not self.requests.try_take(1):
            await self.requests.take(1)
        self._counters.in_flight += 1

    def gone(self, reply: Reply) -> None:
        """Take back what a reply used."""
        self.payload.give_back(reply.payload)
        self.requests.give_back(1)
        self._counters.in_flight -= 1

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
        return self._counters.in_flight == self.requests.taken

    def close(self) -> None:
        """Take back what is left: of calls that were cancelled."""
        self._account.count_unread(-self.unread)
        self.unread = 0
        self._counters.in_flight -= self.requests.taken
        self.requests.close()
        self.payload.close()
