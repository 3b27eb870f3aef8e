"""What is known of each request that the device has, and of each that waits to be given to it."""

import math
import operator
from typing import NamedTuple

from protocol import fuse
from vuserd.device.request import Batch, Target, Undo
from vuserd.users.asker import Asker


class Waiting(NamedTuple):
    """A request that is not on the ring yet."""

    request: fuse.Request
    target: Target | None
    undo: Undo | None
    batch: Batch | None
    place: int  #: of its result in the batch
    asker: Asker | None  #: the user on whose behalf it is sent
    deadline: float  #: 0 for what no caller waits for
    #: The path of its node, recorded if it may be forgotten before the request ends.
    path: bytes | None
    work: int = 0  #: of one that has a turn among bulk, or waits for it; see :class:`Backlog`


class Slot:
    """The request that a slot of the ring has, with the fields of :class:`Waiting`."""

    __slots__ = (
        "asker",
        "batch",
        "deadline",
        "path",
        "place",
        "request",
        "target",
        "undo",
        "unique",
        "work",
    )

    def __init__(self) -> None:
        #: None while the slot is free.
        self.request: fuse.Request | None = None
        #: It grows from request to request, in the order in which the device was given them.
        self.unique = 0
        self.target: Target | None = None
        self.undo: Undo | None = None
        #: None if no caller waits, or none does any more.
        self.batch: Batch | None = None
        self.place = 0
        self.asker: Asker | None = None
        self.deadline = 0.0
        self.path: bytes | None = None
        self.work = 0

    def clear(self) -> None:
        """Keep nothing of a request that has ended."""
        self.request = self.target = self.undo = self.batch = self.asker = self.path = None
        self.work = 0


class Slots:
    """The slots of a ring of ``num`` descriptors, of which each slot has ``chain``."""

    def __init__(self, num: int, chain: int) -> None:
        #: By the heads of their chains; the others are never asked for.
        self.by_head = [Slot() for _ in range(num)]
        #: The last one, by its unique, that was answered.
        self.latest = 0
        self._all = self.by_head[: num - chain + 1 : chain]

    def outstanding(self) -> list[Slot]:
        """Return those that the device has, in the order in which it was given them."""
        found = [slot for slot in self._all if slot.request is not None]
        found.sort(key=operator.attrgetter("unique"))
        return found

    def of(self, batch: Batch) -> list[Slot]:
        """Return those of a batch."""
        return [slot for slot in self._all if slot.batch is batch]

    def next_deadline(self) -> float:
        """Return when one is overdue whose caller waits, or that has a turn among bulk."""
        deadlines = [slot.deadline for slot in self._all if slot.batch or slot.work]
        return min(deadlines, default=math.inf)

    def overdue(self, now: float) -> list[Slot]:
        """Return those that are overdue."""
        return [slot for slot in self.outstanding() if 0 < slot.deadline <= now]

    def clear(self) -> list[tuple[Batch, int]]:
        """Free all of them; return which results are missing for that, by batch and place."""
        missing = [(slot.batch, slot.place) for slot in self.outstanding() if slot.batch]
        for slot in self._all:
            slot.clear()
        return missing
