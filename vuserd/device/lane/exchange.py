"""FUSE requests on the rings: submit, answer, give up, and lose nothing on any of these ways.

A request's slot, and the target of its reply, are the device's from the moment it is published.
Each caller has a :class:`~vuserd.device.request.Batch` of requests, and goes on when all have their
results. A caller that gives up, by deadline or cancellation, leaves its requests behind as orphans:
INTERRUPT is sent, and when the reply comes after all, ``undo`` gives back what it brought: a lookup
count, an open handle.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Final, TypeAlias, TypeVar

import trio

from memory.virtqueue import Used
from protocol import MalformedError, fuse
from protocol.virtio_fs import HIPRIO_QUEUE, REQUEST_QUEUE
from vuserd.device.gate import Gate
from vuserd.device.lane.backlog import Backlog
from vuserd.device.lane.hiprio import Hiprio
from vuserd.device.lane.hung import Attribution
from vuserd.device.lane.slots import Slot, Slots, Waiting
from vuserd.device.lane.watch import Watch
from vuserd.device.layout import PAYLOAD_SIZE, REPLY_ROOM, SharedLayout
from vuserd.device.observer import Observer
from vuserd.device.queue import NotifiedQueue
from vuserd.device.request import Batch, Target, Undo, brought, require_room, work_of
from vuserd.device.results import Done, Failed, Result
from vuserd.errors import (
    BackendBroken,
    BackendDown,
    BackendError,
    BackendTimeout,
    FileError,
    LossCause,
)
from vuserd.users.asker import ASKER, Asker

_LOG = logging.getLogger(__name__)

Reply = TypeVar("Reply")

#: A request, where the body of its reply goes, and what undoes it if nobody sees that.
Asked: TypeAlias = tuple[fuse.Request, Target | None, Undo | None]

_HEADER: Final = fuse.OUT_HEADER_SIZE
#: The longest body of a reply without a target.
_MOST_ANSWERED: Final = REPLY_ROOM - _HEADER


class Exchange:
    """Any number of FUSE requests in flight on a session's two queues.

    ``lost`` is called once with the reason when the backend breaks the protocol.
    """

    def __init__(
        self, layout: SharedLayout, timeout: float, lost: Callable[[BackendError], None]
    ) -> None:
        self._timeout = timeout
        self._lost = lost
        self._failure: BackendError | None = None
        self._who = fuse.Credentials(os.geteuid(), os.getegid(), os.getpid())
        self.requests = NotifiedQueue(layout.virtqueue(REQUEST_QUEUE), self._answered)
        try:
            self._hiprio = Hiprio(layout.virtqueue(HIPRIO_QUEUE), self._encoded, self._go_on)
        except OSError:
            self.requests.close()
            raise
        self._ring = self.requests.ring
        self._slots = Slots(self._ring.layout.num, self._ring.chain)
        self._by_head = self._slots.by_head
        self._backlog = Backlog()
        self._unique = 0
        self._watch = Watch(timeout, self.requests, self._hiprio.queue, self._slots, self._backlog)
        self._idle = trio.lowlevel.ParkingLot()
        #: Whether the device is given nothing for a while.
        self._is_held = False
        #: Whether INTERRUPT is sent for requests that are given up.
        self.interrupts = True
        #: Decides which requests the backend is given; what it holds back is empty mostly.
        self.gate: Gate | None = None
        self._held_back: Sized = ()
        self._observer: Observer | None = None

    @property
    def queues(self) -> dict[int, NotifiedQueue]:
        """The queues by their index."""
        return {REQUEST_QUEUE: self.requests, HIPRIO_QUEUE: self._hiprio.queue}

    @property
    def submitted(self) -> int:
        """Requests that the device was given."""
        return self._unique // 2

    @property
    def in_flight(self) -> int:
        """Requests that the device has, or that wait for a slot."""
        return self._ring.outstanding + len(self._backlog) + len(self._hiprio)

    @property
    def observer(self) -> Observer | None:
        """Who is told of each request that the device is given, and of its end."""
        return self._observer

    @observer.setter
    def observer(self, observer: Observer | None) -> None:
        self._observer = self._hiprio.observer = observer

    def decoded(self, decode: Callable[[bytes], Reply], body: bytes) -> Reply:
        """Decode what the backend wrote; what no backend may write ends the session.

        Raises:
            BackendBroken: ``decode`` refused it.

        """
        try:
            return decode(body)
        except MalformedError as error:
            raise self.broken(error) from error

    def broken(self, error: MalformedError) -> BackendBroken:
        """End the session with a backend that broke the protocol; return what to raise."""
        _LOG.warning("the backend broke the protocol: %s", error)
        reason = BackendBroken(f"the backend broke the protocol: {error}", check=error.check)
        self._lost(reason)
        return reason

    # --- submitting -------------------------------------------------------------------------------

    def deadline(self) -> float:
        """Return when a request that is asked for now is overdue."""
        now = self.requests.now if self.requests.is_reaping else trio.current_time()
        return now + self._timeout

    def ask(
        self,
        asked: Asked,
        batch: Batch,
        place: int,
        asker: Asker | None,
        deadline: float,
    ) -> None:
        """Submit a request of a batch, or have it wait; the caller publishes it.

        Raises:
            HeldBack: it hung the backend, and is not to be asked again yet.
            BackendError: the backend is lost.
            ValueError: no slot can carry it.

        """
        request, target, undo = asked
        if self._held_back and self.gate is not None:
            self.gate.admit(request)
        if self._failure is not None:
            raise self._failure.again()
        size = request.reply_size
        if target is None:
            if size is None or size > _MOST_ANSWERED:
                raise ValueError(f"{request.opcode.name} has no fixed reply")
        elif size is None or not 1 <= size <= PAYLOAD_SIZE:
            raise ValueError(f"{request.opcode.name} of {size} bytes")
        self._submit(request, target, undo, batch, place, asker, deadline, None)

    def post(self, request: fuse.Request) -> None:
        """Send a request without a caller that waits: RELEASE, FORGET, INTERRUPT and their kin.

        It never waits: without a free slot it goes out as soon as there is one. After the backend
        is lost it does nothing, because the backend's state is gone too.
        """
        if self._failure is not None:
            return
        if self._watch.is_parked:
            self._watch.wake()
        if request.reply_size is None:
            require_room(request)
            self._hiprio.post(request)
            self._tell()
        else:
            # Who closes a file forgets it next.
            path = None if self.gate is None else self.gate.path(request)
            self._submit(request, None, None, None, 0, ASKER.get(), 0.0, path)
            self.requests.offer()

    def _submit(
        self,
        request: fuse.Request,
        target: Target | None,
        undo: Undo | None,
        batch: Batch | None,
        place: int,
        asker: Asker | None,
        deadline: float,
        path: bytes | None,
        work: int | None = None,
    ) -> None:
        """Put a request into a slot, or let it wait: in the order in which they came.

        ``work`` is None for one that has not waited yet.
        """
        backlog = self._backlog
        if work is None:
            if self._watch.is_parked:
                self._watch.wake()
            if (
                backlog.ready
                or backlog.owes_too_much
                or self._is_held
                or not self._ring.free
                or (target is not None and work_of(request))
            ):
                require_room(request)
                waiting = Waiting(request, target, undo, batch, place, asker, deadline, path)
                ticket = backlog.add(waiting)
                if batch is not None:
                    batch.tickets.append(ticket)
                self._submit_ready()
                return
        unique = self._unique = self._unique + 2  # odd numbers are the kernel's, for interrupts
        message = request.encode(unique, self._who)
        size = _HEADER + (request.reply_size or 0)
        if target is None:
            slot = self._by_head[self._ring.add(message, size)]
        else:
            target.lend()
            slot = self._by_head[self._ring.add(message, _HEADER, target.address, size - _HEADER)]
        slot.request = request
        slot.unique = unique
        slot.target = target
        slot.undo = undo
        slot.batch = batch
        slot.place = place
        slot.asker = asker
        slot.deadline = deadline
        slot.path = path
        slot.work = work or 0
        if self._observer is not None:
            self._observer.sent(unique, request)

    def _submit_ready(self) -> None:
        """Submit those that wait for a slot only, in order, as far as there are any."""
        backlog, ring = self._backlog, self._ring
        while backlog.ready and ring.free and not self._is_held:
            self._submit(*backlog.pop())

    def _encoded(self, request: fuse.Request) -> tuple[int, bytes]:
        self._unique += 2
        return self._unique, request.encode(self._unique, self._who)

    def _tell(self) -> None:
        """Submit what is not answered, and may be submitted."""
        if not self._is_held:
            self._hiprio.submit()
        self._backlog.owe(self._hiprio.owed)

    # --- replies ----------------------------------------------------------------------------------

    def _answered(self, used: Iterator[Used]) -> None:
        """Take used chains of the request queue: check the replies, let their callers go on."""
        slots, attribution = self._slots, self._watch.attribution
        by_head = slots.by_head
        for head, length, reply in used:
            slot = by_head[head]
            unique, batch, target, undo = slot.unique, slot.batch, slot.target, slot.undo
            error = fuse.decode_reply_header(reply, unique, length)
            if unique > slots.latest:
                slots.latest = unique
            if self._observer is not None:
                self._observer.ended(unique, error, length - _HEADER)
            if attribution is not None:
                attribution.answered(slot, self.requests.now)
            if slot.work:
                self._backlog.end_turn(slot.work)
            slot.clear()
            result: Result
            if error:
                result = Failed(FileError(error))
            elif target is None:
                result = Done(reply[_HEADER:])
            else:
                result = Done(length - _HEADER)
            if batch is None and undo is not None and not error:
                undo(brought(target, result.unwrap()))
            if target is not None:
                target.reclaim()
            if batch is not None:
                batch.settle(slot.place, result)
        self._go_on()

    def _go_on(self) -> None:
        """Submit what may be submitted now, and wake who waits for the end of it all."""
        self._tell()
        self._submit_ready()
        self.requests.publish()
        if self._idle and (not self._has_chains() or not self.in_flight):
            self._idle.unpark_all()

    def _has_chains(self) -> bool:
        return any(queue.ring.outstanding for queue in self.queues.values())

    async def serve_queue(self, queue: int) -> None:
        """Reap a queue until cancelled; a used ring that lies ends the session."""
        try:
            await self.queues[queue].reap_calls()
        except MalformedError as error:
            if self._failure is None:  # of a lost one nothing is outstanding, whatever it returns
                self.broken(error)

    # --- giving up --------------------------------------------------------------------------------

    def give_up(self, batch: Batch, asked: Sequence[Asked]) -> None:
        """Give up the replies of a batch, whether they have come or not."""
        for ticket in batch.tickets:
            self._backlog.remove(ticket)
        for slot in self._slots.of(batch):
            self._orphan(slot)
        for (_, target, undo), result in zip(asked, batch.results, strict=False):
            if undo is not None and isinstance(result, Done):
                self.decoded(undo, brought(target, result.value))
        self._go_on()

    def _orphan(self, slot: Slot) -> None:
        """Leave a request to the device."""
        slot.batch = None
        if self.interrupts:
            self.post(fuse.interrupt(slot.unique))

    def fail(self, reason: BackendError) -> None:
        """Fail all current and future calls with ``reason``: the backend is lost.

        What the backend holds never comes back.
        """
        if self._failure is not None:
            return
        self._failure = reason.again()
        self._lost = lambda _: None  # the session knows by now, and is not kept alive from here
        missing = self._backlog.clear() + self._slots.clear()
        self._ring.abandon()
        self._hiprio.abandon()
        self._watch.attribution = None
        if self._observer is not None:
            self._observer.lost()
        for batch, place in missing:
            batch.settle(place, Failed(reason.again()))
        self._idle.unpark_all()

    def close(self) -> None:
        """Close the queues; the tasks that ran on them have ended."""
        for queue in self.queues.values():
            queue.close()

    # --- deadlines --------------------------------------------------------------------------------

    def obey(self, gate: Gate) -> None:
        """Have ``gate`` decide from now on which requests the backend is given."""
        self.gate = gate
        self._watch.attribution = Attribution(gate, self._timeout)
        self._held_back = gate.held

    def makes_progress(self) -> bool:
        """Return whether this end's tasks run on time, whatever the backend does."""
        return self._watch.makes_progress()

    async def watch_deadlines(self) -> None:
        """Fail overdue requests and find a silent backend; run until cancelled."""
        silence = await self._watch.run(self._end_overdue, self._probe)
        self._lost(BackendDown(silence, LossCause.SILENT))

    def _end_overdue(self, now: float) -> bool:
        """End what is overdue; return whether a caller waited for any of it."""
        ended = [(one.request, one.batch, one.place) for one in self._backlog.take_overdue(now)]
        for slot in self._slots.overdue(now):
            if slot.work:
                self._backlog.end_turn(slot.work)
                slot.work = 0
            if slot.batch is not None and slot.request is not None:
                ended.append((slot.request, slot.batch, slot.place))
                if self._observer is not None:
                    self._observer.timed_out(slot.unique)
                self._orphan(slot)
        for request, batch, place in ended:
            assert batch is not None
            batch.settle(place, Failed(self._timed_out(request)))
        self._go_on()
        return bool(ended)

    def _timed_out(self, request: fuse.Request) -> BackendTimeout:
        return BackendTimeout(
            f"the backend did not answer {request.opcode.name} within {self._timeout:g} s"
        )

    def _probe(self, probe: Batch) -> None:
        """Send a request that any backend answers at once."""
        request = fuse.getattr(fuse.ROOT_ID)
        self._submit(request, None, None, probe, 0, None, self.deadline(), None)
        self.requests.offer()
