"""What the daemon keeps for one client beside its requests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from vuserd.config.model import ClientLimits
from vuserd.delivery.memory_table import MemoryTable
from vuserd.delivery.pages import TreePages
from vuserd.errors import VuserdError
from vuserd.fs.heldfile import FileTable
from vuserd.fs.listings import ContinuationTable, Listing
from vuserd.fs.walk import TreeWalk
from vuserd.rpc.access import Rights
from vuserd.rpc.accounts import Account
from vuserd.tasks.short_work import do_short_work
from vuserd.tracing.trace import TraceTable

#: Exports that a client may trace at once.
_MOST_TRACES: Final = 8


class Caller:
    """The client that calls, as the methods see it."""

    def __init__(self, rights: Rights, account: Account, limits: ClientLimits) -> None:
        self.rights = rights
        self._account = account
        holdings = account.holdings
        self.memories = MemoryTable(limits.memories, limits.memory, account.foreign, holdings)
        self.walks = ContinuationTable[TreeWalk](limits.walks, holdings)
        self.trees = ContinuationTable[TreePages](limits.walks, holdings)
        self.listings = ContinuationTable[Listing](limits.listings, holdings)
        self.files = FileTable(limits.files, holdings)
        self.traces = TraceTable(_MOST_TRACES, holdings)
        #: Whether errors go to it in Neovim's form.
        self.wants_pairs = False

    @asynccontextmanager
    async def one_at_a_time(self) -> AsyncIterator[None]:
        """Run the block alone among those of this client's user, and in that user's turn."""
        async with self._account.reporting:
            await self.take_turn()
            yield

    def is_alone(self) -> bool:
        """Return whether no other client wants anything."""
        return self._account.turns.is_alone(self)

    async def take_turn(self) -> None:
        """Wait for the turn of this client's user to keep the daemon busy."""
        await self._account.take_turn()
        if not self.is_alone():
            do_short_work()

    def show_error(self, error: VuserdError) -> object:
        """Return an error as it goes to this client."""
        return error.to_pair() if self.wants_pairs else error.to_wire()

    def hurry(self) -> None:
        """End the calls that only wait for something to happen."""
        self.traces.close()

    async def close(self) -> None:
        """Release all that the client had; it is gone."""
        self.walks.close()
        self.trees.close()
        self.listings.close()
        self.files.close()
        self.traces.close()
        await self.memories.close()
