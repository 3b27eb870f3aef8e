"""Jobs as generators: all at once, few begun at once, and none left behind."""

from collections.abc import Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol import MalformedError, fuse
from protocol.fuse import FileHandle, NodeId, Opcode
from tests.fake.backend import Answer, FakeBackend, FuseRequest
from tests.fake.files import IMAGE
from vuserd.device.jobs import Job, Jobs
from vuserd.device.payloads import given_back
from vuserd.device.request import Ask, InOrder
from vuserd.device.results import MISSING, Failed, Result, body_of, length_of
from vuserd.device.session import Session
from vuserd.errors import BackendBroken, BackendDown, FileError

ROOT = fuse.ROOT_ID


def lookup(name: bytes) -> fuse.Request:
    return fuse.lookup(ROOT, name)


async def test_a_job_is_sent_the_results_of_what_it_asks_for(session: Session) -> None:
    seen: list[object] = []

    def job() -> Job:
        found, missing = yield [Ask(lookup(b"Image")), Ask(lookup(b"nothing"))]
        assert isinstance(missing, Failed)
        assert isinstance(missing.error, FileError)
        seen.append(missing.error.code)
        body = body_of(found)
        entry = fuse.decode_lookup(body)
        assert entry is not None
        assert list((yield [])) == []
        [again] = yield [Ask(fuse.getattr(entry.node))]
        body = body_of(again)
        seen.append(fuse.decode_attributes(body).size)

    jobs = Jobs(session.lane)
    await jobs.run()  # none at all
    jobs.add(job())
    await jobs.run()
    assert seen == ["ENOENT", len(IMAGE)]
    jobs.add(job())
    await jobs.run()
    assert len(seen) == 4


async def test_a_reply_goes_into_its_target(session: Session, backend: FakeBackend) -> None:
    read: list[bytes] = []
    with given_back(await session.payloads.take(1)) as [buffer]:

        def job() -> Job:
            [found] = yield [Ask(lookup(b"Image"))]
            body = body_of(found)
            entry = fuse.decode_lookup(body)
            assert entry is not None
            [opened] = yield [Ask(fuse.open(entry.node))]
            body = body_of(opened)
            handle = fuse.decode_open(body)
            request = fuse.read(entry.node, handle, 0, 1 << 20)
            [length] = yield [Ask(request, buffer)]
            count = length_of(length)
            read.append(bytes(buffer.view[:count]))
            yield [Ask(fuse.release(entry.node, handle))]

        jobs = Jobs(session.lane)
        jobs.add(job())
        await jobs.run()
    assert read == [IMAGE]
    assert not backend.open_handles


async def test_what_a_job_asks_for_is_a_batch(session: Session, backend: FakeBackend) -> None:
    def job() -> Job:
        yield [Ask(fuse.statfs(ROOT))] * 100

    jobs = Jobs(session.lane)
    jobs.add(job())
    before = backend.kicks[1]
    await jobs.run()
    assert len(backend.named(Opcode.STATFS)) == 100
    assert backend.kicks[1] - before in (1, 2)


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2], [0, 2, 1], [2, 0, 1]])
async def test_what_was_not_used_last_does_not_count(
    session: Session, backend: FakeBackend, order: list[int]
) -> None:
    held: list[FuseRequest] = []
    backend.answer = held.append
    results: list[Result] = []

    def job() -> Job:
        request = fuse.statfs(ROOT), None, None
        results.extend((yield InOrder([request] * 3)))

    jobs = Jobs(session.lane)
    jobs.add(job())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(jobs.run)
        await wait_all_tasks_blocked()
        for place in order:
            backend.reply(held[place], Answer(bytes(80)))
    assert [each is MISSING for each in results] == [False, False, order[-1] != 2]


async def test_few_jobs_are_begun_at_once(session: Session) -> None:
    begun = most = ended = 0

    def job() -> Job:
        nonlocal begun, most, ended
        begun += 1
        most = max(most, begun)
        for _ in range(3):
            yield [Ask(fuse.getattr(ROOT))]
        begun -= 1
        ended += 1

    jobs = Jobs(session.lane, depth=5)
    for _ in range(40):
        jobs.add(job())
    await jobs.run()
    assert (most, ended) == (5, 40)


async def test_jobs_added_by_jobs_are_run_to_their_ends(session: Session) -> None:
    ended: list[int] = []
    jobs = Jobs(session.lane, depth=2)

    def job(level: int) -> Job:
        yield [Ask(fuse.getattr(ROOT))]
        if level:
            jobs.add(job(level - 1))
            jobs.add(job(level - 1))
        ended.append(level)

    jobs.add(job(4))
    await jobs.run()
    assert sorted(ended) == sorted([0] * 16 + [1] * 8 + [2] * 4 + [3] * 2 + [4])


async def test_jobs_added_from_outside_meanwhile_are_run_too(
    session: Session, backend: FakeBackend
) -> None:
    held: list[FuseRequest] = []
    backend.answer = held.append
    ended = 0

    def job() -> Job:
        nonlocal ended
        yield [Ask(fuse.statfs(ROOT))]
        ended += 1

    jobs = Jobs(session.lane)
    jobs.add(job())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(jobs.run)
        await wait_all_tasks_blocked()
        jobs.add(job())
        await wait_all_tasks_blocked()
        assert len(held) == 2
        for request in held:
            backend.reply(request, Answer(bytes(80)))
    assert ended == 2


class Closing:
    """A job that waits for a reply, and notes when it is closed."""

    def __init__(self) -> None:
        self.closed = 0
        self.undone: list[bytes] = []

    def job(self, *requests: fuse.Request) -> Job:
        try:
            yield [Ask(request, undo=self.undone.append) for request in requests]
            raise AssertionError("resumed, though it was closed")
        finally:
            self.closed += 1


@pytest.fixture
def withheld(backend: FakeBackend) -> Iterator[list[FuseRequest]]:
    """Make the backend answer LOOKUP of ``Image`` only when the test does."""
    held: list[FuseRequest] = []

    def answer(request: FuseRequest) -> Answer | None:
        if request.body != b"Image\0":
            return backend.serve_files(request)
        held.append(request)
        return None

    backend.answer = answer
    yield held
    held.clear()


def let_go(backend: FakeBackend, held: list[FuseRequest]) -> None:
    for request in held:
        answer = backend.serve_files(request)
        assert answer is not None
        backend.reply(request, answer)


async def test_a_job_that_fails_ends_the_others(
    session: Session, backend: FakeBackend, withheld: list[FuseRequest]
) -> None:
    closing = Closing()

    def failing() -> Job:
        yield [Ask(fuse.getattr(ROOT))]
        raise KeyError("a job's own")

    jobs = Jobs(session.lane, depth=3)
    jobs.add(closing.job(lookup(b"Image")))
    jobs.add(closing.job(lookup(b"Image"), lookup(b"nothing")))
    jobs.add(failing())
    never = closing.job(lookup(b"Image"))
    jobs.add(never)
    with pytest.raises(KeyError, match="a job's own"):
        await jobs.run()
    assert closing.closed == 2
    assert next(never, None) is None  # closed before it was begun
    await wait_all_tasks_blocked()
    assert len(backend.named(Opcode.INTERRUPT)) == len(withheld) == 2
    let_go(backend, withheld)
    await wait_all_tasks_blocked()
    assert [fuse.decode_lookup(body) is not None for body in closing.undone] == [True, True]
    assert session.lane.in_flight == 0


async def test_cancelled_jobs_leave_orphans_whose_effects_are_undone(
    session: Session, backend: FakeBackend, withheld: list[FuseRequest]
) -> None:
    """What came already is undone at once, what comes later then."""
    backend.files[b"other"] = backend.files[b"Image"]
    closing = Closing()
    jobs = Jobs(session.lane)
    jobs.add(closing.job(lookup(b"other"), lookup(b"Image")))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(jobs.run)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert closing.closed == 1
    assert len(closing.undone) == 1
    let_go(backend, withheld)
    await wait_all_tasks_blocked()
    assert len(closing.undone) == 2
    assert session.lane.in_flight == 0


async def test_a_reply_that_cannot_be_undone_leaves_no_job_open(
    session: Session,
    backend: FakeBackend,
    withheld: list[FuseRequest],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It ends the session, which is logged once; the jobs after it are closed all the same."""
    backend.files[b"other"] = backend.files[b"Image"]
    closed = 0

    def refuse(_: bytes) -> None:
        raise MalformedError("no such body")

    def job() -> Job:
        nonlocal closed
        try:
            yield [Ask(lookup(name), undo=refuse) for name in (b"other", b"Image")]
        finally:
            closed += 1

    jobs = Jobs(session.lane)
    for _ in range(3):
        jobs.add(job())
    scope = trio.CancelScope()

    async def run() -> None:
        with pytest.raises(BackendBroken, match="no such body"), scope:
            await jobs.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        assert len(withheld) == 3
        scope.cancel()
    assert closed == 3
    assert [record.message for record in caplog.records] == [
        "the backend broke the protocol: no such body"
    ]
    assert session.lane.in_flight == 0


async def test_a_target_given_up_is_undone_from_its_bytes(
    session: Session, backend: FakeBackend
) -> None:
    """The buffer is given back before the reply comes: it stays the device's until then."""
    held: list[FuseRequest] = []
    backend.answer = held.append
    undone: list[bytes] = []

    async def ask() -> None:
        with given_back(await session.payloads.take(1)) as [buffer]:

            def job() -> Job:
                request = fuse.read(NodeId(2), FileHandle(1), 0, 4096)
                yield [Ask(request, buffer, undone.append)]

            jobs = Jobs(session.lane)
            jobs.add(job())
            await jobs.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert session.payloads.taken == 1
    backend.reply(held[0], Answer(b"kernel"))
    await wait_all_tasks_blocked()
    assert undone == [b"kernel"]
    assert session.payloads.taken == 0


async def test_a_lost_backend_is_each_results_error(session: Session, backend: FakeBackend) -> None:
    backend.answer = lambda _: None
    errors: list[Exception] = []

    def job() -> Job:
        for _ in range(2):  # one that waits, one that is never sent
            [lost] = yield [Ask(fuse.statfs(ROOT))]
            assert isinstance(lost, Failed)
            assert isinstance(lost.error, BackendDown)
            errors.append(lost.error)

    jobs = Jobs(session.lane)
    jobs.add(job())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(jobs.run)
        await wait_all_tasks_blocked()
        backend.die()
    assert len(errors) == 2


async def test_what_no_ring_can_carry_is_a_mistake_of_the_job(session: Session) -> None:
    def job() -> Job:
        yield [Ask(fuse.batch_forget([]))]

    jobs = Jobs(session.lane)
    jobs.add(job())
    with pytest.raises(ValueError, match="FORGET has no fixed reply"):
        await jobs.run()
