"""FUSE requests on the rings: submit, await, give up, and lose nothing on any of these ways.

A request has a message buffer (the request, then room for its reply) and may have a payload buffer
that its caller owns. From the moment it is published both belong to the device. A caller that gives
up, by deadline or cancellation, leaves its request behind as an orphan: INTERRUPT is sent, and when
the reply comes after all, ``undo`` gives back what it brought: a lookup count, an open handle.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Final, TypeVar

import outcome
import trio

from memory.arena import Buffer
from memory.virtqueue import Virtqueue
from protocol import Check, MalformedError, fuse
from protocol.virtio_fs import HIPRIO_QUEUE, REQUEST_QUEUE
from vuserd.device.gate import Gate
from vuserd.device.layout import IN_FLIGHT, PAYLOAD_SIZE, REPLY_ROOM, REQUEST_ROOM, SharedLayout
from vuserd.device.observer import Observer
from vuserd.device.queue import NotifiedQueue
from vuserd.device.request import InFlight, Result, Target, Undo
from vuserd.device.watch import PROBE_TIME, Watch
from vuserd.errors import (
    BackendBroken,
    BackendDown,
    BackendError,
    BackendTimeout,
    FileError,
    LossCause,
    VuserdError,
)

_LOG = logging.getLogger(__name__)

Reply = TypeVar("Reply")

_HEADER: Final = fuse.OUT_HEADER_SIZE

#: Bulk requests that are in the backend at once, without those that it keeps for too long.
_BULK_IN_FLIGHT: Final = 4


class FuseChannel:
    """Any number of FUSE requests in flight on a session's two queues.

    ``lost`` is called once with the reason when the backend breaks the protocol.
    """

    def __init__(
        self, layout: SharedLayout, timeout: float, lost: Callable[[BackendError], None]
    ) -> None:
        self._messages = layout.messages
        self._timeout = timeout
        self._lost = lost
        self._failure: BackendError | None = None
        self._who = fuse.Credentials(os.geteuid(), os.getegid(), os.getpid())
        self._unique = 0
        self.requests = self._new_queue(layout, REQUEST_QUEUE, self._answered)
        try:
            self.hiprio = self._new_queue(layout, HIPRIO_QUEUE, self._forgotten)
        except OSError:
            self.requests.close()
            raise
        #: Free slots by queue. A slot is free again when the device gave it back.
        self._slots = dict(IN_FLIGHT)
        #: Requests that wait for a slot, by queue and unique, in order.
        self._backlog: dict[int, dict[int, InFlight]] = {queue: {} for queue in IN_FLIGHT}
        #: Bulk that waits for its turn.
        self._bulk_backlog: dict[int, InFlight] = {}
        self._watch = Watch(timeout, self.requests, self.hiprio)
        self._awaited = self._watch.awaited
        #: Bulk in the backend, but for what it keeps for longer than its time.
        self._bulk = self._watch.turns
        self._idle = trio.lowlevel.ParkingLot()
        #: Whether the device is given nothing for a while.
        self._is_held = False
        self.submitted = 0
        #: The last of those, by number, that was answered.
        self._latest_answered = 0
        #: Whether INTERRUPT is sent for requests that are given up.
        self.interrupts = True
        #: Decides which requests the backend is given; what it holds back is empty mostly.
        self.gate: Gate | None = None
        self._held_back: Sized = ()
        #: Requests that were found to hang the backend.
        self._hung: set[InFlight] = set()
        #: Is told of each request that the device is given, and of its end.
        self.observer: Observer | None = None

    @staticmethod
    def _new_queue(
        layout: SharedLayout, queue: int, used: Callable[[InFlight, int], None]
    ) -> NotifiedQueue[InFlight]:
        ring: Virtqueue[InFlight] = Virtqueue(layout.ring_memory(queue), layout.rings[queue].layout)
        return NotifiedQueue(ring, used)

    @property
    def queues(self) -> dict[int, NotifiedQueue[InFlight]]:
        """The queues by their index."""
        return {REQUEST_QUEUE: self.requests, HIPRIO_QUEUE: self.hiprio}

    @property
    def in_flight(self) -> int:
        """Requests that the device has, or that wait for a slot."""
        rings = self.requests.ring.outstanding + self.hiprio.ring.outstanding
        return rings + sum(map(len, self._backlog.values())) + len(self._bulk_backlog)

    async def call(
        self, request: fuse.Request, decode: Callable[[bytes], Reply], undo: Undo | None = None
    ) -> Reply:
        """Send a request whose reply has a fixed place; return the reply's body, decoded.

        Raises:
            FileError: the file system's errno.
            BackendTimeout: no reply within the deadline.
            BackendError: the backend is lost.

        """
        self._require_room(request, None)
        body = (await self._settled(self._begin(request, None, undo))).unwrap()
        assert isinstance(body, bytes)
        return self.decoded(decode, body)

    async def call_all(
        self, requests: Sequence[fuse.Request], undo: Undo | None = None
    ) -> list[Result]:
        """Send requests of fixed replies all at once; return what became of each, undecoded."""
        return await self._all_settled([(request, None, undo) for request in requests])

    async def call_all_into(self, requests: Sequence[tuple[fuse.Request, Target]]) -> list[int]:
        """Send requests whose replies go into targets all at once; return their lengths in bytes.

        Raises:
            As :meth:`call`, for the first that failed; the others have ended then.

        """
        settled = await self._all_settled([(*request, None) for request in requests])
        settled.reverse()
        lengths: list[int] = []
        while settled:
            # Not kept in a variable: an error would refer to itself and to the targets.
            length = settled.pop().unwrap()
            assert isinstance(length, int)
            lengths.append(length)
        return lengths

    async def ask_all(
        self, asked: Sequence[tuple[fuse.Request, Target | None, Undo | None]]
    ) -> list[Result]:
        """Send requests all at once; return what became of each, undecoded.

        What may not be sent has an error as its result.
        """
        entries: list[InFlight | Result] = []
        try:
            for request, target, undo in asked:
                self._require_room(request, target)
                try:
                    entries.append(self._begin(request, target, undo))
                except VuserdError as error:
                    entries.append(outcome.Error(error))
            return [
                await self._settled(entry) if isinstance(entry, InFlight) else entry
                for entry in entries
            ]
        except BaseException:
            for entry in entries:
                if isinstance(entry, InFlight):
                    self._give_up(entry)
            raise

    async def _all_settled(
        self, requests: Sequence[tuple[fuse.Request, Target | None, Undo | None]]
    ) -> list[Result]:
        entries: list[InFlight] = []
        try:
            for request, target, undo in requests:
                entries.append(self._begin(request, target, undo))
            return [await self._settled(entry) for entry in entries]
        except BaseException:
            for entry in entries:
                self._give_up(entry)
            raise

    async def call_into(
        self, request: fuse.Request, target: Target, undo: Undo | None = None
    ) -> int:
        """Send a request whose reply's body goes into ``target``; return its length in bytes.

        A buffer stays the caller's to give back, at any time. ``undo`` needs one.

        Raises:
            As :meth:`call`.

        """
        self._require_room(request, target)
        length = (await self._settled(self._begin(request, target, undo))).unwrap()
        assert isinstance(length, int)
        return length

    @staticmethod
    def _require_room(request: fuse.Request, target: Target | None) -> None:
        size = request.reply_size
        if target is None and (size is None or size + _HEADER > REPLY_ROOM):
            raise ValueError(f"{request.opcode.name} has no fixed reply")
        if target is not None and (size is None or not 1 <= size <= PAYLOAD_SIZE):
            raise ValueError(f"{request.opcode.name} of {size} bytes")

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

    def makes_progress(self) -> bool:
        """Return whether this end's tasks run on time, whatever the backend does."""
        return self._watch.makes_progress()

    def post(self, request: fuse.Request) -> None:
        """Send a request without a caller that waits: RELEASE, FORGET, INTERRUPT and their kin.

        It never waits: without a free slot it goes out as soon as there is one. After the backend
        is lost it does nothing, because the backend's state is gone too.
        """
        if self._failure is not None:
            return
        entry = self._new_entry(request, None, None)
        if self.gate is not None and request.reply_size is not None:
            entry.path = self.gate.path(request)  # who closes a file forgets it next
        self._enqueue(entry)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Submit nothing during the block; requests that come meanwhile wait."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            for queue in self._backlog:
                self._submit_waiting(queue)

    async def idle(self) -> None:
        """Wait until the device holds no chain any more, or is lost."""
        while self._has_chains():
            await self._idle.park()

    async def drained(self) -> None:
        """Wait until all that was sent has ended, or the device is lost."""
        while self.in_flight:
            await self._idle.park()

    def _has_chains(self) -> bool:
        return any(queue.ring.outstanding for queue in self.queues.values())

    def fail(self, reason: BackendError) -> None:
        """Fail all current and future calls with ``reason``: the backend is lost.

        What the backend holds never comes back.
        """
        if self._failure is not None:
            return
        self._failure = reason.again()
        self._lost = lambda _: None  # the session knows by now, and is not kept alive from here
        for backlog in self._backlog.values():
            backlog.clear()
        self._bulk.clear()
        self._bulk_backlog.clear()
        self._hung.clear()
        for queue in self.queues.values():
            queue.ring.abandon()
        if self.observer is not None:
            self.observer.lost()
        for entry in list(self._awaited.values()):
            self._settle(entry, outcome.Error(reason.again()))
        self._idle.unpark_all()

    def close(self) -> None:
        """Close the queues; the tasks that ran on them have ended."""
        self.requests.close()
        self.hiprio.close()

    def obey(self, gate: Gate) -> None:
        """Have ``gate`` decide from now on which requests the backend is given."""
        self.gate = gate
        self._held_back = gate.held

    def _begin(
        self,
        request: fuse.Request,
        target: Target | None,
        undo: Undo | None,
        *,
        is_probe: bool = False,
    ) -> InFlight:
        """Submit a request whose reply is wanted, as soon as there is a slot for it.

        Raises:
            HeldBack: it hung the backend, and is not to be asked again yet.

        """
        if self._held_back and self.gate is not None and not is_probe:
            self.gate.admit(request)
        if self._failure is not None:
            raise self._failure.again()
        entry = self._new_entry(request, target, undo)
        self._watch.begin(entry)
        self._enqueue(entry)
        return entry

    def _new_entry(
        self, request: fuse.Request, target: Target | None, undo: Undo | None
    ) -> InFlight:
        if len(request.body) > REQUEST_ROOM - fuse.IN_HEADER_SIZE:
            raise ValueError(f"{request.opcode.name} of {request.size} bytes")
        self._unique += 2  # odd numbers are the kernel's for interrupts, so they stay unused
        return InFlight(request, self._unique, target, undo)

    def _enqueue(self, entry: InFlight) -> None:
        """Submit a request, or let it wait for its turn: in the order in which they came."""
        if entry.is_bulk:
            if len(self._bulk) == _BULK_IN_FLIGHT:
                self._bulk_backlog[entry.unique] = entry
                return
            self._bulk[entry.unique] = entry
        queue = HIPRIO_QUEUE if entry.request.reply_size is None else REQUEST_QUEUE
        if self._slots[queue] and not self._is_held:
            self._slots[queue] -= 1
            self._submit(queue, entry)
        else:
            self._backlog[queue][entry.unique] = entry

    async def _settled(self, entry: InFlight) -> Result:
        """Wait until it is known what became of a request; cancelled, leave it an orphan."""

        def abandon(_: object) -> trio.lowlevel.Abort:
            self._orphan(entry)
            return trio.lowlevel.Abort.SUCCEEDED

        if entry.result is None:
            entry.task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abandon)
            assert entry.result is not None
        return entry.result

    def _give_up(self, entry: InFlight) -> None:
        """Give up a request's reply, whether it has come or not."""
        if entry.unique in self._awaited:
            self._orphan(entry)
        elif isinstance(entry.result, outcome.Value) and entry.undo is not None:
            self.decoded(entry.undo, _brought(entry, entry.result.unwrap()))

    def _timed_out(self, request: fuse.Request) -> BackendTimeout:
        return BackendTimeout(
            f"the backend did not answer {request.opcode.name} within {self._timeout:g} s"
        )

    def _settle(self, entry: InFlight, result: Result) -> None:
        del self._awaited[entry.unique]
        entry.result = result
        if entry.task is not None:
            trio.lowlevel.reschedule(entry.task)
            entry.task = None

    def _orphan(self, entry: InFlight) -> None:
        """Take a request back that still waits for a slot, or leave it to the device."""
        entry.task = None
        del self._awaited[entry.unique]
        self._want_no_more(entry)

    def _want_no_more(self, entry: InFlight) -> None:
        if self._bulk_backlog.pop(entry.unique, None) is None:
            if self._backlog[REQUEST_QUEUE].pop(entry.unique, None) is None:
                if self.interrupts:
                    self.post(fuse.interrupt(entry.unique))
                return
            self._bulk_is_done(entry)
        if self._idle and not self.in_flight:
            self._idle.unpark_all()

    async def watch_deadlines(self) -> None:
        """Fail overdue requests and find a silent backend; run until cancelled."""
        silence = await self._watch.run(
            self._find_hung, self._time_out, self._bulk_is_done, self._probe
        )
        self._lost(BackendDown(silence, LossCause.SILENT))

    def _find_hung(self, now: float) -> None:
        """Report to the gate the requests that hang the backend.

        It takes requests in the order of the ring. So it is at what was put there before something
        that it has answered; where it has long answered nothing, its threads are at the oldest.
        What is overdue besides waited for others, and is not to blame.
        """
        if self.gate is None:
            return
        is_quiet = self.requests.heard + self._timeout / 2 <= now
        taken = self.gate.threads if is_quiet else 0
        for place, entry in enumerate(self.requests.ring.outstanding_tokens()):
            is_taken = place < taken or entry.number < self._latest_answered
            is_overdue = entry.deadline <= now and (is_quiet or entry.deadline)
            if is_taken and is_overdue and entry not in self._hung:
                self._hung.add(entry)
                self.gate.hung(entry.request, entry.path, entry.asker)

    def _pass(self, entry: InFlight) -> None:
        """Report to the gate that a request was answered."""
        assert self.gate is not None
        if entry not in self._hung:
            self.gate.answered(entry.request)
            return
        self._hung.discard(entry)
        if trio.current_time() <= entry.deadline + PROBE_TIME:
            self.gate.was_late(entry.request, entry.path, entry.asker)

    def _time_out(self, entry: InFlight) -> None:
        self._settle(entry, outcome.Error(self._timed_out(entry.request)))
        if self.observer is not None:
            self.observer.timed_out(entry.unique)
        self._want_no_more(entry)

    def _probe(self) -> InFlight:
        return self._begin(fuse.getattr(fuse.ROOT_ID), None, None, is_probe=True)

    def _submit(self, queue: int, entry: InFlight) -> None:
        """Put a request on the ring. It has a slot."""
        request = entry.request
        message = entry.message = self._messages.take()
        encoded = request.encode(entry.unique, self._who)
        message.view[: len(encoded)] = encoded
        readable = [(message.address, len(encoded))]
        writable: list[tuple[int, int]] = []
        if request.reply_size is not None:
            reply_at = message.address + REQUEST_ROOM
            if entry.target is None:
                writable = [(reply_at, _HEADER + request.reply_size)]
            else:
                entry.target.lend()
                writable = [(reply_at, _HEADER), (entry.target.address, request.reply_size)]
        message.lend()
        notified = self.requests if queue == REQUEST_QUEUE else self.hiprio
        notified.ring.add(readable, writable, entry)
        self.submitted += 1
        entry.number = self.submitted
        if self.observer is not None:
            self.observer.sent(entry.unique, request)
        notified.offer()
        self._watch.wake()

    def _answered(self, entry: InFlight, used: int) -> None:
        """Take a used chain of the request queue: check the reply, wake its caller."""
        message = entry.message
        assert message is not None
        # Copied out before it is looked at: the backend may go on writing.
        size = used if entry.target is None else _HEADER
        reply = bytes(message.view[REQUEST_ROOM : REQUEST_ROOM + size])
        error = fuse.decode_reply_header(reply[:_HEADER], entry.unique, used)
        length = used - _HEADER
        if entry.number > self._latest_answered:
            self._latest_answered = entry.number
        if self.observer is not None:
            self.observer.ended(entry.unique, error, length)
        if self._held_back or self._hung:
            self._pass(entry)
        result: Result
        if error:
            result = outcome.Error(FileError(error))
        elif entry.target is None:
            result = outcome.Value(reply[_HEADER:])
        else:
            result = outcome.Value(length)
        if entry.unique in self._awaited:
            self._settle(entry, result)
        elif not error and entry.undo is not None:
            entry.undo(_brought(entry, result.unwrap()))
        if entry.target is not None:
            entry.target.reclaim()
        self._bulk_is_done(entry)
        self._recycle(REQUEST_QUEUE, message)

    def _bulk_is_done(self, entry: InFlight) -> None:
        """Let the next bulk request have its turn, where this one had it."""
        if self._bulk.pop(entry.unique, None) is not None and self._bulk_backlog:
            self._enqueue(self._bulk_backlog.pop(next(iter(self._bulk_backlog))))

    def _forgotten(self, entry: InFlight, used: int) -> None:
        """Take a used chain of the hiprio queue, where nothing is answered."""
        assert entry.message is not None
        if used:
            raise MalformedError(
                f"{used} bytes in reply to {entry.request.opcode.name}", Check.REPLY_LENGTH
            )
        if self.observer is not None:
            self.observer.ended(entry.unique, 0, 0)
        self._recycle(HIPRIO_QUEUE, entry.message)

    def _recycle(self, queue: int, message: Buffer) -> None:
        """Free a request's message buffer, and let the next one have its slot."""
        message.reclaim()
        message.give_back()
        self._slots[queue] += 1
        self._submit_waiting(queue)
        if self._idle and not self._has_chains():
            self._idle.unpark_all()

    def _submit_waiting(self, queue: int) -> None:
        """Submit those that wait, in order, as far as there are slots."""
        backlog = self._backlog[queue]
        while backlog and self._slots[queue] and not self._is_held:
            self._slots[queue] -= 1
            self._submit(queue, backlog.pop(next(iter(backlog))))

    async def serve_queue(self, queue: int) -> None:
        """Reap a queue until cancelled; a used ring that lies ends the session."""
        try:
            await self.queues[queue].reap_calls()
        except MalformedError as error:
            if self._failure is None:  # of a lost one nothing is outstanding, whatever it returns
                self.broken(error)


def _brought(entry: InFlight, found: bytes | int) -> bytes:
    """Return the body of a reply that nobody waits for, which may be in its target.

    Its bytes are still where the device wrote them: the target is in quarantine, or still the
    caller's.
    """
    if isinstance(found, bytes):
        return found
    assert isinstance(entry.target, Buffer)
    return bytes(entry.target.view[:found])
