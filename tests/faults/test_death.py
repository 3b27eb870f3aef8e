"""Death and silence: the backend goes away, or answers no more, at each step."""

import contextlib

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.fuse import Opcode
from protocol.vhost_user import Request
from protocol.virtio_fs import HIPRIO_QUEUE, REQUEST_QUEUE
from tests.fake.backend import FakeBackend, File
from tests.fake.files import FuseRequest
from tests.faults.catalogue import DOWN, TIMED_OUT, fault
from tests.faults.harness import (
    CONTENT,
    FOR_EVER,
    Call,
    Front,
    entries,
    names,
    read,
    readlink,
    stat,
    stat_root,
    statfs,
)
from vuserd.delivery.inline import read_inline
from vuserd.device.layout import IN_FLIGHT
from vuserd.device.payloads import given_back
from vuserd.device.session import SessionOptions
from vuserd.errors import BackendDown, BackendTimeout, LossCause
from vuserd.fs.filesystem import FileSystem

HANDSHAKE = [
    Request.GET_FEATURES,
    Request.GET_PROTOCOL_FEATURES,
    Request.SET_PROTOCOL_FEATURES,
    Request.GET_QUEUE_NUM,
    Request.SET_OWNER,
    Request.SET_FEATURES,
    Request.SET_MEM_TABLE,
    Request.SET_VRING_NUM,
    Request.SET_VRING_BASE,
    Request.SET_VRING_ADDR,
    Request.SET_VRING_KICK,
    Request.SET_VRING_CALL,
    Request.SET_VRING_ENABLE,
]
#: Not acknowledged, so that no silence is noticed there.
UNACKNOWLEDGED = Request.SET_PROTOCOL_FEATURES

STEPS: list[tuple[Opcode, Call]] = [
    (Opcode.LOOKUP, stat),
    (Opcode.GETATTR, stat_root),
    (Opcode.OPEN, read),
    (Opcode.READ, read),
    (Opcode.READLINK, readlink),
    (Opcode.OPENDIR, names),
    (Opcode.READDIR, names),
    (Opcode.READDIRPLUS, entries),
    (Opcode.STATFS, statfs),
]


def dies_at(request: Request) -> object:
    mark = fault(
        f"dies-at-{request.name}",
        done=f"the backend ends when it is sent {request.name}",
        must="The session does not come up: BACKEND_DOWN.",
    )
    return pytest.param(request, marks=mark, id=request.name)


def silent_at(request: Request) -> object:
    mark = fault(
        f"silent-at-{request.name}",
        done=f"the backend never answers {request.name}",
        must="The session does not come up: TIMEOUT when the deadline is over.",
    )
    return pytest.param(request, marks=mark, id=request.name)


@pytest.mark.parametrize("request_", [dies_at(request) for request in HANDSHAKE])
async def test_death_in_the_handshake(backend: FakeBackend, request_: Request) -> None:
    backend.dies_at = {request_}
    with trio.fail_after(FOR_EVER), pytest.raises(BackendDown) as raised:
        async with backend.session():
            pytest.fail("the session came up")
    assert raised.value.code == "BACKEND_DOWN"


@pytest.mark.parametrize(
    "request_", [silent_at(request) for request in HANDSHAKE if request is not UNACKNOWLEDGED]
)
async def test_silence_in_the_handshake(
    backend: FakeBackend,
    request_: Request,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    backend.ignored = {request_}
    begun = trio.current_time()
    with pytest.raises(BackendTimeout, match=f"did not answer {request_.name} within 10 s"):
        async with backend.session():
            pytest.fail("the session came up")
    assert trio.current_time() - begun < 10.05


@fault(
    "dies-at-INIT",
    done="the backend ends when it is sent INIT",
    must="The session does not come up: BACKEND_DOWN.",
)
async def test_death_at_init(backend: FakeBackend) -> None:
    backend.answer_to(Opcode.INIT, lambda _: backend.die())
    with trio.fail_after(FOR_EVER), pytest.raises(BackendDown):
        async with backend.session():
            pytest.fail("the session came up")


@fault(
    "silent-at-INIT",
    done="the backend never answers INIT",
    must="The session does not come up: TIMEOUT when the deadline is over.",
)
async def test_silence_at_init(
    backend: FakeBackend,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    backend.answer_to(Opcode.INIT, None)
    with pytest.raises(BackendTimeout, match="did not answer INIT within 10 s"):
        async with backend.session():
            pytest.fail("the session came up")


def dies_in_call(opcode: Opcode, call: Call) -> object:
    mark = fault(
        f"dies-at-{opcode.name}",
        done=f"the backend ends when it has {opcode.name} of a call",
        must=DOWN,
    )
    return pytest.param(opcode, call, marks=mark, id=opcode.name)


@pytest.mark.parametrize(("opcode", "call"), [dies_in_call(*step) for step in STEPS])
async def test_death_in_a_call(front: Front, opcode: Opcode, call: Call) -> None:
    front.tell(opcode, lambda backend, _: backend.die())
    await front.breaks(call, "closed its socket|connection to the backend was lost", BackendDown)


def silent_in_call(opcode: Opcode, call: Call) -> object:
    mark = fault(
        f"silent-at-{opcode.name}",
        done=f"the backend never answers {opcode.name} of a call, and all else",
        must=TIMED_OUT,
    )
    return pytest.param(opcode, call, marks=mark, id=opcode.name)


@pytest.mark.parametrize(
    ("opcode", "call"), [silent_in_call(*step) for step in STEPS if step[0] is not Opcode.GETATTR]
)
async def test_silence_in_a_call(
    front: Front,
    opcode: Opcode,
    call: Call,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    front.tell(opcode, None)
    begun = trio.current_time()
    with pytest.raises(BackendTimeout, match=f"did not answer {opcode.name} within 10 s") as raised:
        await call(front.files)
    assert raised.value.code == "TIMEOUT"
    assert 10 <= trio.current_time() - begun < 10.05
    await wait_all_tasks_blocked()
    bulk = opcode in (Opcode.READ, Opcode.READDIR, Opcode.READDIRPLUS)
    held = front.backend.named(opcode)
    assert front.quarantined() == front.session.payloads.taken == (len(held) if bulk else 0)
    interrupted = {request.body for request in front.backend.named(Opcode.INTERRUPT)}
    assert interrupted == {request.unique.to_bytes(8, "little") for request in held}
    await trio.sleep(5)
    assert not front.session.lost  # the probe was answered
    for request in held:
        late = front.backend.serve_files(request)
        assert late is not None
        front.backend.reply(request, late)
    await wait_all_tasks_blocked()
    assert front.quarantined() == 0
    await front.serves()


@fault(
    "silent-at-all",
    done="the backend takes requests, and answers none of them any more",
    must="The caller gets TIMEOUT at its deadline; a second later, when a request that was sent to"
    " learn whether the backend lives is not answered either, the session is declared lost.",
)
async def test_silence(
    front: Front,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    front.backend.stuck = {HIPRIO_QUEUE, REQUEST_QUEUE}
    begun = trio.current_time()
    with pytest.raises(BackendTimeout):
        await read(front.files)
    with trio.fail_after(FOR_EVER):
        reason = await front.session.wait_lost()
    assert str(reason) == "the backend answers nothing any more"
    assert 11 <= trio.current_time() - begun < 11.1
    await front.is_over()


@fault(
    "silent-at-RELEASE",
    done="the backend never answers RELEASE, for which no caller waits",
    must="Calls are served until the ring is full of them; then the caller gets TIMEOUT and the"
    " session is declared lost.",
)
async def test_silence_where_nobody_waits(
    front: Front,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    front.tell(Opcode.RELEASE, None)
    served = 0
    with contextlib.suppress(BackendTimeout):
        for _ in range(2 * IN_FLIGHT[REQUEST_QUEUE]):
            assert await read(front.files) == CONTENT
            served += 1
    assert served == IN_FLIGHT[REQUEST_QUEUE]
    with trio.fail_after(FOR_EVER):
        await front.session.wait_lost()
    await front.is_over()


@fault(
    "silent-at-FORGET",
    done="the backend serves every request, and takes nothing from the hiprio queue",
    must="Calls are served; a second after the time for a reply, in which it took nothing, the"
    " session is declared lost.",
)
async def test_silence_on_the_hiprio_queue(
    front: Front,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    front.backend.stuck = {HIPRIO_QUEUE}
    begun = trio.current_time()
    with contextlib.suppress(BackendDown):
        for _ in range(200):
            assert await entries(front.files)
            await trio.sleep(1)
    assert 11 <= trio.current_time() - begun < 12.1
    assert str(await front.session.wait_lost()) == (
        "the backend takes nothing from its hiprio queue any more"
    )
    await front.is_over()


@pytest.mark.parametrize("given_up", [False, True], ids=["awaited", "given up"])
@fault(
    "keeps-bulk",
    done="the backend never answers as many READs of 1 MiB as it is given at once, and all else",
    must="Their callers get TIMEOUT; READs of 1 MiB that come later have their turn once the"
    " deadline of those is over, also where the callers gave up before.",
)
async def test_bulk_that_is_kept_holds_up_others_for_its_time_only(
    front: Front,
    given_up: bool,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    front.backend.files[b"large"] = File(CONTENT * 256)
    front.tell(Opcode.READ, None)

    async def call() -> None:
        with trio.move_on_after(1 if given_up else FOR_EVER), pytest.raises(BackendTimeout):
            await read(front.files, b"large")

    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(12):  # as nobody else asks
            nursery.start_soon(call)
        await wait_all_tasks_blocked()
        kept = front.backend.named(Opcode.READ)
        assert len(kept) == 12
        front.backend.answer = front.backend.serve_files
        await trio.sleep(5)
        assert await read(front.files, b"large") == CONTENT * 256
    assert 10 <= trio.current_time() - begun < 10.05
    assert await read(front.files, b"large") == CONTENT * 256
    for request in kept:
        late = front.backend.serve_files(request)
        assert late is not None
        front.backend.reply(request, late)
    await wait_all_tasks_blocked()
    await front.serves()


@fault(
    "keeps-payloads",
    done="the backend never answers as many small READs as there are payload buffers, and all else",
    must="A caller that waits for a buffer gets TIMEOUT at the deadline, and the session is"
    " declared lost.",
)
async def test_payloads_that_are_kept(
    front: Front,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    front.tell(Opcode.READ, None)

    async def call() -> None:
        with trio.move_on_after(1):
            await read_inline(front.files, b"Image", 0, 4096)

    async with trio.open_nursery() as nursery:
        for _ in range(SessionOptions().payloads):
            nursery.start_soon(call)
    front.backend.answer = front.backend.serve_files
    begun = trio.current_time()
    with pytest.raises(BackendTimeout, match="too few payload buffers were free for 10 s"):
        await read(front.files)
    assert 10 <= trio.current_time() - begun < 10.05
    reason = await front.session.wait_lost()
    assert str(reason) == "the backend keeps 32 of 32 payload buffers"
    assert reason.cause is LossCause.SILENT
    await wait_all_tasks_blocked()  # a probe may have been on its way
    await front.is_over()


async def test_payloads_that_others_use_are_waited_for_in_vain_once(
    front: Front,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    """The backend is innocent of that."""
    with given_back(await front.session.payloads.take(SessionOptions().payloads)):
        with pytest.raises(BackendTimeout):
            await read(front.files)
        assert not front.session.lost
    await front.serves()


@fault(
    "dies-when-idle",
    done="the backend ends while nothing is asked of it",
    must="The session is declared lost at once; the next call gets BACKEND_DOWN.",
)
async def test_death_without_a_call(front: Front) -> None:
    front.backend.die()
    with trio.fail_after(FOR_EVER):
        assert isinstance(await front.session.wait_lost(), BackendDown)
    await front.is_over()


@fault(
    "dies-under-a-crowd",
    done="the backend ends with a thousand calls on the ring and waiting for a place on it",
    must="Each of them gets BACKEND_DOWN at once, and no buffer stays taken.",
)
async def test_death_under_a_crowd(front: Front) -> None:
    front.tell(Opcode.LOOKUP, None)
    woken = 0

    async def call() -> None:
        nonlocal woken
        with pytest.raises(BackendDown):
            await read(front.files)
        woken += 1

    with trio.fail_after(FOR_EVER):
        async with trio.open_nursery() as nursery:
            for _ in range(1000):
                nursery.start_soon(call)
            await wait_all_tasks_blocked()
            front.backend.die()
    assert woken == 1000
    assert front.session.payloads.taken == 0
    await front.is_over()


@pytest.mark.parametrize(
    "silent",
    [
        pytest.param(
            False,
            marks=fault(
                "dies-at-GET_VRING_BASE",
                done="the backend ends when its rings are stopped",
                must="The session ends within its time for that.",
            ),
            id="dies",
        ),
        pytest.param(
            True,
            marks=[
                fault(
                    "silent-at-GET_VRING_BASE",
                    done="the backend never answers when its rings are stopped",
                    must="The session ends within its time for that, which is 2 seconds.",
                ),
            ],
            id="silent",
        ),
    ],
)
async def test_an_end_that_is_not_answered(
    backend: FakeBackend,
    silent: bool,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    async with backend.session() as session:
        assert await read(FileSystem(session, 10)) == CONTENT
        if silent:
            backend.ignored = {Request.GET_VRING_BASE}
        else:
            backend.dies_at = {Request.GET_VRING_BASE}
        begun = trio.current_time()
    assert trio.current_time() - begun < SessionOptions().drain + 0.1


@fault(
    "slow-at-the-end",
    done="the backend answers its last request just before the session's time for its end is over,"
    " and nothing when its rings are stopped",
    must="The session ends within its time for that, which is 2 seconds.",
)
async def test_an_end_that_is_late_already(
    backend: FakeBackend,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    backend.answer_to(Opcode.READ, None)
    backend.ignored = {Request.GET_VRING_BASE}
    async with trio.open_nursery() as nursery, backend.session() as session:
        with trio.move_on_after(1):
            await read(FileSystem(session, 10))
        [held] = backend.named(Opcode.READ)

        async def answer_late() -> None:
            await trio.sleep(SessionOptions().drain - 0.1)
            answer = backend.serve_files(held)
            assert answer is not None
            backend.reply(held, answer)

        nursery.start_soon(answer_late)
        begun = trio.current_time()
    assert backend.messages[-1] is Request.GET_VRING_BASE
    assert trio.current_time() - begun < SessionOptions().drain + 0.1


@fault(
    "holds-requests-at-the-end",
    done="the backend still has a request that was given up when the session ends",
    must="The session ends within its time for that, which is 2 seconds.",
)
async def test_an_end_with_requests_in_the_backend(
    backend: FakeBackend,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    held: list[FuseRequest] = []
    backend.answer_to(Opcode.READ, lambda request: held.append(request))
    async with backend.session() as session:
        with trio.move_on_after(1):
            await read(FileSystem(session, 10))
        begun = trio.current_time()
    assert len(held) == 1
    assert trio.current_time() - begun < SessionOptions().drain + 0.1
