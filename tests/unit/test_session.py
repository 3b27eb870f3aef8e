"""Opening and ending a session: the order of messages, and what a backend may not lack."""

import gc
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol import fuse
from protocol.fuse import Opcode
from protocol.vhost_user import Request
from tests.fake.backend import PROTOCOL_FEATURES, REPLY_ACK, Answer, FakeBackend
from vuserd.errors import BackendBroken, BackendDown, BackendError, BackendTimeout


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
                await session.channel.call(fuse.statfs(fuse.ROOT_ID), fuse.decode_statfs)

        for _ in range(3):
            nursery.start_soon(statfs)
        await wait_all_tasks_blocked()
        backend.die()


def test_the_memory_of_a_lost_session_goes_with_it() -> None:
    """At once, and not when the garbage collector finds what the backend had of it."""
    gc.collect()
    gc.disable()
    try:
        trio.run(lose_a_session_with_requests)
        assert "vuserd-device" not in Path("/proc/self/maps").read_text()
    finally:
        gc.enable()
