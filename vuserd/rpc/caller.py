"""What the daemon keeps for one client beside its requests."""

from vuserd.delivery.attached import MemoryTable
from vuserd.fs.walks import WalkTable


class Caller:
    """The client that calls, as the methods see it."""

    def __init__(self, memories: MemoryTable, walks: WalkTable) -> None:
        self.memories = memories
        self.walks = walks

    async def close(self) -> None:
        """Give back what the client had; it is gone."""
        self.walks.close()
        await self.memories.close()
