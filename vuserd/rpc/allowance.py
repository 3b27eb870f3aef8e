"""What one connection has of the daemon now, and the most that it may have."""

from vuserd.config.model import ClientLimits
from vuserd.rpc.accounts import Account
from vuserd.rpc.counters import Counters
from vuserd.rpc.outbox import Reply
from vuserd.tasks.budget import Share


class Allowance:
    """A connection's requests and bytes in flight, which count among its user's, too."""

    def __init__(self, limits: ClientLimits, account: Account, counters: Counters) -> None:
        self.requests = Share(limits.requests, account.requests)
        self.payload = Share(limits.payload, account.payload)
        #: Bytes that were received and are no whole request yet, or none that may begin.
        self.unread = 0
        self._account = account
        self._counters = counters

    async def take_turn(self) -> None:
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

    def is_alone(self) -> bool:
        """Tell whether no other client has requests in the daemon."""
        return self._counters.in_flight == self.requests.taken

    def close(self) -> None:
        """Take back what is left: of calls that were cancelled."""
        self._account.count_unread(-self.unread)
        self.unread = 0
        self._counters.in_flight -= self.requests.taken
        self.requests.close()
        self.payload.close()
