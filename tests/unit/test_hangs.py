# ruff: noqa: ARG001 - the clock is asked for so that deadlines pass at once
"""A request that hung a backend is held back, longer each time, and no other request is."""

import math
from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from protocol import fuse
from protocol.fuse import Attributes, Opcode
from tests.attacks.threats import Who, threat
from tests.fake.backend import Answer, FakeBackend, FuseRequest
from tests.faults.harness import entries, read
from vuserd.config.model import ExportConfig
from vuserd.device.procedure import Procedure
from vuserd.device.session import Session
from vuserd.errors import BackendDown, BackendError, BackendTimeout, CallError, HeldBack
from vuserd.exports.calls import Calls
from vuserd.exports.hangs import Backoff, Hangs, NodeGate, Place
from vuserd.exports.life import Life
from vuserd.exports.serving import Serving
from vuserd.fs.filesystem import FileSystem
from vuserd.tasks.short_work import do_short_work
from vuserd.tracing.tap import Tracing
from vuserd.users.asker import ASKER, Asker

#: The session's, in seconds; what hangs is first held back for three times as long.
TIMEOUT = 10.0
MALLORY = Asker(1000, None)


class Hanging:
    """A backend that does not answer requests of one kind for one file, and serves all else."""

    def __init__(self) -> None:
        self.backend = FakeBackend({b"Image": b"kernel", b"other": b"other"})
        self.backend.answer = self._answer
        self.hangs = Hangs("files")
        self.opcode: Opcode | None = None
        #: The latest one that it did not answer.
        self.kept: FuseRequest | None = None
        self._image = b"Image"
        self._node: int | None = None

    def _answer(self, request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.LOOKUP and request.body.rstrip(b"\0") == self._image:
            answer = self.backend.serve_files(request)
            assert answer is not None
            self._node = int.from_bytes(answer.body[:8], "little")
            return answer
        if request.opcode is self.opcode and request.node == self._node:
            self.kept = request
            return None
        return self.backend.serve_files(request)

    def files(self, session: Session) -> FileSystem:
        files = FileSystem(session, idle_nodes=10)
        session.lane.obey(NodeGate(self.hangs, files.nodes, TIMEOUT))
        return files


@pytest.fixture
def hanging() -> Hanging:
    return Hanging()


@pytest.fixture
async def session(
    hanging: Hanging,
) -> AsyncIterator[Session]:
    async with hanging.backend.session() as session:
        yield session


@pytest.mark.parametrize("opcode", [Opcode.OPEN, Opcode.READ, Opcode.RELEASE])
async def test_a_request_that_hung_is_held_back(
    hanging: Hanging, session: Session, autojump_clock: MockClock, opcode: Opcode
) -> None:
    files = hanging.files(session)
    hanging.opcode = opcode
    if opcode is Opcode.RELEASE:
        assert await read(files) == b"kernel"
        await trio.sleep(1.5 * TIMEOUT)  # nobody waits for it, but somebody may notice
    else:
        with pytest.raises(BackendTimeout):
            await read(files)
    with pytest.raises(HeldBack, match="a lease") as raised:
        await read(files)
    error = raised.value.to_wire()
    assert (error["code"], error["message"].split()[0]) == (
        "ETIMEDOUT",
        "OPEN" if opcode is Opcode.RELEASE else opcode.name,
    )
    assert 0 < error["retry_after"] <= 3 * TIMEOUT
    assert await read(files, b"other") == b"other"
    assert await entries(files) == [b"Image", b"other"]


async def test_it_is_tried_again_by_one_and_served_where_that_succeeds(
    hanging: Hanging, session: Session, autojump_clock: MockClock
) -> None:
    files = hanging.files(session)
    hanging.opcode = Opcode.OPEN
    for number in range(3):
        with pytest.raises(BackendTimeout):
            await read(files)
        await trio.sleep(1.1)  # a backend that hangs with all threads is lost by then
        with pytest.raises(HeldBack) as raised:
            await read(files)
        assert raised.value.retry_after == pytest.approx(3 * TIMEOUT * 2**number, abs=2)
        await trio.sleep(raised.value.retry_after)
    async with trio.open_nursery() as nursery:

        async def is_held_back() -> None:
            await trio.sleep(TIMEOUT / 2)
            with pytest.raises(HeldBack):
                await read(files)

        nursery.start_soon(is_held_back)
        with pytest.raises(BackendTimeout):
            await read(files)
    await trio.sleep(1.1)
    with pytest.raises(HeldBack) as raised:
        await read(files)
    await trio.sleep(raised.value.retry_after)
    hanging.opcode = None
    assert await read(files) == b"kernel"
    assert not hanging.hangs.places.held
    hanging.opcode = Opcode.OPEN  # that it hung before is not forgotten
    with pytest.raises(BackendTimeout):
        await read(files)
    await trio.sleep(1.1)
    with pytest.raises(HeldBack) as raised:
        await read(files)
    assert raised.value.retry_after == pytest.approx(3 * TIMEOUT * 2**4, abs=2)


async def test_what_nobody_tries_again_does_not_slow_all_others_for_ever(
    hanging: Hanging, session: Session, autojump_clock: MockClock
) -> None:
    """While anything is held back each request is looked at by itself."""
    files = hanging.files(session)
    hanging.opcode = Opcode.OPEN
    ASKER.set(MALLORY)
    for _ in range(3):
        with pytest.raises(BackendTimeout):
            await read(files)
        await trio.sleep(20 * TIMEOUT)
    assert hanging.hangs.places.held
    assert hanging.hangs.askers.held
    await trio.sleep(100 * TIMEOUT)
    hanging.hangs.require_asker()
    assert await read(files, b"other") == b"other"
    assert not hanging.hangs.places.held
    assert not hanging.hangs.askers.held


async def test_a_lost_backend_tries_nothing_that_is_held_back(
    hanging: Hanging, session: Session, autojump_clock: MockClock
) -> None:
    """Else the next one, which could, would have to wait for an outcome that never comes."""
    files = hanging.files(session)
    hanging.opcode = Opcode.OPEN
    with pytest.raises(BackendTimeout):
        await read(files)
    await trio.sleep(4 * TIMEOUT)
    session.lose(BackendDown("it is gone"))
    with pytest.raises(BackendDown):
        await session.lane.call(fuse.open(fuse.NodeId(2)), fuse.decode_open)
    hanging.hangs.require_place(Place(Opcode.OPEN, b"/Image"), TIMEOUT)


async def test_what_is_answered_a_little_late_did_not_hang(
    hanging: Hanging, session: Session, autojump_clock: MockClock
) -> None:
    files = hanging.files(session)
    hanging.opcode = Opcode.OPEN
    with pytest.raises(BackendTimeout):
        await read(files)
    assert hanging.hangs.places.held
    hanging.opcode = None
    assert hanging.kept is not None
    answer = hanging.backend.serve_files(hanging.kept)
    assert answer is not None
    hanging.backend.reply(hanging.kept, answer)
    await trio.sleep(0.5)
    assert not hanging.hangs.places.held
    assert await read(files) == b"kernel"


async def test_what_waits_behind_it_is_not_to_blame(
    hanging: Hanging, session: Session, autojump_clock: MockClock
) -> None:
    files = hanging.files(session)
    backend = hanging.backend
    await files.stat(b"Image", follow=True)
    backend.answer = lambda _: None  # one thread, and it hangs
    async with trio.open_nursery() as nursery:

        async def ask(name: bytes) -> None:
            with pytest.raises(BackendError):
                await files.stat(name, follow=True)

        for name in (b"Image", b"other"):
            nursery.start_soon(ask, name)
            await trio.sleep(0.1)
    assert [place.path for place in hanging.hangs.places.held] == [b"/Image"]


async def test_a_backend_of_several_threads_hangs_with_one(
    hanging: Hanging, session: Session, autojump_clock: MockClock
) -> None:
    files = hanging.files(session)
    hanging.opcode = Opcode.OPEN
    async with trio.open_nursery() as nursery:

        async def use() -> None:
            while True:
                await files.stat(b"other", follow=True)
                await trio.sleep(1)

        nursery.start_soon(use)
        with pytest.raises(BackendTimeout):
            await read(files)
        with pytest.raises(HeldBack):
            await read(files)
        assert not session.lost
        nursery.cancel_scope.cancel()


async def test_a_user_has_two_hangs_free(
    autojump_clock: MockClock,
) -> None:
    hangs = Hangs("files")
    ASKER.set(MALLORY)
    for _ in range(2):
        hangs.note(None, MALLORY, TIMEOUT)
        hangs.require_asker()
    hangs.note(None, MALLORY, TIMEOUT)
    with pytest.raises(CallError, match="uid 1000") as raised:
        hangs.require_asker()
    assert raised.value.to_wire()["retry_after"] == pytest.approx(3 * TIMEOUT)
    ASKER.set(Asker(1000, "rig"))
    hangs.require_asker()
    ASKER.set(None)
    hangs.require_asker()
    ASKER.set(MALLORY)
    await trio.sleep(3 * TIMEOUT)
    hangs.require_asker()


async def test_what_one_user_hung_gives_no_call_of_another_a_task(
    session: Session, autojump_clock: MockClock
) -> None:
    """Only who is held back has to be told so, as long as that is; it is remembered for longer."""
    hangs = Hangs("files")
    calls = Calls(Life("files", lambda: None), hangs, lambda: None)
    calls.serving = serving = Serving(ExportConfig("files", socket="unused"), None, (), Tracing())
    serving.session, serving.files = session, FileSystem(session, idle_nodes=10)
    for _ in range(3):
        hangs.note(None, MALLORY, TIMEOUT)

    def errand(asker: Asker | None) -> object:
        def stat(files: FileSystem) -> Procedure[Attributes]:
            return files.attributes(b"", follow=True)

        return calls.errand(asker, stat, lambda *_: None, math.inf)

    assert errand(MALLORY) is None
    assert errand(Asker(1001, None)) is not None
    assert errand(None) is not None
    await trio.sleep(3 * TIMEOUT)
    assert MALLORY in hangs.askers.held
    assert errand(MALLORY) is not None


@threat(
    "the blame of others",
    who=Who.CLIENT,
    against="users who list and walk",
    does="gives up opening files whose release hangs, while another user's long call is at work",
    promise="nobody is held back for what another user's calls hung",
)
async def test_no_user_is_to_blame_for_replies_taken_between_steps_of_his_work(
    hanging: Hanging, session: Session, autojump_clock: MockClock
) -> None:
    """What such a reply leads to is nobody's: here the release of a file that nobody has open."""
    files = hanging.files(session)
    blamed: list[Asker | None] = []

    def hung(request: fuse.Request, path: bytes | None, asker: Asker | None) -> None:
        blamed.append(asker)

    assert session.lane.gate is not None
    session.lane.gate.hung = hung  # type: ignore[method-assign]
    hanging.opcode = Opcode.OPEN
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, files)
        await trio.sleep(1.0)
        nursery.cancel_scope.cancel()
    assert hanging.kept is not None
    hanging.opcode = Opcode.RELEASE
    answer = hanging.backend.serve_files(hanging.kept)
    assert answer is not None
    hanging.backend.reply(hanging.kept, answer)
    ASKER.set(MALLORY)
    do_short_work()
    await trio.sleep(1.5 * TIMEOUT)
    assert blamed == [None]


async def test_hangs_are_forgotten_and_never_too_many(autojump_clock: MockClock) -> None:
    backoff: Backoff[int] = Backoff()
    for number in range(1100):
        assert backoff.note(number, TIMEOUT) == 3 * TIMEOUT
    assert len(backoff.held) == 1024
    assert 0 not in backoff.held
    assert [backoff.note(1099, TIMEOUT) for _ in range(6)][-2:] == [96 * TIMEOUT] * 2
    autojump_clock.jump(200 * TIMEOUT)
    assert backoff.note(1099, TIMEOUT) == 3 * TIMEOUT
    assert len(backoff.held) == 1


async def test_a_name_cannot_write_lines_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    Hangs("files").note(Place(Opcode.OPEN, b"/a\n<2>\x1b\xff"), None, 1.0)
    assert r"OPEN of /a\n<2>\x1b\xff hung" in caplog.text
