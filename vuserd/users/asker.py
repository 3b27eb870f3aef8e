"""Name the user on whose behalf a task works; tasks started for a client's call inherit it."""

from contextvars import ContextVar
from typing import Final, NamedTuple


class Asker(NamedTuple):
    """A user of the daemon; the same uid in another rig counts as another user."""

    uid: int
    rig: str | None

    def __str__(self) -> str:
        return f"uid {self.uid}" if self.rig is None else f"uid {self.uid} of rig {self.rig}"


#: Set once for each connection; None for work of the daemon's own.
ASKER: Final[ContextVar[Asker | None]] = ContextVar("ASKER", default=None)
