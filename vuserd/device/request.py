"""A FUSE request in flight: its buffers, its caller and its result."""

from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

import outcome
import trio

from memory.arena import Buffer
from protocol import fuse
from vuserd.users.asker import ASKER

#: A reply's body, or only its length if the body went into a target.
Result: TypeAlias = outcome.Outcome[bytes | int]

#: Called with the body of a successful reply that no caller waits for any more.
Undo: TypeAlias = Callable[[bytes], None]

#: A request whose reply has this many bytes is bulk. Few of them are in the backend at once: enough
#: to keep it busy, but the small requests of other users do not wait long behind them. The backend
#: works longer for a byte of a listing than for one of a file, longest if it looks each name up.
_BULK_SIZE: Final = 128 << 10
_BULK_LISTINGS: Final = {fuse.Opcode.READDIR: 32 << 10, fuse.Opcode.READDIRPLUS: 16 << 10}


class Target(Protocol):
    """The destination of a reply's body: a payload buffer, or memory that a client attached."""

    @property
    def address(self) -> int:
        """Its guest-physical address."""

    def lend(self) -> None:
        """Mark it as lent: the device may write there from now on."""

    def reclaim(self) -> None:
        """Mark it as returned: the device is done with it."""


class Rest:
    """The rest of a target after its first ``begin`` bytes."""

    def __init__(self, target: Target, begin: int) -> None:
        self.address = target.address + begin
        self.lend = target.lend
        self.reclaim = target.reclaim


class InFlight:
    """A request that the device has, or will get when a slot is free."""

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
        #: The user on whose behalf it is sent.
        self.asker = ASKER.get()
        #: Its number in the order in which requests were given to the device.
        self.number = 0
        #: The path of its node, recorded if it may be forgotten before the request ends.
        self.path: bytes | None = None
        self.message: Buffer | None = None
        #: Its result, the task that waits for that, and its deadline.
        self.result: Result | None = None
        self.task: trio.lowlevel.Task | None = None
        self.deadline = 0.0
        self.is_bulk = target is not None and (
            (request.reply_size or 0) >= _BULK_LISTINGS.get(request.opcode, _BULK_SIZE)
        )
