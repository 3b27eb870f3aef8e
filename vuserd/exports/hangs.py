"""Requests that hung a backend: held back for a while, and so are users who ask for many of them.

Opening or reading a file can take for ever: one with a lease, one of a file system whose server
does not answer. The backend's thread waits in the kernel, and with its last thread the backend is
lost. Asked again at once, the next one would be lost as well. So what hung, this request for this
path, fails at once for a while; then one call may try again, and the others wait for its outcome.
All else is served, in the same directory, too. A user who finds ever new files that hang is held
back as well.
"""

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sized
from itertools import islice
from typing import Final, Generic, NamedTuple, TypeVar

import trio

from protocol import fuse
from protocol.fuse import Opcode
from vuserd.errors import CallError, ErrorCode, HeldBack, printable
from vuserd.fs.nodes import NodeTable
from vuserd.service.journal import about_export
from vuserd.users.asker import ASKER, Asker

_LOG = logging.getLogger(__name__)

#: How long the first time, in timeouts of the session: a hang costs others about one of them. It
#: doubles each time, up to the most.
_FIRST: Final = 3
_MOST: Final = 96
#: After as many without another hang it begins anew.
_FORGOTTEN: Final = 96
#: Hangs that a user has free: any user may come across some.
_FREE: Final = 2
#: How long others wait for the outcome of a trial, in timeouts: no request takes longer.
_TRIAL: Final = 1.5
#: How many are remembered; each took a timeout.
_CAPACITY: Final = 1024

#: A request that no call waits for, and what is not asked any more because it hung.
_OPENED_BY: Final = {Opcode.RELEASE: Opcode.OPEN, Opcode.RELEASEDIR: Opcode.OPENDIR}

Key = TypeVar("Key", bound=Hashable)


class Place(NamedTuple):
    """What a request was about."""

    opcode: Opcode
    path: bytes


class _Record:
    """How often something hung, and until when it is held back for that."""

    def __init__(self) -> None:
        self.hangs = 0
        self.until = 0.0
        self.forgotten = 0.0
        #: Whether one tries it: then ``until`` is when that will have ended.
        self.on_trial = False


class Backoff(Generic[Key]):
    """Things that hung, each held back for longer than the time before.

    Args:
        free: how often each may hang before it is held back.

    """

    def __init__(self, free: int = 0) -> None:
        #: Those that are held back, or were and have not been tried since.
        self.held: dict[Key, _Record] = {}
        self._free = free
        self._records: OrderedDict[Key, _Record] = OrderedDict()
        #: When the first of those that are held back is forgotten.
        self._lapses_at = math.inf

    def note(self, key: Key, unit: float) -> float:
        """Record that something hung for ``unit`` seconds; return for how many it is held back."""
        now = trio.current_time()
        record = self._records.pop(key, None)
        if record is None or now >= record.forgotten:
            record = _Record()
        record.hangs += 1
        record.on_trial = False
        doublings = record.hangs - self._free - 1
        pause = 0.0 if doublings < 0 else unit * min(_FIRST * 2 ** min(doublings, 30), _MOST)
        record.until = now + pause
        record.forgotten = record.until + _FORGOTTEN * unit
        self._records[key] = record
        if pause:
            self.held[key] = record
        self._forget(now)
        return pause

    def remaining(self, key: Key) -> float:
        """Return for how many seconds something is held back yet; 0 where it is not."""
        record = self.held.get(key)
        return 0.0 if record is None else max(0.0, record.until - trio.current_time())

    def begin_trial(self, key: Key, seconds: float) -> None:
        """Let one call try what was held back; hold it back from others for ``seconds``."""
        record = self.held.get(key)
        if record is not None:
            record.on_trial = True
            record.until = trio.current_time() + seconds

    def end_trial(self, key: Key) -> None:
        """Stop holding something back that was tried, and did not hang."""
        record = self.held.get(key)
        if record is not None and record.on_trial:
            record.on_trial = False
            del self.held[key]

    def take_back(self, key: Key) -> None:
        """Undo the latest :meth:`note`."""
        record = self._records.get(key)
        if record is not None:
            record.hangs -= 1
            self.held.pop(key, None)

    def lapse(self) -> None:
        """Forget what has not hung for long: what nobody tries again is not held back for ever."""
        now = trio.current_time()
        if now >= self._lapses_at:
            self._forget(now)

    def _forget(self, now: float) -> None:
        """Forget what has not hung for long, and the oldest where there are too many."""
        surplus = len(self._records) - _CAPACITY
        old = [key for key, record in self._records.items() if now >= record.forgotten]
        for key in old or islice(list(self._records), max(surplus, 0)):
            del self._records[key]
            self.held.pop(key, None)
        self._lapses_at = min((record.forgotten for record in self.held.values()), default=math.inf)


class Hangs:
    """What hung the backends of one export, and on whose behalf; ``name`` is the export's."""

    def __init__(self, name: str) -> None:
        self.places: Backoff[Place] = Backoff()
        self.askers: Backoff[Asker] = Backoff(_FREE)
        self._log = about_export(_LOG, name)
        self._name = name

    def note(self, place: Place | None, asker: Asker | None, timeout: float) -> None:
        """Record that a request hung the backend for longer than the session's timeout."""
        if place is not None:
            pause = self.places.note(place, timeout)
            self._log.warning(
                "export %s: %s of %s hung the backend, asked for by %s: it is held back for %g s",
                self._name,
                place.opcode.name,
                printable(place.path.decode(errors="backslashreplace")),
                asker or "the daemon",
                pause,
            )
        if asker is not None and (pause := self.askers.note(asker, timeout)):
            self._log.warning(
                "export %s: %s has hung the backend again and again, and is held back for %g s",
                self._name,
                asker,
                pause,
            )

    def take_back(self, place: Place | None, asker: Asker | None) -> None:
        """Undo the latest :meth:`note` of these."""
        if place is not None:
            self.places.take_back(place)
        if asker is not None:
            self.askers.take_back(asker)

    def holds_back(self, asker: Asker | None) -> bool:
        """Return whether a user's calls are refused."""
        return asker is not None and bool(self.askers.remaining(asker))

    def require_asker(self) -> None:
        """Refuse a call on behalf of a user who is held back.

        Raises:
            CallError: BUSY, with ``retry_after`` in seconds.

        """
        self.askers.lapse()
        asker = ASKER.get()
        if asker is not None and (remaining := self.askers.remaining(asker)):
            raise CallError(
                ErrorCode.BUSY,
                f"files that {asker} asked for hung the backend again and again: the next call is"
                f" taken in {remaining:.1f} s; see to their leases, and to the servers of their"
                " file systems",
                retry_after=remaining,
            )

    def require_place(self, place: Place, timeout: float) -> None:
        """Refuse what is held back; where its time is over, let one try it.

        Raises:
            HeldBack: it is.

        """
        if place not in self.places.held:
            return
        remaining = self.places.remaining(place)
        if remaining:
            raise HeldBack(place.opcode.name, remaining)
        self.places.begin_trial(place, _TRIAL * timeout)


class NodeGate:
    """The gate of one session's lane: see :class:`~vuserd.device.gate.Gate`.

    Args:
        hangs: the export's.
        nodes: the session's.
        timeout: the session's, in seconds.
        threads: how many requests the backend works at at once.
        stands_still: returns whether the backend was stopped by a signal.

    """

    def __init__(
        self,
        hangs: Hangs,
        nodes: NodeTable,
        timeout: float,
        threads: int = 1,
        stands_still: Callable[[], bool] = lambda: False,
    ) -> None:
        self.threads = threads
        self._hangs = hangs
        self._nodes = nodes
        self._timeout = timeout
        self._stands_still = stands_still
        self.held: Sized = hangs.places.held

    def admit(self, request: fuse.Request) -> None:
        """Let a request pass.

        Raises:
            HeldBack: it hung the backend, and is not to be asked again yet.

        """
        self._hangs.places.lapse()
        place = self._place(request)
        if place is not None:
            self._hangs.require_place(place, self._timeout)

    def answered(self, request: fuse.Request) -> None:
        """End the trial, where it was one."""
        place = self._place(request)
        if place is not None:
            self._hangs.places.end_trial(place)

    def path(self, request: fuse.Request) -> bytes | None:
        """Return where a request's node is now; None where that is not known."""
        return self._nodes.path(request.node)

    def hung(self, request: fuse.Request, path: bytes | None, asker: Asker | None) -> None:
        """Hold a request back, and perhaps the user on whose behalf it was."""
        if self._stands_still():
            return
        self._hangs.note(self._place(request, path), asker, self._timeout)

    def was_late(self, request: fuse.Request, path: bytes | None, asker: Asker | None) -> None:
        """Undo :meth:`hung`: the backend has answered after all."""
        self._hangs.take_back(self._place(request, path), asker)

    def _place(self, request: fuse.Request, path: bytes | None = None) -> Place | None:
        """Return what a request is about; None where its node is not known any more."""
        path = path or self._nodes.path(request.node)
        if path is None:
            return None
        if request.opcode is Opcode.LOOKUP:
            path = path.rstrip(b"/") + b"/" + request.body.rstrip(b"\0")
        return Place(_OPENED_BY.get(request.opcode, request.opcode), path)
