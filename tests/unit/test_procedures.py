"""Procedures: carried out by a task, or by an errand that has none, to the same end."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol import fuse
from protocol.fuse import Opcode
from tests.fake.backend import Answer, FakeBackend, FuseRequest
from tests.fake.files import IMAGE
from vuserd.device.procedure import Errand, Procedure, carry_out
from vuserd.device.request import Ask, InOrder
from vuserd.device.results import MISSING, Failed, body_of
from vuserd.device.session import Session
from vuserd.errors import BackendBroken, BackendDown, FileError
from vuserd.users.asker import ASKER, Asker

ROOT = fuse.ROOT_ID
SOMEBODY = Asker(4711, None)

#: Carries a procedure out on a session's lane.
Way = Callable[[Session, Procedure[Any]], Awaitable[Any]]


class Outcome:
    """What an errand came to."""

    def __init__(self) -> None:
        self.found: Any = None
        self.failure: Exception | None = None
        self.ended = trio.Event()

    def note(self, found: Any, failure: Exception | None) -> None:
        assert not self.ended.is_set()
        self.found, self.failure = found, failure
        self.ended.set()


async def on_an_errand(session: Session, procedure: Procedure[Any]) -> Any:
    outcome = Outcome()
    Errand(session.lane, SOMEBODY, procedure, outcome.note).resume()
    await outcome.ended.wait()
    if outcome.failure is not None:
        raise outcome.failure
    return outcome.found


async def in_a_task(session: Session, procedure: Procedure[Any]) -> Any:
    return await carry_out(session.lane, procedure)


@pytest.fixture(params=[in_a_task, on_an_errand])
def way(request: pytest.FixtureRequest) -> Way:
    chosen: Way = request.param
    return chosen


def size_of(session: Session, name: bytes) -> Procedure[int]:
    [found, nothing] = yield [Ask(fuse.lookup(ROOT, name)), Ask(fuse.lookup(ROOT, b"nothing"))]
    assert isinstance(nothing, Failed)
    assert (yield []) == []
    entry = session.lane.decoded(fuse.decode_lookup, body_of(found))
    assert entry is not None
    [again] = yield [Ask(fuse.getattr(entry.node))]
    return session.lane.decoded(fuse.decode_attributes, body_of(again)).size


async def test_what_it_returns_is_what_it_found(session: Session, way: Way) -> None:
    assert await way(session, size_of(session, b"Image")) == len(IMAGE)
    with pytest.raises(FileError) as missing:
        await way(session, size_of(session, b"no such"))
    assert missing.value.code == "ENOENT"


async def test_one_that_asks_for_nothing_ends_at_once(session: Session, way: Way) -> None:
    def procedure() -> Procedure[int]:
        yield from ()
        return 7

    assert await way(session, procedure()) == 7


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
async def test_what_was_not_used_last_does_not_count(
    session: Session, backend: FakeBackend, way: Way, order: list[int]
) -> None:
    held: list[FuseRequest] = []
    backend.answer = held.append

    def procedure() -> Procedure[list[bool]]:
        results = yield InOrder([Ask(fuse.statfs(ROOT))] * 3)
        return [result is MISSING for result in results]

    found: list[list[bool]] = []

    async def run() -> None:
        found.append(await way(session, procedure()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        for place in order:
            backend.reply(held[place], Answer(bytes(80)))
    assert found == [[False, False, order[-1] != 2]]


async def test_a_lost_session_ends_it(session: Session, backend: FakeBackend, way: Way) -> None:
    backend.answer = lambda _: None
    closed = False

    def procedure() -> Procedure[None]:
        nonlocal closed
        try:
            [answer] = yield [Ask(fuse.statfs(ROOT))]
            body_of(answer)
        finally:
            closed = True

    async def run() -> None:
        with pytest.raises(BackendDown, match="gone"):
            await way(session, procedure())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        session.lose(BackendDown("gone"))
    assert closed


async def test_an_errand_is_on_behalf_of_its_asker_alone(
    session: Session, backend: FakeBackend
) -> None:
    askers: list[Asker | None] = []
    outcome = Outcome()

    def procedure() -> Procedure[None]:
        askers.append(ASKER.get())
        yield [Ask(fuse.statfs(ROOT))]
        askers.append(ASKER.get())

    errand = Errand(session.lane, SOMEBODY, procedure(), outcome.note)
    errand.resume()
    assert ASKER.get() is None
    await outcome.ended.wait()
    assert (askers, outcome.failure) == ([SOMEBODY, SOMEBODY], None)
    assert backend.named(Opcode.STATFS)


async def test_an_abandoned_errand_tells_nobody_and_loses_nothing(
    session: Session, backend: FakeBackend
) -> None:
    held: list[FuseRequest] = []

    def answer(request: FuseRequest) -> Answer | None:
        if request.body == b"Image\0":
            held.append(request)
            return None
        return backend.serve_files(request)

    backend.answer = answer
    undone: list[bytes] = []
    closed: list[Asker | None] = []
    outcome = Outcome()

    def procedure() -> Procedure[None]:
        try:
            yield [Ask(fuse.lookup(ROOT, b"Image"), undo=undone.append), Ask(fuse.statfs(ROOT))]
        finally:
            closed.append(ASKER.get())

    errand = Errand(session.lane, SOMEBODY, procedure(), outcome.note)
    errand.resume()
    await wait_all_tasks_blocked()
    errand.abandon()
    assert closed == [SOMEBODY]
    await wait_all_tasks_blocked()
    assert len(backend.named(Opcode.INTERRUPT)) == 1
    found = backend.serve_files(held.pop())
    assert found is not None
    backend.reply(backend.named(Opcode.LOOKUP)[-1], found)
    await wait_all_tasks_blocked()
    assert len(undone) == 1
    assert session.lane.in_flight == 0
    assert not outcome.ended.is_set()


async def test_a_lie_that_shows_when_an_errand_is_abandoned_ends_the_session_alone(
    session: Session, backend: FakeBackend
) -> None:
    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.LOOKUP:
            return Answer(b"is no entry")
        return None

    backend.answer = answer
    closed: list[bool] = []
    outcome = Outcome()

    def undo(body: bytes) -> None:
        fuse.decode_lookup(body)

    def procedure() -> Procedure[None]:
        try:
            lookup = Ask(fuse.lookup(ROOT, b"Image"), undo=undo)
            yield [lookup, Ask(fuse.statfs(ROOT))]
        finally:
            closed.append(True)

    errand = Errand(session.lane, SOMEBODY, procedure(), outcome.note)
    errand.resume()
    await wait_all_tasks_blocked()
    errand.abandon()
    assert closed == [True]
    assert isinstance(await session.wait_lost(), BackendBroken)
    assert not outcome.ended.is_set()


async def test_what_no_slot_can_carry_ends_a_procedure_and_loses_nothing(
    session: Session, backend: FakeBackend, way: Way
) -> None:
    undone: list[bytes] = []

    def procedure() -> Procedure[None]:
        too_long = Ask(fuse.read(ROOT, fuse.FileHandle(1), 0, 1 << 20))  # without a target
        yield [Ask(fuse.lookup(ROOT, b"Image"), undo=undone.append), too_long]

    with pytest.raises(ValueError, match="READ has no fixed reply"):
        await way(session, procedure())
    await wait_all_tasks_blocked()
    assert session.lane.in_flight == 0
    assert len(backend.named(Opcode.LOOKUP)) == len(undone) == 1
