"""A FUSE request: where its reply goes, who waits for it, what is undone if nobody does."""

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol, TypeAlias, runtime_checkable

from protocol import fuse
from vuserd.device.layout import REQUEST_ROOM
from vuserd.device.results import MISSING, Result
from vuserd.users.asker import Asker

#: Called with the body of a successful reply that no caller waits for any more.
Undo: TypeAlias = Callable[[bytes], None]

#: How fast a backend works: about so many bytes of a reply in a microsecond. It works longer for a
#: byte of a listing than for one of a file, longest if it looks each name up. What takes it no
#: longer than a small request counts as nothing.
_SPEED: Final = 4096
_SPEED_OF_LISTINGS: Final = {fuse.Opcode.READDIR: 80, fuse.Opcode.READDIRPLUS: 40}
_SMALL: Final = 31
#: The most bytes of a READ that counts as small.
SMALL_READ: Final = (_SMALL + 1) * _SPEED - 1


class Target(Protocol):
    """The destination of a reply's body: a payload buffer, or memory that a client attached."""

    @property
    def address(self) -> int:
        """Its guest-physical address."""

    def lend(self) -> None:
        """Mark it as lent: the device may write there from now on."""

    def reclaim(self) -> None:
        """Mark it as returned: the device is done with it."""


@runtime_checkable
class Seen(Target, Protocol):
    """A destination whose bytes can be looked at."""

    @property
    def view(self) -> memoryview:
        """All of it."""


class Rest:
    """The rest of a target after its first ``begin`` bytes."""

    def __init__(self, target: Target, begin: int) -> None:
        self.address = target.address + begin
        self.lend = target.lend
        self.reclaim = target.reclaim


def work_of(request: fuse.Request) -> int:
    """Return for how many microseconds a request keeps a backend busy; 0 for a small one."""
    work = (request.reply_size or 0) // _SPEED_OF_LISTINGS.get(request.opcode, _SPEED)
    return work if work > _SMALL else 0


def require_room(request: fuse.Request) -> None:
    """Refuse a request that no slot has room for.

    Raises:
        ValueError: it is too long.

    """
    if request.size > REQUEST_ROOM:
        raise ValueError(f"{request.opcode.name} of {request.size} bytes")


#: A request, where the body of its reply goes, and what undoes it if nobody sees that.
Asked: TypeAlias = "tuple[fuse.Request, Target | None, Undo | None]"


class Ask(NamedTuple):
    """The same by its parts, for whoever has few requests: a plain tuple takes less time."""

    request: fuse.Request
    target: Target | None = None  #: stays the caller's to give back
    undo: Undo | None = None


class InOrder(list[Asked]):
    """Requests that are sent at once, the last of which counts only if the device has used it last.

    Else its result is ``MISSING``: it must bring nothing that is to be undone.
    """


class Batch:
    """Requests of one caller: it goes on when each of them has its result.

    A request that is given up leaves the batch, and is an orphan from then on.
    """

    __slots__ = ("asker", "is_in_order", "missing", "results", "tickets")

    #: Whether it is one of many of the same job.
    is_bulk = False

    def __init__(self, asker: Asker | None = None) -> None:
        #: The user on whose behalf it is sent.
        self.asker = asker
        self.results: list[Result] = []
        self.missing = 0
        #: Whether they are those of :class:`InOrder`.
        self.is_in_order = False
        #: The tickets of those that had to wait in the backlog.
        self.tickets: list[int] = []

    def settle(self, place: int, result: Result) -> None:
        """Record the result of one request; the last one lets the caller go on."""
        self.results[place] = result
        self.missing -= 1
        if not self.missing:
            if self.is_in_order and place != len(self.results) - 1:
                self.results[-1] = MISSING
            self.resume()

    def resume(self) -> None:
        """Let the caller go on."""
        raise NotImplementedError


#: A reply: its request's place, an errno (0 for success), what is in the slot's own room, its
#: header first, and the bytes of all of it, what went to a target included.
Taken: TypeAlias = tuple[int, int, bytes, int]


class Bulk(Batch):
    """Ever more requests of one kind of work, each at one of a few places, time and again.

    They are sent by :meth:`~vuserd.device.lane.direct.Direct.send`, and the replies that are there
    are taken all at once. What a request was is asked for where that matters, and never else.
    """

    __slots__ = ("taken",)

    is_bulk = True

    def __init__(self, asker: Asker | None = None) -> None:
        super().__init__(asker)
        #: The replies that have come since :meth:`take`.
        self.taken: list[Taken] = []

    def asked_at(self, place: int) -> Asked:
        """Return the request that is at a place now."""
        raise NotImplementedError

    def take(self) -> None:
        """Take the replies that have come, and send what follows; the caller publishes it."""
        raise NotImplementedError


def brought(target: Target | None, found: bytes | int) -> bytes:
    """Return the body of a reply that nobody waits for, which may be in its target.

    Its bytes are still where the device wrote them: the target is in quarantine, or still the
    caller's.
    """
    if isinstance(found, bytes):
        return found
    assert isinstance(target, Seen)
    return bytes(target.view[:found])
