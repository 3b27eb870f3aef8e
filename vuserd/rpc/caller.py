"""What the daemon keeps for one client beside its requests."""

from vuserd.delivery.attached import MemoryTable


class Caller:
    """The client that calls, as the methods see it."""

    def __init__(self, memories: MemoryTable) -> None:
        self.memories = memories

    async def close(self) -> None:
        """Give back what the client had; it is gone."""
        await self.memories.close()
