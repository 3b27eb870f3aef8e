"""On whose behalf a task works: every task that is started for a client's call inherits it."""

from contextvars import ContextVar
from typing import Final, NamedTuple


class Asker(NamedTuple):
    """A user of the daemon; in each rig a user is another one."""

    uid: int
    rig: str | None

    def __str__(self) -> str:
        return f"uid {self.uid}" if self.rig is None else f"uid {self.uid} of rig {self.rig}"


#: Set once for each connection; None for what the daemon does by itself.
ASKER: Final[ContextVar[Asker | None]] = ContextVar("ASKER", default=None)
