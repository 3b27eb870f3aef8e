"""Moved state: a backend takes over from another one, and either of them fails at that."""

import contextlib
import errno
import functools
import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from memory.foreign import ForeignRegion
from protocol import fuse
from protocol.fuse import FileHandle, NodeId, Opcode
from protocol.vhost_user import Request
from tests.fake.backend import (
    CONFIGURE_MEM_SLOTS,
    DEVICE_STATE,
    MQ,
    REPLY_ACK,
    FakeBackend,
    Reply,
)
from tests.faults.catalogue import DOWN, fault
from tests.faults.harness import CONTENT, FOR_EVER, Front, read, stat
from tests.faults.system_calls import Failure, SystemCall
from vuserd.delivery.attached import AttachedMemory
from vuserd.delivery.placements import ChangeLocks
from vuserd.device.payloads import given_back
from vuserd.errors import BackendDown, BackendError, BackendTimeout
from vuserd.fs.openfile import OpenFile

STAYS = (
    "The session goes on with the backend that it has and all that is open there; the other one is"
    " let go."
)
SET_STATE, CHECK_STATE = Request.SET_DEVICE_STATE_FD, Request.CHECK_DEVICE_STATE
#: In the reply to SET_DEVICE_STATE_FD: an error, and no descriptor of the backend's own.
REFUSED = 0x101


@pytest.fixture
def backend() -> FakeBackend:
    made = FakeBackend({b"Image": CONTENT})
    made.protocol_features |= DEVICE_STATE | CONFIGURE_MEM_SLOTS
    return made


@pytest.fixture
def other() -> FakeBackend:
    made = FakeBackend({b"Image": CONTENT})
    made.protocol_features |= DEVICE_STATE | CONFIGURE_MEM_SLOTS
    return made


async def bytes_of(file: OpenFile) -> bytes:
    with given_back(await file.session.payloads.take(1)) as buffers:
        length = await file.read_into(buffers[0], 0, 1 << 16)
        return bytes(buffers[0].view[:length])


@asynccontextmanager
async def moved(front: Front, other: FakeBackend) -> AsyncIterator[Front]:
    """Move the session to another backend, for the block's time: then that one ends."""
    told: list[bool] = []
    async with other.connection() as stream:
        with trio.fail_after(FOR_EVER):
            await front.session.move(stream, lambda: told.append(front.backend.regions > 0))
        assert told == [True]  # in time to expect the end of the former one
        await wait_all_tasks_blocked()
        assert front.backend.regions == 0
        assert not front.session.lost
        yield Front(other, front.session, front.files)


async def stays(front: Front, other: FakeBackend, words: str) -> None:
    """Check that the session cannot be moved, and that the attempt has no effect."""
    async with front.files.opened(b"Image") as file, other.connection() as stream:
        with trio.fail_after(FOR_EVER), pytest.raises(BackendError, match=words):
            await front.session.move(stream, lambda: pytest.fail("it moved"))
        await wait_all_tasks_blocked()
        assert other.regions == 0
        assert await bytes_of(file) == CONTENT
    await front.serves()


def said(payload: int) -> Callable[[Reply], Reply]:
    """Make a reply say something else."""
    return lambda reply: reply._replace(payload=struct.pack("=Q", payload))


async def test_open_files_go_along(front: Front, other: FakeBackend) -> None:
    async with front.files.opened(b"Image") as file:
        lookups, handles = front.backend.lookups.copy(), front.backend.open_handles.copy()
        async with moved(front, other) as later:
            assert (other.lookups, other.open_handles) == (lookups, handles)
            assert await bytes_of(file) == CONTENT
            assert [request.opcode for request in other.requests] == [Opcode.READ]
            front.session.lane.post(fuse.release(NodeId(2), FileHandle(handles.pop())))
            front.files.close()
            await later.session.lane.drained()
            assert other.open_handles == set()


async def test_it_moves_again_and_again(front: Front) -> None:
    async with contextlib.AsyncExitStack() as stack:
        here = front
        for number in range(4):
            for _ in range(100):
                await stat(here.files)
            there = FakeBackend({b"Image": CONTENT})
            there.protocol_features |= DEVICE_STATE
            here = await stack.enter_async_context(moved(here, there))
            assert here.backend.requests == [], number
        await here.serves()


async def test_what_is_asked_meanwhile_is_asked_of_the_other_one(
    front: Front, other: FakeBackend
) -> None:
    front.backend.answer_to(Opcode.READ, None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, front.files)
        await wait_all_tasks_blocked()
        may_go = trio.Event()

        async def move() -> None:
            async with moved(front, other) as later:
                await may_go.wait()
                await later.owes_nothing()

        nursery.start_soon(move)
        await wait_all_tasks_blocked()  # until what the former one has has ended
        for _ in range(3):
            nursery.start_soon(stat, front.files)
        await wait_all_tasks_blocked()
        assert len(front.backend.named(Opcode.LOOKUP)) == 1
        assert other.requests == []
        [request] = front.backend.named(Opcode.READ)
        answer = front.backend.serve_files(request)
        assert answer is not None
        front.backend.reply(request, answer)
        await wait_all_tasks_blocked()
        assert len(other.named(Opcode.LOOKUP)) == 3
        assert other.named(Opcode.RELEASE)
        may_go.set()


async def test_memory_of_clients_goes_along(front: Front, other: FakeBackend) -> None:
    descriptor = os.memfd_create("client", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 1 << 16)
    memory = AttachedMemory(ForeignRegion(descriptor, 1 << 16), ChangeLocks())
    assert await memory.load(front.files, b"Image", 0, 0, None) == len(CONTENT)
    assert front.backend.regions == 2
    async with moved(front, other) as later:
        assert other.regions == 2
        assert await memory.load(front.files, b"Image", len(CONTENT), 0, None) == len(CONTENT)
        assert os.pread(descriptor, 1 << 16, 0)[: 2 * len(CONTENT)] == 2 * CONTENT
        await memory.detach()
        assert other.regions == 1
        await later.owes_nothing()


async def test_a_session_that_ends_waits_until_it_has_moved(
    backend: FakeBackend, other: FakeBackend
) -> None:
    async with other.connection() as stream, trio.open_nursery() as nursery:
        async with backend.session() as session:
            nursery.start_soon(session.move, stream, lambda: None)
            await wait_all_tasks_blocked()
        assert other.messages[-2:] == [Request.GET_VRING_BASE] * 2


async def test_a_session_that_is_lost_does_not_move(front: Front, other: FakeBackend) -> None:
    front.backend.die()
    await front.session.wait_lost()
    async with other.connection() as stream:
        with pytest.raises(BackendDown):
            await front.session.move(stream, lambda: pytest.fail("it moved"))
        await wait_all_tasks_blocked()
        assert other.messages == []


Spoil = Callable[[FakeBackend, FakeBackend], None]


def row(name: str, done: str, words: str, spoil: Spoil) -> Any:
    return pytest.param(words, spoil, marks=fault(name, done=done, must=STAYS), id=name)


@pytest.mark.parametrize(
    ("words", "spoil"),
    [
        row(
            "moves-no-state",
            "the other backend cannot take another one's state",
            "cannot be moved",
            lambda _, other: setattr(other, "protocol_features", MQ | REPLY_ACK),
        ),
        row(
            "save-refused",
            "the backend refuses to save its state",
            "refused to save its state",
            lambda here, _: here.altered.update({SET_STATE: said(REFUSED)}),
        ),
        row(
            "load-refused",
            "the other backend refuses to load a state",
            "refused to load its state",
            lambda _, other: other.altered.update({SET_STATE: said(REFUSED)}),
        ),
        row(
            "save-failed",
            "the backend could not save its state: a file that is open was deleted, say",
            "could not save its state",
            lambda here, _: here.altered.update({CHECK_STATE: said(1)}),
        ),
        row(
            "load-failed",
            "the other backend could not load the state",
            "could not load the other one's state",
            lambda _, other: other.altered.update({CHECK_STATE: said(1)}),
        ),
        row(
            "state-through-a-descriptor-of-its-own",
            "the other backend wants the state through a descriptor of its own",
            "a descriptor of its own",
            lambda _, other: other.altered.update({SET_STATE: said(0)}),
        ),
        row(
            "short-reply-to-a-state",
            "the other backend's reply to SET_DEVICE_STATE_FD has four bytes",
            "broke the protocol: a payload of 4 bytes",
            lambda _, other: other.altered.update(
                {SET_STATE: lambda reply: reply._replace(payload=bytes(4))}
            ),
        ),
        row(
            "load-without-end",
            "the other backend does not say whether it has loaded the state",
            "did not answer CHECK_DEVICE_STATE",
            lambda _, other: other.ignored.add(CHECK_STATE),
        ),
        row(
            "save-without-end",
            "the backend does not say whether it has saved its state",
            "did not answer CHECK_DEVICE_STATE",
            lambda here, _: here.ignored.add(CHECK_STATE),
        ),
        row(
            "load-not-begun",
            "the other backend loads nothing of a state that is larger than a pipe",
            "did not answer CHECK_DEVICE_STATE",
            lambda here, _: setattr(here, "more_state", bytes(1 << 20)),
        ),
        row(
            "save-too-late",
            "the backend says whether it has saved its state when that is not waited for any more",
            "did not answer CHECK_DEVICE_STATE",
            lambda here, _: here.delays.update({CHECK_STATE: 1.5}),
        ),
        row(
            "too-few-regions-to-move",
            "the other backend maps fewer regions than are in use",
            "maps 0 regions, 1 are in use",
            lambda _, other: setattr(other, "memory_slots", 0),
        ),
        row(
            "memory-refused-on-a-move",
            "the other backend refuses SET_MEM_TABLE",
            "refused SET_MEM_TABLE",
            lambda _, other: other.refused.update({Request.SET_MEM_TABLE: 1}),
        ),
        *[
            row(
                f"other-dies-at-{request.name.lower().replace('_', '-')}",
                f"the other backend ends at {request.name}",
                "closed its socket",
                lambda _, other, request=request: other.dies_at.add(request),  # type: ignore[misc]
            )
            for request in (
                Request.GET_FEATURES,
                Request.SET_MEM_TABLE,
                Request.SET_DEVICE_STATE_FD,
                Request.CHECK_DEVICE_STATE,
            )
        ],
    ],
)
async def test_it_stays(
    front: Front, backend: FakeBackend, other: FakeBackend, words: str, spoil: Spoil
) -> None:
    spoil(backend, other)
    await stays(front, other, words)


@fault(
    "directory-of-the-other-seen-too-late",
    done="it is not known in time whether the other backend has opened the right directory",
    must=STAYS + " What is asked meanwhile waits a second at most.",
)
async def test_a_check_that_takes_too_long(front: Front, other: FakeBackend) -> None:
    async with front.files.opened(b"Image") as file, other.connection() as stream:
        begun = trio.current_time()
        with trio.fail_after(FOR_EVER), pytest.raises(BackendTimeout, match="looked at"):
            await front.session.move(stream, lambda: pytest.fail("it moved"), trio.sleep_forever)
        assert trio.current_time() - begun < 2
        assert await bytes_of(file) == CONTENT
    await front.serves()


async def test_a_check_may_take_all_the_time_that_there_is(
    front: Front, other: FakeBackend
) -> None:
    other.delays[Request.SET_VRING_NUM] = 0.2
    async with other.connection() as stream:
        with trio.fail_after(FOR_EVER):
            await front.session.move(stream, lambda: None, functools.partial(trio.sleep, 0.8))
        await Front(other, front.session, front.files).serves()


@fault(
    "busy-on-a-move",
    done="the backend does not end what it has in flight while it is to be moved",
    must=STAYS + " What is asked meanwhile waits a second at most.",
)
async def test_a_backend_that_is_busy(front: Front, other: FakeBackend) -> None:
    front.backend.answer_to(Opcode.READ, None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, front.files)
        await wait_all_tasks_blocked()
        begun = trio.current_time()
        nursery.start_soon(stat, front.files)
        async with other.connection() as stream:
            with trio.fail_after(FOR_EVER), pytest.raises(BackendTimeout, match="all that it has"):
                await front.session.move(stream, lambda: pytest.fail("it moved"))
        assert trio.current_time() - begun < 2
        [request] = front.backend.named(Opcode.READ)
        answer = front.backend.serve_files(request)
        assert answer is not None
        front.backend.reply(request, answer)
    await front.serves()


@pytest.mark.parametrize(
    ("whose", "request_"),
    [
        pytest.param(
            whose,
            request,
            marks=fault(
                f"{whose}-dies-at-{request.name.lower().replace('_', '-')}",
                done=f"{who} ends at {request.name}, when no backend has the rings for certain",
                must=DOWN,
            ),
            id=f"{whose}-{request.name}",
        )
        for whose, who, request in [
            ("mover", "the backend that is to be moved", Request.GET_VRING_BASE),
            ("mover", "the backend that is to be moved", Request.SET_DEVICE_STATE_FD),
            ("mover", "the backend that is to be moved", Request.CHECK_DEVICE_STATE),
            ("successor", "the other backend", Request.SET_VRING_BASE),
            ("successor", "the other backend", Request.SET_VRING_KICK),
            ("successor", "the other backend", Request.SET_VRING_ENABLE),
        ]
    ],
)
async def test_it_is_lost(front: Front, other: FakeBackend, whose: str, request_: Request) -> None:
    (front.backend if whose == "mover" else other).dies_at.add(request_)
    async with other.connection() as stream:
        with trio.fail_after(FOR_EVER), pytest.raises(BackendDown):
            await front.session.move(stream, lambda: pytest.fail("it moved"))
        await wait_all_tasks_blocked()
    await front.is_over()


@fault(
    "successor-dies-as-it-has-the-rings",
    done="the other backend acknowledges the last message that gives it the rings, and ends",
    must=DOWN,
)
async def test_one_that_ends_as_it_has_the_rings_is_lost() -> None:
    """Of the two tasks that learn of it either may be first, so it happens some times."""
    for _ in range(16):
        backend, other = (FakeBackend({b"Image": CONTENT}) for _ in range(2))
        backend.protocol_features = other.protocol_features = MQ | REPLY_ACK | DEVICE_STATE
        other.altered[Request.SET_VRING_ENABLE] = functools.partial(last_words, other)
        async with backend.session() as session, other.connection() as stream:
            with trio.fail_after(FOR_EVER), contextlib.suppress(BackendDown):
                await session.move(stream, lambda: None)
            await wait_all_tasks_blocked()
            assert session.lost


def last_words(backend: FakeBackend, reply: Reply) -> Reply | None:
    """Have a backend end right behind a reply, if that is the last one of its kind."""
    if backend.messages.count(Request(reply.number)) < backend.queues:
        return reply
    backend.say(reply.encode())
    backend.die()
    return None


@fault(
    "another-ring-index",
    done="a backend whose rings are stopped tells another index than the driver has",
    must="The driver's own index counts: the session moves, and all is served.",
)
async def test_an_index_that_is_not_so(front: Front, other: FakeBackend) -> None:
    front.backend.altered[Request.GET_VRING_BASE] = lambda reply: reply._replace(
        payload=struct.pack("=II", 1, 7)
    )
    async with moved(front, other) as later:
        await later.serves()


@pytest.mark.parametrize("name", ["pipe2", "open"])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_no_pipe(
    front: Front, other: FakeBackend, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    failure = Failure(SystemCall(os, name, "vuserd.device.handover"), number, monkeypatch)
    await stays(front, other, "no pipe for the backend's state")
    assert failure.happened
    assert len(os.listdir("/proc/self/fd")) == before
