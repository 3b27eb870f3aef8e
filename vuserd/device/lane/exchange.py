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
from typing import Final

import trio

from memory.virtqueue import Used
from protocol import MalformedError, fuse
from protocol.virtio_fs import HIPRIO_QUEUE, REQUEST_QUEUE
from vuserd.device.gate import Gate
from vuserd.device.lane.backlog import Backlog
from vuserd.device.lane.hiprio import Hiprio
from vuserd.device.lane.slots import Sent, Slots, Waiting, in_full, sent
from vuserd.device.lane.watch import Watch
from vuserd.device.layout import PAYLOAD_SIZE, REPLY_ROOM, SharedLayout
from vuserd.device.observer import Observer
from vuserd.device.queue import NotifiedQueue
from vuserd.device.request import Asked, Batch, Bulk, InOrder, brought, require_room, work_of
from vuserd.device.results import MISSING, Failed, Result
from vuserd.errors import (
    BackendBroken,
    BackendDown,
    BackendError,
    BackendTimeout,
    FileError,
    LossCause,
    VuserdError,
)
from vuserd.users.asker import ASKER, Asker

_LOG = logging.getLogger(__name__)

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
        #: When a request is overdue that is asked for while replies are taken.
        self._due = 0.0
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
        self._slots = Slots(self._ring.layout.num)
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
    def in_flight(self) -> int:
        """Requests that the device has, or that wait for a slot."""
        return self._ring.outstanding + len(self._backlog) + len(self._hiprio)

    @property
    def is_shared(self) -> bool:
        """Whether several clients have asked lately."""
        return self._backlog.is_shared

    @property
    def observer(self) -> Observer | None:
        """Who is told of each request that the device is given, and of its end."""
        return self._observer

    @observer.setter
    def observer(self, observer: Observer | None) -> None:
        self._observer = self._hiprio.observer = observer

    def broken(self, error: MalformedError) -> BackendBroken:
        """End the session with a backend that broke the protocol; return what to raise."""
        if self._failure is None:  # else the reason is known, and this one of many alike perhaps
            _LOG.warning("the backend broke the protocol: %s", error)
        reason = BackendBroken(f"the backend broke the protocol: {error}", check=error.check)
        self._lost(reason)
        return reason

    # --- submitting -------------------------------------------------------------------------------

    def submit(self, batch: Batch, asked: Sequence[Asked]) -> None:
        """Submit requests of a batch, or have them wait; the caller publishes them.

        What may not be sent has an error as its result.

        Raises:
            ValueError: no slot can carry one.

        """
        count = len(asked)
        batch.results = [MISSING] * count
        batch.missing = count
        batch.is_in_order = type(asked) is InOrder
        if batch.tickets:
            batch.tickets.clear()
        if self._watch.is_parked:
            self._watch.wake()
        deadline = self._due if self.requests.is_reaping else self._deadline()
        asker, room = batch.asker, self._room()
        if asker is not self._backlog.asker and asker is not None:
            self._backlog.heard(asker)
        for place, one in enumerate(asked):
            request, target, _ = one
            size = request.reply_size
            if target is None:
                if size is None or size > _MOST_ANSWERED:
                    raise ValueError(f"{request.opcode.name} has no fixed reply")
            elif size is None or not 1 <= size <= PAYLOAD_SIZE:
                raise ValueError(f"{request.opcode.name} of {size} bytes")
            if self._failure is not None or self._held_back:
                try:
                    self._admit(request)
                except VuserdError as error:
                    batch.results[place] = Failed(error.again())
                    batch.missing -= 1
                    continue
            if room and (target is None or not work_of(request)):
                room -= 1
                self._send(one, batch, place, asker, deadline, None, 0)
            else:
                self._wait(Waiting(one, batch, place, asker, deadline, None))
                room = self._room()

    def _deadline(self) -> float:
        """Return when a request that is asked for now is overdue."""
        return trio.current_time() + self._timeout

    def _room(self) -> int:
        """Return how many requests may be sent at once: none while any waits for a slot only."""
        backlog = self._backlog
        return 0 if backlog.ready or backlog.owes_too_much or self._is_held else self._ring.free

    def _admit(self, request: fuse.Request) -> None:
        """Refuse a request that may not be sent.

        Raises:
            BackendError: the backend is lost.
            HeldBack: it hung the backend, and is not to be asked again yet.

        """
        if self._failure is not None:
            raise self._failure.again()
        if self._held_back and self.gate is not None:
            self.gate.admit(request)

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
            self._put(Waiting((request, None, None), None, 0, ASKER.get(), 0.0, path))

    def _put(self, waiting: Waiting) -> None:
        """Send a small request soon, by itself."""
        if self._room():
            self._send(*waiting)
        else:
            self._wait(waiting)
        self.requests.offer()

    def _wait(self, waiting: Waiting) -> None:
        """Add a request behind those that wait, and submit what may be."""
        require_room(waiting.asked[0])
        ticket = self._backlog.add(waiting)
        if waiting.batch is not None:
            waiting.batch.tickets.append(ticket)
        self._submit_ready()

    def _send(
        self,
        asked: Asked,
        batch: Batch | None,
        place: int,
        asker: Asker | None,
        deadline: float,
        path: bytes | None,
        work: int,
    ) -> None:
        """Put a request into a slot, with the fields of :class:`Waiting`."""
        request, target, _ = asked
        unique = self._unique = self._unique + 2  # odd numbers are the kernel's, for interrupts
        message = request.encode(unique, self._who)
        size = request.reply_size or 0
        if target is None:
            slot = self._ring.add(message, _HEADER + size)
        else:
            target.lend()
            slot = self._ring.add(message, _HEADER, target.address, size)
        self._by_head[slot] = sent((unique, asked, batch, place, asker, deadline, path, work))
        if self._observer is not None:
            self._observer.sent(unique, request)

    def _submit_ready(self) -> None:
        """Submit those that wait for a slot only, in order, as far as there are any."""
        backlog, ring = self._backlog, self._ring
        while backlog.ready and ring.free and not self._is_held:
            self._send(*backlog.pop())

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
        slots, observer, attribution = self._slots, self._observer, self._watch.attribution
        by_head, unpack, latest = slots.by_head, fuse.unpack_out_header, slots.latest
        self._due = self.requests.now + self._timeout
        if attribution is not None and not attribution.is_listening:
            attribution = None
        bulks: list[Bulk] = []
        try:
            for head, length, reply in used:
                one = by_head[head]
                assert one is not None
                unique, error = one[0], 0
                if length < _HEADER or unpack(reply) != (length, 0, unique):  # few of them
                    error = fuse.decode_reply_header(reply, unique, length)
                by_head[head] = None
                latest = unique if unique > latest else latest  # noqa: FURB136 - max() takes longer
                if observer is not None:
                    observer.ended(unique, error, length - _HEADER)
                if attribution is not None:
                    attribution.answered(in_full(one), self.requests.now)
                if isinstance(one, Sent):
                    self._end(one, error, reply, length)
                    continue
                _, bulk, place, _, target = one
                if target is not None:
                    target.reclaim()
                if not bulk.taken:
                    bulks.append(bulk)
                bulk.taken.append((place, error, reply, length))
        finally:
            slots.latest = latest
            for bulk in bulks:
                bulk.take()
        self._go_on()

    def _end(self, one: Sent, error: int, reply: bytes, length: int) -> None:
        """End a request with its reply."""
        _, (_, target, undo), batch, place, _, _, _, work = one
        if work:
            self._backlog.end_turn(work)
        result: Result
        if error:
            result = Failed(FileError(error))
        elif target is None:
            result = reply[_HEADER:]
        else:
            result = length - _HEADER
        if batch is None and undo is not None and not isinstance(result, Failed):
            undo(brought(target, result))
        if target is not None:
            target.reclaim()
        if batch is not None:
            batch.settle(place, result)

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
            self.broken(error)

    # --- giving up --------------------------------------------------------------------------------

    def _leave(self, one: Sent) -> None:
        """Leave a request to the device: no caller waits for it any more."""
        self._slots.replace(one._replace(batch=None))
        if one.batch is not None and self.interrupts:
            self.post(fuse.interrupt(one.unique))

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

    async def watch_deadlines(self) -> None:
        """Fail overdue requests and find a silent backend; run until cancelled."""
        silence = await self._watch.run(self._end_overdue, self._probe)
        self._lost(BackendDown(silence, LossCause.SILENT))

    def _end_overdue(self, now: float) -> bool:
        """End what is overdue; return whether a caller waited for any of it."""
        ended = [(one.asked[0], one.batch, one.place) for one in self._backlog.take_overdue(now)]
        for one in self._slots.overdue(now):
            if one.work:
                self._backlog.end_turn(one.work)
            if one.batch is not None:
                ended.append((one.asked[0], one.batch, one.place))
                if self._observer is not None:
                    self._observer.timed_out(one.unique)
            self._leave(one._replace(work=0))
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
        probe.results, probe.missing = [MISSING], 1
        request = fuse.getattr(fuse.ROOT_ID)
        self._put(Waiting((request, None, None), probe, 0, None, self._deadline(), None))
