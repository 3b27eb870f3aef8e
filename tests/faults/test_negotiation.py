"""Negotiation: offers that do not suffice, and odd replies to INIT."""

import errno
from collections.abc import Callable
from typing import Any

import pytest

from protocol.fuse import Opcode
from protocol.vhost_user import Request
from tests.fake.backend import (
    CONFIGURE_MEM_SLOTS,
    MQ,
    PROTOCOL_FEATURES,
    REPLY_ACK,
    VERSION_1,
    FakeBackend,
)
from tests.fake.files import Answer
from tests.faults.catalogue import REFUSED, UNHARMED, fault
from tests.faults.harness import CONTENT, read
from vuserd.errors import BackendBroken, BackendError
from vuserd.fs.filesystem import FileSystem

REFUSABLE = [
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


async def is_refused(backend: FakeBackend, words: str) -> None:
    with pytest.raises(BackendBroken, match=words) as raised:
        async with backend.session():
            pytest.fail("the session came up")
    assert raised.value.code == "BACKEND_DOWN"


def row(name: str, attribute: str, value: object, words: str, done: str) -> object:
    return pytest.param(
        attribute, value, words, marks=fault(name, done=done, must=REFUSED), id=name
    )


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        row(
            "no-version-1",
            "features",
            PROTOCOL_FEATURES,
            "lacks virtio features: VERSION_1",
            "VERSION_1 is not offered",
        ),
        row(
            "no-protocol-features",
            "features",
            VERSION_1,
            "lacks virtio features: PROTOCOL_FEATURES",
            "vhost-user's protocol features are not offered",
        ),
        row(
            "no-reply-ack",
            "protocol_features",
            MQ,
            "lacks vhost-user features: REPLY_ACK",
            "REPLY_ACK is not offered",
        ),
        row(
            "no-multiqueue",
            "protocol_features",
            REPLY_ACK,
            "lacks vhost-user features: MQ",
            "MQ is not offered",
        ),
        row("no-features", "features", 0, "VERSION_1", "no feature at all is offered"),
        row("no-queues", "queues", 0, "has 0 queues", "the backend has no queues"),
        row("few-queues", "queues", 1, "has 1 queues", "the backend has one queue"),
        row(
            "init-few-pages",
            "max_pages",
            8,
            "READs of 32768 bytes only",
            "INIT allows 8 pages a request, less than one call of the RPC needs",
        ),
    ],
)
async def test_an_offer_that_does_not_suffice_is_refused(
    backend: FakeBackend, attribute: str, value: object, words: str
) -> None:
    setattr(backend, attribute, value)
    await is_refused(backend, words)


@pytest.mark.parametrize("request_", REFUSABLE, ids=lambda request: str(request.name))
@fault(
    "setup-refused", done="any message of the set-up is acknowledged with status 1", must=REFUSED
)
async def test_a_message_that_is_refused(backend: FakeBackend, request_: Request) -> None:
    backend.refused = {request_: 1}
    await is_refused(backend, rf"refused {request_.name} \(status 1\)")


@fault(
    "all-features",
    done="every feature bit is offered, those that mean different things to different backends too",
    must="Only what is known is taken, and the session comes up.",
)
async def test_every_feature_at_once(backend: FakeBackend) -> None:
    backend.features = (1 << 64) - 1
    backend.protocol_features = (1 << 64) - 1
    backend.queues = (1 << 64) - 1
    backend.memory_slots = (1 << 64) - 1
    async with backend.session() as session:
        assert await read(FileSystem(session, 10)) == CONTENT


@pytest.mark.parametrize(
    ("init", "words"),
    [
        pytest.param(
            lambda backend: backend.init_reply(minor=26),
            "FUSE 7.26, older than 7.27",
            marks=fault("init-minor-old", done="INIT answers FUSE 7.26", must=REFUSED),
            id="init-minor-old",
        ),
        pytest.param(
            lambda backend: backend.init_reply(major=6),
            "FUSE 6.38",
            marks=fault("init-major-old", done="INIT answers FUSE 6", must=REFUSED),
            id="init-major-old",
        ),
        pytest.param(
            lambda backend: backend.init_reply(major=8),
            "FUSE 8.38",
            marks=fault("init-major-new", done="INIT answers FUSE 8", must=REFUSED),
            id="init-major-new",
        ),
        pytest.param(
            lambda backend: backend.init_reply(flags=0),
            "READs of 131072 bytes only",
            marks=fault(
                "init-without-max-pages",
                done="INIT does not know MAX_PAGES, so that requests have 32 pages",
                must=REFUSED,
            ),
            id="init-without-max-pages",
        ),
        pytest.param(
            lambda backend: backend.init_reply()[:24],
            "24 bytes where 64 belong",
            marks=fault(
                "init-short", done="INIT answers with the struct of an old version", must=REFUSED
            ),
            id="init-short",
        ),
        pytest.param(
            lambda _: b"",
            "0 bytes where 64 belong",
            marks=fault("init-empty", done="INIT succeeds with no body", must=REFUSED),
            id="init-empty",
        ),
    ],
)
async def test_an_init_that_does_not_fit_is_refused(
    backend: FakeBackend, init: Callable[[FakeBackend], bytes], words: str
) -> None:
    backend.answer_to(Opcode.INIT, Answer(init(backend)))
    await is_refused(backend, words)


@fault("init-no-pages", done="INIT allows requests of 0 pages", must=REFUSED)
async def test_an_init_without_pages(backend: FakeBackend) -> None:
    backend.max_pages = 0
    await is_refused(backend, "requests of no pages at all")


@fault("init-refused", done="INIT is answered with EPROTO", must=REFUSED)
async def test_an_init_that_is_refused(backend: FakeBackend) -> None:
    backend.answer_to(Opcode.INIT, Answer(error=errno.EPROTO))
    with pytest.raises(BackendError, match="INIT"):
        async with backend.session():
            pytest.fail("the session came up")


@pytest.mark.parametrize(
    ("pages", "fields"),
    [
        pytest.param(
            0xFFFF,
            {},
            marks=fault("init-many-pages", done="INIT allows 65535 pages a request", must=UNHARMED),
            id="init-many-pages",
        ),
        pytest.param(
            256,
            {"max_write": 0},
            marks=fault("init-max-write-0", done="INIT says max_write 0", must=UNHARMED),
            id="init-max-write-0",
        ),
        pytest.param(
            256,
            {"flags": 0xFFFFFFFF, "minor": 0xFFFFFFFF},
            marks=fault(
                "init-all-flags", done="INIT has all flags and the greatest minor", must=UNHARMED
            ),
            id="init-all-flags",
        ),
    ],
)
async def test_an_init_with_odd_values(
    backend: FakeBackend, pages: int, fields: dict[str, Any]
) -> None:
    backend.max_pages = pages
    backend.answer_to(Opcode.INIT, Answer(backend.init_reply(**fields)))
    async with backend.session() as session:
        assert session.max_read == 1 << 20
        assert await read(FileSystem(session, 10)) == CONTENT


@fault(
    "no-memory-slots",
    done="the backend takes ADD_MEM_REG, but has 0 slots for it",
    must="The session comes up; a load into a client's memory gets BUSY.",
)
async def test_a_backend_without_memory_slots(backend: FakeBackend) -> None:
    backend.protocol_features |= CONFIGURE_MEM_SLOTS
    backend.memory_slots = 0
    async with backend.session() as session:
        assert await read(FileSystem(session, 10)) == CONTENT
        assert session.regions == 1
