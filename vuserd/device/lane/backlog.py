"""Requests that wait before they get a slot: for one that is free, for their turn, for forgets."""

import itertools
import math
from collections.abc import Iterator
from typing import Final

import trio

from protocol.dirent import DIRENT_SIZE
from protocol.fuse import ENTRY_SIZE, Opcode
from vuserd.device.lane.slots import Waiting
from vuserd.device.request import Batch, work_of
from vuserd.users.asker import Asker

#: Microseconds of work that bulk requests which are in the backend at once are for it; one that is
#: more goes alone. Where others ask, too, a backend that does one after the other has no more than
#: keeps it busy, as their small requests wait behind that. One with threads has more: a request
#: that hangs must not keep all others from those. Where only one client has asked for ``_MEMORY``
#: seconds it is sixteen small directories, or twelve READs of a mebibyte.
_MOST_WORK_IN_ORDER: Final = 200
_MOST_WORK: Final = 1100
_MOST_WORK_ALONE: Final = 3300
_MEMORY: Final = 0.1
#: Nodes that the backend may still have to forget, those that it is asked for in bulk among them.
#: Each costs it a descriptor, and the queue on which it forgets may lag far behind. A backend that
#: may open 4,096 has as many to spare: Rust's keeps some six hundred for itself.
_MOST_OWED: Final = 3328
#: Bytes of the shortest entry of READDIRPLUS.
_SHORTEST: Final = ENTRY_SIZE + DIRENT_SIZE + 8


class Backlog:
    """Three queues, each in the order in which requests came; each has a ticket.

    Whatever waits for a turn among bulk, or until nodes are forgotten, waits for a slot afterwards.
    """

    def __init__(self) -> None:
        #: Those that wait for a slot only.
        self.ready: dict[int, Waiting] = {}
        self._bulk: dict[int, Waiting] = {}
        self._more_nodes: dict[int, Waiting] = {}
        self._tickets = itertools.count()
        #: Whether the backend is known to do one request after the other.
        self.answers_in_order = False
        #: The work of those that have a turn, without those that the backend keeps for too long.
        self._work = 0
        #: Who has asked last, and until when bulk leaves others room.
        self.asker: Asker | None = None
        self._shared_until = 0.0
        #: Whether the backend has so many nodes to forget that no more are asked for in bulk.
        self.owes_too_much = False
        self._owed = 0

    def __len__(self) -> int:
        return len(self.ready) + len(self._bulk) + len(self._more_nodes)

    def __iter__(self) -> Iterator[tuple[int, Waiting]]:
        for queue in (self.ready, self._bulk, self._more_nodes):
            yield from queue.items()

    def add(self, waiting: Waiting) -> int:
        """Add a request; return its ticket."""
        ticket = next(self._tickets)
        if self._owed and self._brings_too_many(waiting):
            self._more_nodes[ticket] = waiting
        else:
            self._line_up(ticket, waiting)
        return ticket

    def _line_up(self, ticket: int, waiting: Waiting) -> None:
        work = 0 if waiting.asked[1] is None else work_of(waiting.asked[0])
        if not work:
            self.ready[ticket] = waiting
        else:
            self._bulk[ticket] = waiting._replace(work=work)
            self.end_turn(0)

    def pop(self) -> Waiting:
        """Take the first one off that waits for a slot only."""
        return self.ready.pop(next(iter(self.ready)))

    def remove(self, ticket: int) -> bool:
        """Take a request back; return False if it does not wait any more."""
        for queue in (self._bulk, self._more_nodes):
            if queue.pop(ticket, None) is not None:
                return True
        waiting = self.ready.pop(ticket, None)
        if waiting is not None:
            self.end_turn(waiting.work)
        return waiting is not None

    def heard(self, asker: Asker) -> None:
        """Record who asks, where it is another client than the one before."""
        if self.asker is not None:
            self._shared_until = trio.current_time() + _MEMORY
        self.asker = asker

    def end_turn(self, work: int) -> None:
        """Let the next bulk requests have the turn of one of so much work that has ended."""
        self._work -= work
        if not self._bulk:
            return
        most = _MOST_WORK_ALONE
        if self.is_shared:
            most = _MOST_WORK_IN_ORDER if self.answers_in_order else _MOST_WORK
        while self._bulk:
            ticket, waiting = next(iter(self._bulk.items()))
            if self._work and self._work + waiting.work > most:
                return
            self._work += waiting.work
            self.ready[ticket] = self._bulk.pop(ticket)

    @property
    def is_shared(self) -> bool:
        """Whether several clients have asked lately."""
        return trio.current_time() < self._shared_until

    def owe(self, nodes: int) -> None:
        """Record how many nodes the backend is still to forget."""
        self._owed = nodes
        self.owes_too_much = nodes > _MOST_OWED
        while self._more_nodes:
            ticket, waiting = next(iter(self._more_nodes.items()))
            if nodes and self._brings_too_many(waiting):
                return
            self._line_up(ticket, self._more_nodes.pop(ticket))

    def _brings_too_many(self, waiting: Waiting) -> bool:
        brought = _nodes_of(waiting)
        return brought > 0 and self._owed + brought > _MOST_OWED

    def next_deadline(self) -> float:
        """Return when one is overdue whose caller waits."""
        deadlines = [waiting.deadline for _, waiting in self if waiting.batch]
        return min(deadlines, default=math.inf)

    def take_overdue(self, now: float) -> list[Waiting]:
        """Take back those that are overdue."""
        overdue = [(ticket, waiting) for ticket, waiting in self if 0 < waiting.deadline <= now]
        return [waiting for ticket, waiting in overdue if self.remove(ticket)]

    def clear(self) -> list[tuple[Batch, int]]:
        """Drop all of them; return which results are missing for that, by batch and place."""
        missing = [(waiting.batch, waiting.place) for _, waiting in self if waiting.batch]
        for queue in (self.ready, self._bulk, self._more_nodes):
            queue.clear()
        return missing


def _nodes_of(waiting: Waiting) -> int:
    """Return how many nodes a request may bring in bulk."""
    request = waiting.asked[0]
    if request.opcode is Opcode.READDIRPLUS:
        return (request.reply_size or 0) // _SHORTEST
    return int(
        request.opcode is Opcode.LOOKUP and waiting.batch is not None and waiting.batch.is_bulk
    )
