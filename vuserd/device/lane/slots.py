"""What is known of each request that the device has, and of each that waits to be given to it."""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

from vuserd.device.request import Asked, Batch, Bulk, Target
from vuserd.users.asker import Asker


class Waiting(NamedTuple):
    """A request that is not on the ring yet."""

    asked: Asked
    batch: Batch | None
    place: int  #: of its result in the batch
    asker: Asker | None  #: the user on whose behalf it is sent
    deadline: float  #: 0 for what no caller waits for
    #: The path of its node, recorded if it may be forgotten before the request ends.
    path: bytes | None
    work: int = 0  #: of one that has a turn among bulk, or waits for it; see :class:`Backlog`


class Sent(NamedTuple):
    """A request that the device has, with the fields of :class:`Waiting`."""

    #: It grows from request to request, in the order in which the device was given them.
    unique: int
    asked: Asked
    #: None if no caller waits, or none does any more.
    batch: Batch | None
    place: int
    asker: Asker | None
    deadline: float
    path: bytes | None
    work: int


#: Makes a :class:`Sent` from its fields, in half of the time that calling the class takes.
sent: Final[Callable[[tuple[Any, ...]], Sent]] = functools.partial(tuple.__new__, Sent)


#: The same in short, of a request in bulk: the unique, the place among those of a bulk, the
#: deadline (0 for what no caller waits for), and the target. Any other tuple costs more time.
Brief: TypeAlias = tuple[int, Bulk, int, float, Target | None]


def in_full(one: Sent | Brief) -> Sent:
    """Return what is known of a request that the device has."""
    if isinstance(one, Sent):
        return one
    unique, bulk, place, deadline, _ = one
    caller = bulk if deadline else None
    return Sent(unique, bulk.asked_at(place), caller, place, bulk.asker, deadline, None, 0)


class Slots:
    """The requests in the slots of a ring of ``num`` descriptors."""

    def __init__(self, num: int) -> None:
        #: By the heads of their chains; None where the device has none.
        self.by_head: list[Sent | Brief | None] = [None] * num
        #: The last one, by its unique, that was answered.
        self.latest = 0

    def outstanding(self) -> list[Sent]:
        """Return those that the device has, in the order in which it was given them."""
        found = [in_full(one) for one in self.by_head if one is not None]
        found.sort(key=operator.attrgetter("unique"))
        return found

    def of(self, batch: Batch) -> list[Sent]:
        """Return those of a batch."""
        return [one for one in self.outstanding() if one.batch is batch]

    def replace(self, changed: Sent) -> None:
        """Record what has changed about a request, which its unique tells."""
        for head, one in enumerate(self.by_head):
            if one is not None and one[0] == changed.unique:
                self.by_head[head] = changed

    def next_deadline(self) -> float:
        """Return when one is overdue whose caller waits, or that has a turn among bulk."""
        sent = self.outstanding()
        deadlines = [one.deadline for one in sent if one.batch or one.work]
        return min(deadlines, default=math.inf)

    def overdue(self, now: float) -> list[Sent]:
        """Return those that are overdue."""
        return [one for one in self.outstanding() if 0 < one.deadline <= now]

    def clear(self) -> list[tuple[Batch, int]]:
        """Free all of them; return which results are missing for that, by batch and place."""
        missing = [(one.batch, one.place) for one in self.outstanding() if one.batch]
        self.by_head[:] = [None] * len(self.by_head)
        return missing
