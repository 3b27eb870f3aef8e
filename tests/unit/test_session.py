"""Opening and ending a session: the order of messages, and what a backend has to offer."""

import gc
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final, NoReturn

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from memory import virtqueue
from memory.fence import NoFenceError
from memory.foreign import ForeignRegion
from protocol import fuse
from protocol.fuse import Opcode
from protocol.vhost_user import Request
from tests.fake.backend import (
    CONFIGURE_MEM_SLOTS,
    PROTOCOL_FEATURES,
    REPLY_ACK,
    Answer,
    FakeBackend,
    FuseRequest,
)
from tests.listings import page
from vuserd.delivery.attached import AttachedMemory
from vuserd.delivery.image import image_delivery
from vuserd.delivery.inline import read_inline
from vuserd.delivery.one_version import deliver_whole
from vuserd.delivery.placements import ChangeLocks
from vuserd.device.session import Session
from vuserd.errors import BackendBroken, BackendDown, BackendError, BackendTimeout
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.walk import TreeWalk

#: A file that takes several READs.
LONG: Final = 3 << 20


async def test_messages_come_in_the_order_that_every_backend_takes() -> None:
    backend = FakeBackend()
    async with backend.session():
        ring = [
            Request.SET_VRING_NUM,
            Request.SET_VRING_BASE,
            Request.SET_VRING_ADDR,
            Request.SET_VRING_KICK,
            Request.SET_VRING_CALL,
            Request.SET_VRING_ENABLE,
        ]
        assert backend.messages == [
            Request.GET_FEATURES,
            Request.GET_PROTOCOL_FEATURES,
            Request.SET_PROTOCOL_FEATURES,
            Request.GET_QUEUE_NUM,
            Request.SET_OWNER,
            Request.SET_FEATURES,
            Request.SET_MEM_TABLE,
            *ring,
            *ring,
        ]
        assert [request.opcode for request in backend.requests] == [Opcode.INIT]
    assert backend.messages[-2:] == [Request.GET_VRING_BASE] * 2


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("features", PROTOCOL_FEATURES, "lacks virtio features: VERSION_1"),
        ("protocol_features", REPLY_ACK, "lacks vhost-user features: MQ"),
        ("queues", 1, "has 1 queues"),
        ("refused", {Request.SET_MEM_TABLE: 1}, "refused SET_MEM_TABLE"),
        ("max_pages", 8, "READs of 32768 bytes only"),
    ],
)
async def test_a_backend_that_offers_too_little_is_refused(
    attribute: str, value: object, words: str
) -> None:
    backend = FakeBackend()
    setattr(backend, attribute, value)
    with pytest.raises(BackendBroken, match=words):
        async with backend.session():
            pytest.fail("the session came up")


@pytest.mark.parametrize("silent", [Request.GET_FEATURES, Request.SET_VRING_CALL])
async def test_a_backend_that_does_not_answer_is_given_up(
    silent: Request,
    autojump_clock: object,  # noqa: ARG001 - ten seconds pass at once
) -> None:
    backend = FakeBackend()
    backend.ignored = {silent}
    with pytest.raises(BackendTimeout, match=f"did not answer {silent.name} within 10 s"):
        async with backend.session():
            pytest.fail("the session came up")


async def test_a_machine_without_a_memory_fence_has_no_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find() -> NoReturn:
        raise NoFenceError("install libatomic")

    monkeypatch.setattr(virtqueue, "own_fence", find)
    with pytest.raises(BackendDown, match=r"^install libatomic$"):
        async with FakeBackend().session():
            pytest.fail("the session came up")


async def test_a_backend_that_dies_while_it_starts_is_told_apart() -> None:
    backend = FakeBackend()

    def die(_: object) -> Answer | None:
        backend.die()
        return None

    backend.answer = die
    with pytest.raises(BackendDown):
        async with backend.session():
            pytest.fail("the session came up")


async def test_the_death_of_a_backend_is_noticed_without_a_request() -> None:
    backend = FakeBackend()
    async with backend.session() as session:
        backend.die()
        lost: BackendError = await session.wait_lost()
        assert isinstance(lost, BackendDown)


async def lose_a_session_with_requests() -> None:
    backend = FakeBackend()
    backend.answer_to(Opcode.STATFS, None)
    async with backend.session() as session, trio.open_nursery() as nursery:

        async def statfs() -> None:
            with pytest.raises(BackendDown):
                await session.lane.call(fuse.statfs(fuse.ROOT_ID), fuse.decode_statfs)

        for _ in range(3):
            nursery.start_soon(statfs)
        await wait_all_tasks_blocked()
        backend.die()


@pytest.fixture
def _memory_goes_at_once() -> Iterator[None]:
    """Check that neither a session nor its memory waits for the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        yield
        assert not [each for each in gc.get_objects() if isinstance(each, Session)]
        assert "vuserd-device" not in Path("/proc/self/maps").read_text()
    finally:
        gc.enable()


@pytest.mark.usefixtures("_memory_goes_at_once")
def test_the_memory_of_a_lost_session_goes_with_it() -> None:
    trio.run(lose_a_session_with_requests)


async def read(files: FileSystem) -> None:
    await read_inline(files, b"Image", 0, LONG)


async def make(files: FileSystem) -> None:
    await deliver_whole(files, b"Image", image_delivery())


async def load(files: FileSystem) -> None:
    descriptor = os.memfd_create("client", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, LONG)
    memory = AttachedMemory(ForeignRegion(descriptor, LONG), ChangeLocks())
    try:
        await memory.load(files, b"Image", 0, 0, None)
    finally:
        await memory.detach()


async def list_(files: FileSystem) -> None:
    await page(files, attributes=True, limit=10)


async def walk(files: FileSystem) -> None:
    await TreeWalk(b"", attributes=False).next_page(files, 10)


async def lose_a_session(way: Callable[[FileSystem], Awaitable[None]], how: str) -> None:
    kept = {Opcode.READ, Opcode.READDIR, Opcode.READDIRPLUS}
    backend = FakeBackend({b"Image": bytes(LONG)})
    backend.protocol_features |= CONFIGURE_MEM_SLOTS

    def answer(request: FuseRequest) -> Answer | None:
        honest = backend.serve_files(request)
        if honest is None or request.opcode not in kept:
            return honest
        return honest._replace(unique=1) if how == "lies" else None

    backend.answer = answer
    async with backend.session() as session, trio.open_nursery() as nursery:

        async def use() -> None:
            files = FileSystem(session, idle_nodes=10)
            with pytest.raises(BackendError):
                await way(files)
            files.close()

        nursery.start_soon(use)
        if how == "dies":
            await wait_all_tasks_blocked()
        if how == "is late":
            await trio.sleep(30)
        backend.die()


@pytest.mark.usefixtures("_memory_goes_at_once")
@pytest.mark.parametrize("how", ["dies", "is late", "lies"])
@pytest.mark.parametrize("way", [read, make, load, list_, walk])
def test_it_goes_whatever_was_asked_of_it(
    way: Callable[[FileSystem], Awaitable[None]], how: str
) -> None:
    trio.run(lose_a_session, way, how, clock=MockClock(autojump_threshold=0))


async def lose_a_session_of_attached_memory() -> None:
    """Load from one session, and once that is lost from the next one, as a call that goes on."""
    descriptor = os.memfd_create("client", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, LONG)
    memory = AttachedMemory(ForeignRegion(descriptor, LONG), ChangeLocks())
    for _ in range(2):
        backend = FakeBackend({b"Image": b"kernel"})
        backend.protocol_features |= CONFIGURE_MEM_SLOTS
        async with backend.session() as session:
            files = FileSystem(session, idle_nodes=10)
            assert await memory.load(files, b"Image", 0, 0, None) == len(b"kernel")
            files.close()
            backend.die()
            await session.wait_lost()
        del session, files
        assert len([each for each in gc.get_objects() if isinstance(each, Session)]) == 1
    await memory.detach()


@pytest.mark.usefixtures("_memory_goes_at_once")
def test_it_goes_while_attached_memory_is_loaded_from_the_next_one() -> None:
    trio.run(lose_a_session_of_attached_memory)
