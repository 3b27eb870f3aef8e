"""Deadlines and signs of life: dead rings are always found, and slow ones are left alone."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol import fuse
from protocol.fuse import Forget, NodeId, Opcode
from protocol.virtio_fs import HIPRIO_QUEUE, REQUEST_QUEUE
from tests.fake.backend import Answer, FakeBackend, FuseRequest
from tests.faults.catalogue import fault
from vuserd.device.session import Session, SessionOptions
from vuserd.errors import BackendTimeout

ROOT = fuse.ROOT_ID
RELEASE = fuse.release(NodeId(2), fuse.FileHandle(7))
TIMEOUT = 10.0


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


async def overdue(session: Session) -> None:
    """Make a call that is not answered in time."""
    with pytest.raises(BackendTimeout):
        await session.lane.call(fuse.statfs(ROOT), fuse.decode_statfs)


async def lost_after(session: Session, begun: float) -> tuple[str, float]:
    """Return why the session is lost, and how many seconds after ``begun``."""
    with trio.fail_after(60):
        reason = await session.wait_lost()
    return str(reason), trio.current_time() - begun


@fault(
    "dead-after-a-reply",
    done="the backend answers something while a request waits, and then nothing any more",
    must="The caller gets TIMEOUT; the session is declared lost when nothing was answered for the"
    " time of a reply.",
)
async def test_dead_rings_are_found_although_something_was_answered_meanwhile(
    backend: FakeBackend,
    session: Session,
    autojump_clock: MockClock,
) -> None:
    backend.answer_to(Opcode.STATFS, None)
    begun = autojump_clock.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(overdue, session)
        await trio.sleep(3)
        session.lane.post(RELEASE)
        await wait_all_tasks_blocked()
        assert len(backend.named(Opcode.RELEASE)) == 1
        backend.stuck = {REQUEST_QUEUE}
    await wait_all_tasks_blocked()
    assert not session.lost
    assert len(backend.named(Opcode.GETATTR)) == 1  # the probe
    reason, seconds = await lost_after(session, begun)
    assert reason == "the backend answers nothing any more"
    # It has the time of a reply from its last sign of life on.
    assert 13 <= seconds < 13.1


async def test_rings_that_die_after_a_probe_are_found_at_the_next_call(
    backend: FakeBackend,
    session: Session,
    autojump_clock: MockClock,
) -> None:
    backend.answer_to(Opcode.STATFS, None)
    await overdue(session)
    await trio.sleep(60)
    assert not session.lost  # the probe was answered
    backend.stuck = {REQUEST_QUEUE, HIPRIO_QUEUE}
    begun = autojump_clock.current_time()
    await overdue(session)
    _, seconds = await lost_after(session, begun)
    assert 10 <= seconds < 11.1  # the next probe may have been on its way


async def test_there_is_one_probe_at_a_time(
    backend: FakeBackend,
    session: Session,
    autojump_clock: MockClock,
) -> None:
    backend.answer = lambda _: None
    begun = autojump_clock.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(overdue, session)
            await trio.sleep(0.1)
    await wait_all_tasks_blocked()
    assert len(backend.named(Opcode.STATFS)) == 5
    assert len(backend.named(Opcode.GETATTR)) == 1
    _, seconds = await lost_after(session, begun)
    assert 11 <= seconds < 11.1


@fault(
    "slow-but-alive",
    done="the backend answers few of the requests, and those within the time of a reply",
    must="Callers of the others get TIMEOUT; the session goes on.",
)
async def test_a_slow_backend_is_left_alone(
    backend: FakeBackend,
    session: Session,
    autojump_clock: MockClock,  # noqa: ARG001 - time passes at once
) -> None:
    """It answers something in the time of a reply, if not what it is asked for."""
    backend.answer = lambda request: Answer() if request.opcode is Opcode.RELEASE else None
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(overdue, session)
            session.lane.post(RELEASE)
            await trio.sleep(9)
        session.lane.post(RELEASE)
    assert len(backend.named(Opcode.STATFS)) == 20
    assert not session.lost
    # Each probe has the time of a reply, too, before there is another one.
    assert 1 < len(backend.named(Opcode.GETATTR)) <= 20 * 9 / TIMEOUT


@fault(
    "dead-and-nobody-waits",
    done="the backend answers nothing any more, and all who ask it go before their time is over",
    must="The session is declared lost when nothing was answered for twice the time of a reply.",
)
@pytest.mark.parametrize("posted", [True, False])
async def test_dead_rings_are_found_though_nobody_waits_for_a_reply(
    backend: FakeBackend,
    session: Session,
    posted: bool,
    autojump_clock: MockClock,
) -> None:
    await trio.sleep(100)
    backend.stuck = {REQUEST_QUEUE}
    begun = autojump_clock.current_time()
    if posted:
        session.lane.post(RELEASE)
    for _ in range(5):
        with trio.move_on_after(1):
            await session.lane.call(fuse.statfs(ROOT), fuse.decode_statfs)
    reason, seconds = await lost_after(session, begun)
    assert reason == "the backend answers nothing any more"
    assert 20 <= seconds < 20.1


async def test_a_request_that_is_kept_and_not_waited_for_costs_a_probe_now_and_then(
    backend: FakeBackend,
    session: Session,
    autojump_clock: MockClock,  # noqa: ARG001 - time passes at once
) -> None:
    backend.answer_to(Opcode.STATFS, None)
    with trio.move_on_after(1):
        await session.lane.call(fuse.statfs(ROOT), fuse.decode_statfs)
    await trio.sleep(100)
    assert not session.lost
    assert 9 <= len(backend.named(Opcode.GETATTR)) <= 10
    # A call that comes now has all of its time.
    backend.answer = lambda _: None
    await overdue(session)


async def test_nothing_on_the_hiprio_queue_is_no_silence(
    backend: FakeBackend,
    session: Session,
    autojump_clock: MockClock,  # noqa: ARG001 - time passes at once
) -> None:
    await trio.sleep(100)
    session.lane.post(fuse.interrupt(9))
    await wait_all_tasks_blocked()
    assert len(backend.named(Opcode.INTERRUPT)) == 1
    await trio.sleep(100)
    assert not session.lost


@pytest.mark.parametrize(
    "request_",
    [fuse.interrupt(9), fuse.batch_forget([Forget(NodeId(2), 1)])],
    ids=lambda request: request.opcode.name,
)
@pytest.mark.parametrize("count", [1, 1000])
async def test_what_is_not_taken_from_the_hiprio_queue_is_noticed(
    backend: FakeBackend,
    session: Session,
    request_: fuse.Request,
    count: int,
    autojump_clock: MockClock,
) -> None:
    await trio.sleep(100)
    backend.stuck = {HIPRIO_QUEUE}
    begun = autojump_clock.current_time()
    for _ in range(count):
        session.lane.post(request_)
    reason, seconds = await lost_after(session, begun)
    assert reason == "the backend takes nothing from its hiprio queue any more"
    assert 11 <= seconds < 11.1
    assert session.lane.in_flight == 0


async def test_a_slow_hiprio_queue_is_left_alone(
    backend: FakeBackend,
    session: Session,
    autojump_clock: MockClock,  # noqa: ARG001 - time passes at once
) -> None:
    backend.stuck = {HIPRIO_QUEUE}
    for _ in range(10):
        session.lane.post(fuse.interrupt(9))
    for _ in range(10):
        await trio.sleep(9)
        backend.use(backend.requests.pop(1), 0)  # the first is INIT
    await trio.sleep(100)
    assert not session.lost


@pytest.mark.parametrize("seconds", [TIMEOUT, 0.1])
async def test_deadlines_hold_while_the_hiprio_queue_is_in_doubt(
    backend: FakeBackend,
    seconds: float,
    autojump_clock: MockClock,
) -> None:
    """A call that is begun while only the hiprio queue was watched ends in its own time."""
    async with backend.session(SessionOptions(seconds)) as session:
        backend.stuck = {HIPRIO_QUEUE, REQUEST_QUEUE}
        session.lane.post(fuse.interrupt(9))
        await trio.sleep(0.5)
        begun = autojump_clock.current_time()
        await overdue(session)
        assert autojump_clock.current_time() - begun == pytest.approx(seconds, abs=0.05)


@fault(
    "daemon-stands-still",
    done="the daemon, or its whole machine, is stopped for longer than a reply may take, and goes"
    " on: the backend had answered before, or answers then",
    must="The caller gets the reply, and no request is said to hang the backend.",
)
@pytest.mark.parametrize(
    ("is_answered", "seconds"),  # longer than a reply may take
    [(True, 0.5), (True, 60.0), (False, 60.0)],
)
async def test_a_daemon_that_stood_still_takes_replies_before_it_looks_at_the_time(
    backend: FakeBackend, mock_clock: MockClock, *, is_answered: bool, seconds: float
) -> None:
    """Many times: trio runs those that are due in any order."""
    withheld: list[FuseRequest] = []
    backend.answer_to(Opcode.STATFS, withheld.append)
    for _ in range(8):
        async with (
            backend.session(SessionOptions(TIMEOUT)) as session,
            trio.open_nursery() as calls,
        ):
            calls.start_soon(session.lane.call, fuse.statfs(ROOT), fuse.decode_statfs)
            await wait_all_tasks_blocked()
            request = withheld.pop()
            if is_answered:
                answer(backend, request)
            mock_clock.jump(TIMEOUT + seconds)
            if not is_answered:  # it stood still, too
                await wait_all_tasks_blocked()
                answer(backend, request)


def answer(backend: FakeBackend, request: FuseRequest) -> None:
    honest = backend.serve_files(request)
    assert honest is not None
    backend.reply(request, honest)
