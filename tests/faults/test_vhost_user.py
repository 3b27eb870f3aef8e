"""Vhost-user replies: what comes over the socket instead of the answer."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from struct import pack

import pytest
import trio
from trio.testing import MockClock

from protocol.vhost_user import Request
from tests.fake.backend import FakeBackend, Reply
from tests.faults.catalogue import REFUSED, UNHARMED, fault
from tests.faults.harness import CONTENT, FOR_EVER, Front, read
from vuserd.errors import BackendBroken, BackendError, BackendTimeout
from vuserd.fs.filesystem import FileSystem

Alter = Callable[[Reply], Reply | None]


def row(name: str, alter: Alter, words: str, done: str, *marks: pytest.MarkDecorator) -> object:
    return pytest.param(alter, words, marks=[fault(name, done=done, must=REFUSED), *marks], id=name)


@pytest.mark.parametrize("request_", [Request.GET_FEATURES, Request.SET_OWNER])
@pytest.mark.parametrize(
    ("alter", "words"),
    [
        row(
            "reply-of-another-request",
            lambda reply: reply._replace(number=Request.SET_MEM_TABLE),
            "a reply to vhost-user request 5",
            "a vhost-user reply has the number of another request",
        ),
        row(
            "reply-number-unknown",
            lambda reply: reply._replace(number=0xFFFFFFFF),
            "a reply to vhost-user request 4294967295",
            "a vhost-user reply has a number that no request has",
        ),
        row(
            "reply-version-0",
            lambda reply: reply._replace(flags=4),
            "vhost-user version 0",
            "a vhost-user reply has version 0",
        ),
        row(
            "reply-version-2",
            lambda reply: reply._replace(flags=6),
            "vhost-user version 2",
            "a vhost-user reply has version 2",
        ),
        row(
            "reply-flag-missing",
            lambda reply: reply._replace(flags=1),
            "no REPLY flag",
            "a vhost-user reply does not say that it is one",
        ),
        row(
            "reply-size-huge",
            lambda reply: reply._replace(size=0xFFFFFFFF),
            "a payload of 4294967295 bytes",
            "a vhost-user reply announces 4 GiB",
        ),
        row(
            "reply-payload-empty",
            lambda reply: reply._replace(payload=b""),
            "a payload of 0 bytes where 8 belong",
            "a vhost-user reply has no payload",
        ),
        row(
            "reply-payload-short",
            lambda reply: reply._replace(payload=bytes(4)),
            "a payload of 4 bytes where 8 belong",
            "a vhost-user reply has 4 bytes of payload where 8 belong",
        ),
        row(
            "reply-payload-long",
            lambda reply: reply._replace(payload=bytes(4096)),
            "a payload of 4096 bytes where 8 belong",
            "a vhost-user reply has 4096 bytes of payload where 8 belong",
        ),
        row(
            "reply-followed-by-bytes",
            lambda reply: reply._replace(followed_by=bytes(12)),
            "a vhost-user message that was not requested|a reply to vhost-user request 0",
            "a vhost-user reply is followed by bytes that belong to nothing",
        ),
        row(
            "reply-twice",
            lambda reply: reply._replace(followed_by=reply.encode()),
            "a vhost-user message that was not requested|a reply to vhost-user request",
            "a vhost-user reply comes twice",
        ),
    ],
)
async def test_a_reply_that_is_none_refuses_the_session(
    backend: FakeBackend, request_: Request, alter: Alter, words: str
) -> None:
    backend.altered = {request_: alter}
    with pytest.raises(BackendBroken, match=words):
        async with backend.session():
            pytest.fail("the session came up")


@contextmanager
def pipes(count: int) -> Iterator[list[int]]:
    ends = [end for _ in range(count) for end in os.pipe()]
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(
            1,
            marks=fault(
                "descriptors-unasked",
                done="a vhost-user reply that has none brings two descriptors",
                must=REFUSED + " The descriptors are closed.",
            ),
            id="descriptors-unasked",
        ),
        pytest.param(
            60,
            marks=fault(
                "descriptors-many",
                done="a vhost-user reply brings 120 descriptors",
                must=REFUSED + " The descriptors are closed.",
            ),
            id="descriptors-many",
        ),
    ],
)
async def test_descriptors_that_nobody_asked_for(backend: FakeBackend, count: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pipes(count) as ends:
        backend.altered = {Request.GET_FEATURES: lambda reply: reply._replace(descriptors=ends)}
        with pytest.raises(BackendError) as raised:
            async with backend.session():
                pytest.fail("the session came up")
    with trio.fail_after(FOR_EVER):
        while len(os.listdir("/proc/self/fd")) > before:  # its socket is closed in a thread
            await trio.lowlevel.checkpoint()
    assert "descriptors with the reply" in str(raised.value)


@pytest.mark.parametrize("piece", [1, 5, 11, 13])
@fault(
    "replies-in-pieces",
    done="every vhost-user reply comes in pieces of 1, 5, 11 or 13 bytes",
    must=UNHARMED,
)
async def test_replies_in_pieces(backend: FakeBackend, piece: int) -> None:
    backend.altered = {request: lambda reply: reply._replace(piece=piece) for request in Request}
    async with backend.session() as session:
        assert await read(FileSystem(session, 10)) == CONTENT


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(
            6,
            marks=fault(
                "reply-header-unfinished",
                done="half of a vhost-user reply's header comes, and no more",
                must="The session does not come up: TIMEOUT.",
            ),
            id="reply-header-unfinished",
        ),
        pytest.param(
            16,
            marks=fault(
                "reply-payload-unfinished",
                done="a vhost-user reply's payload ends in its middle, and no more comes",
                must="The session does not come up: TIMEOUT.",
            ),
            id="reply-payload-unfinished",
        ),
    ],
)
async def test_a_reply_that_is_never_finished(
    backend: FakeBackend,
    size: int,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    def begin(reply: Reply) -> None:
        backend.say(reply.encode()[:size])

    backend.altered = {Request.GET_QUEUE_NUM: begin}
    with pytest.raises(BackendTimeout, match="did not answer GET_QUEUE_NUM within 10 s") as raised:
        async with backend.session():
            pytest.fail("the session came up")
    assert raised.value.code == "TIMEOUT"


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(
            pack("=IIIQ", Request.GET_FEATURES, 5, 8, 0),
            marks=fault(
                "message-unasked",
                done="a vhost-user reply comes in the middle of a session, to no request",
                must="The session is declared broken with this cause, and all callers are told.",
            ),
            id="message-unasked",
        ),
        pytest.param(
            os.urandom(65536),
            marks=fault(
                "socket-garbage",
                done="64 KiB of garbage come over the vhost-user socket",
                must="The session is declared broken with this cause, and all callers are told.",
            ),
            id="socket-garbage",
        ),
    ],
)
async def test_bytes_that_nobody_asked_for(front: Front, message: bytes) -> None:
    front.backend.say(message)
    with trio.fail_after(FOR_EVER):
        reason = await front.session.wait_lost()
    assert isinstance(reason, BackendBroken)
    assert str(reason) == "a vhost-user message that was not requested"
    await front.is_over()


@fault(
    "ring-base-odd",
    done="when the session ends, GET_VRING_BASE is answered with a wrong queue and index",
    must="The session ends all the same.",
)
async def test_an_odd_ring_base_at_the_end(backend: FakeBackend) -> None:
    backend.altered = {
        Request.GET_VRING_BASE: lambda reply: reply._replace(payload=pack("=II", 77, 1 << 31))
    }
    async with backend.session() as session:
        assert await read(FileSystem(session, 10)) == CONTENT
