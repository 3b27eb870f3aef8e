"""A FUSE request on its way: what it takes along, and what became of it."""

from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

import outcome
import trio

from memory.arena import Buffer
from protocol import fuse
from vuserd.users.asker import ASKER

#: A reply's body; only its length, where it went into a target.
Result: TypeAlias = outcome.Outcome[bytes | int]

#: Takes the body of a successful reply that nobody waits for any more.
Undo: TypeAlias = Callable[[bytes], None]

#: A request whose reply is this long is bulk, and few of them are in the backend at once: enough
#: to keep it busy, and the small ones of others do not wait long behind them.
_BULK_SIZE: Final = 128 << 10


class Target(Protocol):
    """Where the body of a reply goes: a payload buffer, or memory that a client attached."""

    @property
    def address(self) -> int:
        """Its guest-physical address."""

    def lend(self) -> None:
        """Take note that the device may write there from now on."""

    def reclaim(self) -> None:
        """Take note that the device is done with it."""


class Rest:
    """What is left of a target behind its first ``begin`` bytes."""

    def __init__(self, target: Target, begin: int) -> None:
        self.address = target.address + begin
        self.lend = target.lend
        self.reclaim = target.reclaim


class InFlight:
    """A request that the device has, or will have when a slot is free."""

    __slots__ = (
        "asker",
        "deadline",
        "is_bulk",
        "message",
        "number",
        "path",
        "request",
        "result",
        "target",
        "task",
        "undo",
        "unique",
    )

    def __init__(
        self, request: fuse.Request, unique: int, target: Target | None, undo: Undo | None
    ) -> None:
        self.request = request
        self.unique = unique
        self.target = target
        self.undo = undo
        #: On whose behalf it is.
        self.asker = ASKER.get()
        #: Which one it is of those that the device was given.
        self.number = 0
        #: Where its node was, if that may not be known any more later.
        self.path: bytes | None = None
        self.message: Buffer | None = None
        #: What became of it, and who waits for that, until when.
        self.result: Result | None = None
        self.task: trio.lowlevel.Task | None = None
        self.deadline = 0.0
        self.is_bulk = target is not None and (request.reply_size or 0) >= _BULK_SIZE
