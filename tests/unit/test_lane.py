"""Requests on the rings: in batches, in any number, and abandoned without a leak."""

import math
import struct
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol import fuse
from protocol.fuse import Forget, NodeId, Opcode
from protocol.virtio_fs import HIPRIO_QUEUE, REQUEST_QUEUE
from protocol.virtio_ring import Feature
from tests.fake.backend import Answer, FakeBackend, FuseRequest
from vuserd.device import queue
from vuserd.device.jobs import Job, Jobs
from vuserd.device.layout import IN_FLIGHT
from vuserd.device.payloads import given_back
from vuserd.device.request import Ask
from vuserd.device.session import Session
from vuserd.errors import BackendBroken, BackendDown, BackendTimeout, FileError
from vuserd.users.asker import ASKER, Asker

ROOT = fuse.ROOT_ID


class Withheld:
    """Makes a backend keep requests of one kind until they are let go."""

    def __init__(self, backend: FakeBackend, opcode: Opcode) -> None:
        self._backend = backend
        self._opcode = opcode
        self.requests: list[FuseRequest] = []
        backend.answer = self._answer

    def _answer(self, request: FuseRequest) -> Answer | None:
        if request.opcode is not self._opcode:
            return self._backend.serve_files(request)
        self.requests.append(request)
        return None

    def let_go(self) -> None:
        for request in self.requests:
            answer = self._backend.serve_files(request)
            assert answer is not None
            self._backend.reply(request, answer)
        self.requests.clear()


async def give_up(call: Callable[[], Awaitable[object]]) -> None:
    """Begin a call and cancel it once everything stands still."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await wait_all_tasks_blocked()


async def test_requests_of_one_pass_go_out_with_one_kick(
    backend: FakeBackend, session: Session
) -> None:
    before = backend.kicks[1]

    async def getattr_root() -> None:
        await session.lane.call(fuse.getattr(ROOT), fuse.decode_attributes)

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(getattr_root)
    assert len(backend.named(Opcode.GETATTR)) == 100
    # The first finds the ring idle and goes at once; the rest go together, with no kick of their
    # own where the first one is still to be read.
    assert backend.kicks[1] - before in (1, 2)


async def test_more_requests_than_the_ring_holds_wait_for_their_turn(
    backend: FakeBackend, session: Session
) -> None:
    done = 0

    async def lookup() -> None:
        nonlocal done
        entry = await session.lane.call(fuse.lookup(ROOT, b"Image"), fuse.decode_lookup)
        assert entry is not None
        assert entry.attributes.size == 4096
        done += 1

    async with trio.open_nursery() as nursery:
        for _ in range(2000):
            nursery.start_soon(lookup)
    assert done == 2000
    assert backend.lookups[2] == 2000
    assert session.lane.in_flight == 0


async def test_posted_requests_wait_for_a_slot_too(backend: FakeBackend, session: Session) -> None:
    for _ in range(1000):
        session.lane.post(fuse.release(NodeId(2), fuse.FileHandle(7)))
        session.lane.post(fuse.interrupt(9))
    await session.lane.drained()
    assert len(backend.named(Opcode.RELEASE)) == 1000
    assert len(backend.named(Opcode.INTERRUPT)) == 1000


async def test_a_lane_that_is_held_gives_the_device_nothing(
    backend: FakeBackend, session: Session
) -> None:
    withheld = Withheld(backend, Opcode.STATFS)
    lane = session.lane
    seen = len(backend.requests)

    async def statfs() -> None:
        await lane.call(fuse.statfs(ROOT), fuse.decode_statfs)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(statfs)
        await wait_all_tasks_blocked()
        with lane.held():
            for _ in range(IN_FLIGHT[REQUEST_QUEUE] + 10):
                nursery.start_soon(statfs)
            lane.post(fuse.batch_forget([Forget(NodeId(2), 1)]))
            await wait_all_tasks_blocked()
            assert len(backend.requests) == seen + 1
            withheld.let_go()
            await lane.idle()
            assert len(backend.requests) == seen + 1
            assert lane.in_flight == IN_FLIGHT[REQUEST_QUEUE] + 11
            backend.answer = backend.serve_files
            backend.lookups[2] += 1
    assert len(backend.requests) == seen + IN_FLIGHT[REQUEST_QUEUE] + 12
    assert not +backend.lookups
    assert lane.in_flight == 0


async def test_who_waits_for_an_idle_device_is_woken_when_it_is_lost(
    backend: FakeBackend, session: Session
) -> None:
    Withheld(backend, Opcode.STATFS)
    session.lane.post(fuse.statfs(ROOT))
    await wait_all_tasks_blocked()
    with trio.fail_after(10), session.lane.held():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.lane.idle)
            await wait_all_tasks_blocked()
            backend.die()


async def test_an_errno_is_the_callers(session: Session) -> None:
    with pytest.raises(FileError, match="no such file") as missing:
        await session.lane.call(fuse.lookup(ROOT, b"nothing"), fuse.decode_lookup)
    assert missing.value.code == "ENOENT"


async def test_a_lookup_given_up_is_interrupted_and_its_count_given_back(
    backend: FakeBackend, session: Session
) -> None:
    withheld = Withheld(backend, Opcode.LOOKUP)
    undone: list[bytes] = []
    free = session.lane.requests.ring.free

    async def lookup() -> None:
        await session.lane.call(fuse.lookup(ROOT, b"Image"), fuse.decode_lookup, undone.append)

    await give_up(lookup)
    [request] = withheld.requests
    [interrupt] = backend.named(Opcode.INTERRUPT)
    assert interrupt.body == struct.pack("=Q", request.unique)
    assert session.lane.requests.ring.free == free - 1  # the device still has it
    withheld.let_go()
    await wait_all_tasks_blocked()
    assert [fuse.decode_lookup(body) is not None for body in undone] == [True]
    assert session.lane.requests.ring.free == free


async def test_qemus_virtiofsd_is_not_interrupted(backend: FakeBackend) -> None:
    backend.features |= Feature.NOTIFY_ON_EMPTY
    withheld = Withheld(backend, Opcode.STATFS)
    async with backend.session() as session:

        async def statfs() -> None:
            await session.lane.call(fuse.statfs(ROOT), fuse.decode_statfs)

        await give_up(statfs)
        assert len(withheld.requests) == 1
        assert backend.named(Opcode.INTERRUPT) == []
        withheld.let_go()


async def test_what_waits_for_a_slot_goes_in_its_turn_or_not_at_all(
    backend: FakeBackend, session: Session
) -> None:
    withheld = Withheld(backend, Opcode.LOOKUP)
    slots = IN_FLIGHT[REQUEST_QUEUE]

    async def lookup() -> None:
        await session.lane.call(fuse.lookup(ROOT, b"Image"), fuse.decode_lookup)

    async def getattr_() -> None:
        await session.lane.call(fuse.getattr(ROOT), fuse.decode_attributes)

    async with trio.open_nursery() as nursery:
        for _ in range(slots):
            nursery.start_soon(lookup)
        await wait_all_tasks_blocked()
        await give_up(getattr_)
        nursery.start_soon(getattr_)
        await wait_all_tasks_blocked()
        assert session.lane.in_flight == slots + 1
        assert len(withheld.requests) == slots
        assert backend.named(Opcode.GETATTR) == backend.named(Opcode.INTERRUPT) == []
        withheld.let_go()
    assert len(backend.named(Opcode.GETATTR)) == 1
    assert session.lane.in_flight == 0


async def test_a_payload_given_up_stays_the_devices_until_it_comes_back(
    backend: FakeBackend, session: Session
) -> None:
    withheld = Withheld(backend, Opcode.READ)

    async def read() -> None:
        [buffer] = await session.payloads.take(1)
        try:
            request = fuse.read(NodeId(2), fuse.FileHandle(1), 0, 4096)
            await session.lane.call_into(request, buffer)
        finally:
            buffer.give_back()

    await give_up(read)
    assert session.payloads.taken == 1
    withheld.let_go()
    await wait_all_tasks_blocked()
    assert session.payloads.taken == 0


async def test_an_overdue_request_times_out_and_is_interrupted(
    backend: FakeBackend,
    session: Session,
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - ten seconds pass at once
) -> None:
    withheld = Withheld(backend, Opcode.STATFS)
    begin = trio.current_time()
    with pytest.raises(BackendTimeout, match="did not answer STATFS within 10 s"):
        await session.lane.call(fuse.statfs(ROOT), fuse.decode_statfs)
    assert 10 <= trio.current_time() - begin < 10.05
    await wait_all_tasks_blocked()
    assert len(backend.named(Opcode.INTERRUPT)) == 1
    # Others are still served, and the late reply does no harm.
    await session.lane.call(fuse.getattr(ROOT), fuse.decode_attributes)
    backend.reply(withheld.requests[0], Answer(error=4))
    await session.lane.call(fuse.getattr(ROOT), fuse.decode_attributes)
    assert session.lane.in_flight == 0


async def test_a_silent_backend_is_lost_once_a_probe_stays_unanswered(
    backend: FakeBackend,
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - eleven seconds pass at once
) -> None:
    async with backend.session() as session:
        backend.answer = lambda _: None
        begin = trio.current_time()
        with pytest.raises(BackendTimeout):
            await session.lane.call(fuse.statfs(ROOT), fuse.decode_statfs)
        assert not session.lost
        reason = await session.wait_lost()
        assert str(reason) == "the backend answers nothing any more"
        assert 11 <= trio.current_time() - begin < 11.1
        assert len(backend.named(Opcode.GETATTR)) == 1
        with pytest.raises(BackendDown):
            await session.payloads.take(1)


async def ask_as_others(session: Session, *uids: int) -> None:
    """Ask for something small as one client after the other."""
    for uid in uids:
        token = ASKER.set(Asker(uid, None))
        await session.lane.call(fuse.getattr(ROOT), fuse.decode_attributes)
        ASKER.reset(token)


@pytest.mark.parametrize(
    ("uids", "in_order", "at_once"),
    [((1000, 1000), True, 1), ((1000, 1000), False, 5), ((1000,), True, 16), ((), True, 16)],
)
async def test_who_is_alone_has_more_bulk_in_the_backend_at_once(
    backend: FakeBackend,
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
    uids: tuple[int, ...],
    in_order: bool,
    at_once: int,
) -> None:
    monkeypatch.setattr("vuserd.device.lane.backlog._MEMORY", math.inf)
    session.lane.answers_in_order = in_order
    withheld = Withheld(backend, Opcode.READDIRPLUS)

    async def read_small_directories() -> None:
        with given_back(await session.payloads.take(20)) as buffers:
            request = fuse.readdirplus(ROOT, fuse.FileHandle(1), 0, 8 << 10)
            await session.lane.ask_all([Ask(request, buffer) for buffer in buffers])

    await ask_as_others(session, *uids)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_small_directories)
        await wait_all_tasks_blocked()
        assert len(withheld.requests) == at_once
        assert session.lane.is_shared == (len(uids) > 1)
        backend.answer = backend.serve_files
        withheld.let_go()
    assert session.lane.in_flight == session.payloads.taken == 0


async def test_one_read_that_hangs_leaves_a_backend_with_threads_others(
    backend: FakeBackend, session: Session
) -> None:
    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.READ:
            return None if request.node == 2 else Answer(b"bytes")
        return backend.serve_files(request)

    async def read(node: int) -> int:
        with given_back(await session.payloads.take(1)) as [buffer]:
            request = fuse.read(NodeId(node), fuse.FileHandle(1), 0, 1 << 20)
            return await session.lane.call_into(request, buffer)

    await ask_as_others(session, 1000, 1000)
    backend.answer = answer
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, 2)
        await wait_all_tasks_blocked()
        assert await read(3) == len(b"bytes")
        nursery.cancel_scope.cancel()


async def test_bulk_that_waits_reaches_the_backend_when_others_end(
    backend: FakeBackend, session: Session
) -> None:
    withheld = Withheld(backend, Opcode.READ)
    lengths: list[int] = []

    async def read() -> None:
        with given_back(await session.payloads.take(1)) as [buffer]:
            request = fuse.read(NodeId(2), fuse.FileHandle(1), 0, 1 << 20)
            lengths.append(await session.lane.call_into(request, buffer))

    async with trio.open_nursery() as nursery:
        for _ in range(15):
            nursery.start_soon(read)
        await wait_all_tasks_blocked()
        await give_up(read)  # it never reaches the backend
        assert len(withheld.requests) == 12
        # Small ones overtake what waits.
        await session.lane.call(fuse.getattr(ROOT), fuse.decode_attributes)
        withheld.let_go()
        await wait_all_tasks_blocked()
        assert len(withheld.requests) == 3
        withheld.let_go()
    assert len(lengths) == len(backend.named(Opcode.READ)) == 15
    assert session.lane.in_flight == session.payloads.taken == 0


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (Answer(bytes(104), unique=999), "reply to request 999"),
        (Answer(bytes(104), length=50), "a reply of 50 bytes in 120"),
        (Answer(bytes(104), used=8), "8 bytes used"),
        (Answer(b"", error=5000), "error -5000"),
        (Answer(b"body", error=5), "4 bytes after an error"),
        (Answer(bytes(100)), "a reply to GETATTR of 100 bytes"),
    ],
)
async def test_a_reply_that_lies_ends_the_session(
    backend: FakeBackend, session: Session, lie: Answer, words: str
) -> None:
    backend.answer = lambda _: lie
    with pytest.raises(BackendBroken, match=words):
        await session.lane.call(fuse.getattr(ROOT), fuse.decode_attributes)
    assert isinstance(await session.wait_lost(), BackendBroken)
    with pytest.raises(BackendBroken):
        await session.lane.call(fuse.statfs(ROOT), fuse.decode_statfs)


async def test_the_death_of_the_backend_wakes_everybody(
    backend: FakeBackend, session: Session
) -> None:
    Withheld(backend, Opcode.GETATTR)
    woken = 0

    async def getattr_root() -> None:
        nonlocal woken
        with pytest.raises(BackendDown):
            await session.lane.call(fuse.getattr(ROOT), fuse.decode_attributes)
        woken += 1

    async with trio.open_nursery() as nursery:
        for _ in range(1000):  # in flight, and waiting for a slot
            nursery.start_soon(getattr_root)
        await wait_all_tasks_blocked()
        backend.die()
    assert woken == 1000


async def test_a_late_reply_after_the_end_is_nobodys_fault(
    backend: FakeBackend, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """The ring was given up with what was on it: the backend did nothing wrong."""
    withheld = Withheld(backend, Opcode.STATFS)
    async with trio.open_nursery() as nursery:

        async def statfs() -> None:
            with pytest.raises(BackendDown, match="for a test"):
                await session.lane.call(fuse.statfs(ROOT), fuse.decode_statfs)

        nursery.start_soon(statfs)
        await wait_all_tasks_blocked()
        session.lose(BackendDown("for a test"))
    withheld.let_go()
    await wait_all_tasks_blocked()
    assert caplog.records == []
    assert str(await session.wait_lost()) == "for a test"


async def test_of_several_that_are_given_up_what_came_already_is_undone(
    backend: FakeBackend, session: Session
) -> None:
    """Of two lookups one is answered and one is not: the count of the first is given back, too."""
    held: list[FuseRequest] = []

    def answer(request: FuseRequest) -> Answer | None:
        if request.body == b"second\0":
            held.append(request)
            return None
        return backend.serve_files(request)

    backend.answer = answer
    undone: list[bytes] = []

    async def lookups() -> None:
        names = (b"Image", b"second")
        asked = [(fuse.lookup(ROOT, name), None, undone.append) for name in names]
        await session.lane.ask_all(asked)

    await give_up(lookups)
    assert [fuse.decode_lookup(body) is not None for body in undone] == [True]
    backend.reply(held[0], Answer(error=2))
    await wait_all_tasks_blocked()
    assert len(undone) == 1
    assert session.lane.in_flight == 0


async def test_what_no_ring_can_carry_is_a_mistake_of_the_caller(session: Session) -> None:
    lane = session.lane
    [buffer] = await session.payloads.take(1)
    with pytest.raises(ValueError, match="FORGET has no fixed reply"):
        await lane.call(fuse.batch_forget([]), fuse.decode_attributes)
    with pytest.raises(ValueError, match="BATCH_FORGET of 16048 bytes"):
        lane.post(fuse.batch_forget([Forget(NodeId(2), 1)] * 1000))
    with pytest.raises(ValueError, match="READ of 1048577 bytes"):
        await lane.call_into(fuse.read(NodeId(2), fuse.FileHandle(1), 0, (1 << 20) + 1), buffer)
    buffer.give_back()
    assert lane.in_flight == 0


@pytest.fixture
async def owing(backend: FakeBackend, session: Session) -> Callable[[], None]:
    """Owe the backend so many nodes that no more are asked for; return what makes it take them."""
    backend.stuck = {HIPRIO_QUEUE}
    for _ in range(9):
        session.lane.post(fuse.batch_forget([Forget(NodeId(2), 1)] * 500))
    backend.lookups[2] += 9 * 500
    await wait_all_tasks_blocked()

    def take() -> None:
        backend.stuck.clear()
        for request in backend.named(Opcode.BATCH_FORGET):
            backend.use(request, 0)

    return take


async def test_listings_with_nodes_wait_while_too_many_are_owed(
    backend: FakeBackend, session: Session, owing: Callable[[], None]
) -> None:
    async def readdirplus() -> None:
        with given_back(await session.payloads.take(1)) as [buffer]:
            request = fuse.readdirplus(ROOT, fuse.FileHandle(1), 0, 4096)
            await session.lane.call_into(request, buffer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(readdirplus)
        await wait_all_tasks_blocked()
        # All else goes on, a LOOKUP of a single call, too.
        await session.lane.call(fuse.lookup(ROOT, b"Image"), fuse.decode_lookup)
        await give_up(readdirplus)
        assert backend.named(Opcode.READDIRPLUS) == []
        owing()
    assert len(backend.named(Opcode.READDIRPLUS)) == 1
    assert session.lane.in_flight == session.payloads.taken == 0


async def test_a_listing_waits_until_its_own_nodes_find_room_beside_those_that_are_owed(
    backend: FakeBackend, session: Session
) -> None:
    async def readdirplus(size: int) -> None:
        with given_back(await session.payloads.take(1)) as [buffer]:
            request = fuse.readdirplus(ROOT, fuse.FileHandle(1), 0, size)
            await session.lane.call_into(request, buffer)

    await readdirplus(512 << 10)  # alone it always may
    backend.stuck = {HIPRIO_QUEUE}
    session.lane.post(fuse.batch_forget([Forget(NodeId(2), 1)] * 500))
    backend.lookups[2] += 500
    await readdirplus(64 << 10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readdirplus, 512 << 10)
        await wait_all_tasks_blocked()
        assert len(backend.named(Opcode.READDIRPLUS)) == 2
        backend.stuck.clear()
        for request in backend.named(Opcode.BATCH_FORGET):
            backend.use(request, 0)
    assert len(backend.named(Opcode.READDIRPLUS)) == 3
    assert session.lane.in_flight == session.payloads.taken == 0


async def test_lookups_of_jobs_wait_while_too_many_nodes_are_owed(
    backend: FakeBackend, session: Session, owing: Callable[[], None]
) -> None:
    def job() -> Job:
        yield [Ask(fuse.getattr(ROOT))]
        yield [Ask(fuse.lookup(ROOT, b"Image"))]

    jobs = Jobs(session.lane)
    jobs.add(job())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(jobs.run)
        await wait_all_tasks_blocked()
        assert len(backend.named(Opcode.GETATTR)) == 1
        assert backend.named(Opcode.LOOKUP) == []
        owing()
    assert len(backend.named(Opcode.LOOKUP)) == 1


async def test_what_waits_for_its_turn_is_overdue_like_all_else(
    backend: FakeBackend,
    session: Session,
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - ten seconds pass at once
) -> None:
    withheld = Withheld(backend, Opcode.READ)
    overdue = 0

    async def read() -> None:
        nonlocal overdue
        with given_back(await session.payloads.take(1)) as [buffer]:
            request = fuse.read(NodeId(2), fuse.FileHandle(1), 0, 1 << 20)
            with pytest.raises(BackendTimeout, match="did not answer READ within 10 s"):
                await session.lane.call_into(request, buffer)
            overdue += 1

    async with trio.open_nursery() as nursery:
        for _ in range(15):
            nursery.start_soon(read)
    assert overdue == 15
    await wait_all_tasks_blocked()
    # Those that wait are overdue as soon as the first ones are: they never reach the backend.
    assert len(withheld.requests) == len(backend.named(Opcode.INTERRUPT)) == 12
    withheld.let_go()
    await wait_all_tasks_blocked()
    assert session.lane.in_flight == session.payloads.taken == 0


async def test_other_tasks_have_their_turn_between_many_replies(
    backend: FakeBackend, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_TURN", 0.0)
    withheld = Withheld(backend, Opcode.STATFS)
    ended = 0
    seen: set[int] = set()

    def job() -> Job:
        nonlocal ended
        yield [Ask(fuse.statfs(ROOT))]
        ended += 1

    jobs = Jobs(session.lane, depth=200)
    for _ in range(200):
        jobs.add(job())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(jobs.run)
        await wait_all_tasks_blocked()
        withheld.let_go()
        while ended < 200:
            await trio.lowlevel.checkpoint()
            seen.add(ended)
    assert len(seen) > 5  # sixteen at a time


async def test_what_has_ended_is_not_watched_any_more(session: Session) -> None:
    [buffer] = await session.payloads.take(1)
    bulk = fuse.read(NodeId(2), fuse.FileHandle(1), 0, 1 << 20)
    await session.lane.call_into(bulk, buffer)
    buffer.give_back()
    assert session.lane._slots.next_deadline() == math.inf
