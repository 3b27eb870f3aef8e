"""Clients that go away, with calls in flight."""

import gc
import logging
import socket
import weakref
from collections.abc import Iterator

import msgpack
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.fake.bare_daemon import Bare, NoManager
from vuserd.config.model import ClientLimits
from vuserd.rpc import send_buffers
from vuserd.rpc.counters import Counters
from vuserd.wire.codec import encode_request
from vuserd.wire.descriptors import ancillary_with


class Manager:
    """Numbers for Prometheus, which come when they may."""

    def __init__(self) -> None:
        self.may_answer = trio.Event()

    async def metrics(self) -> str:
        await self.may_answer.wait()
        return "numbers"


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Manager:
    made = Manager()
    monkeypatch.setattr(NoManager, "metrics", lambda _: made.metrics())
    return made


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield ours, theirs
    theirs.close()


async def test_the_calls_of_one_that_is_gone_are_cancelled(
    manager: Manager, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    counters = Counters()
    theirs.sendall(encode_request(1, "metrics", []))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Bare(ours, None, counters).run)
            await wait_all_tasks_blocked()
            assert counters.in_flight == 1
            theirs.close()
    assert not manager.may_answer.is_set()
    assert counters.methods["metrics"].ends == {"OK": 0, "GONE": 1}
    assert counters.in_flight == 0


async def test_one_over_its_limits_that_is_gone_is_noticed(
    manager: Manager, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Its next request waits for a reply to leave, and nothing is read from it."""
    ours, theirs = pair
    counters = Counters()
    most = ClientLimits().requests
    for number in range(most + 2):
        theirs.sendall(encode_request(number, "metrics", []))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Bare(ours, None, counters).run)
            await wait_all_tasks_blocked()
            assert counters.in_flight == most
            theirs.close()
    assert not manager.may_answer.is_set()
    assert counters.methods["metrics"].ends == {"OK": 0, "GONE": most}
    assert counters.in_flight == 0


async def test_one_over_its_limits_is_answered_bit_by_bit(
    manager: Manager, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    most = 3 * ClientLimits().requests
    for number in range(most):
        theirs.sendall(encode_request(number, "metrics", []))
    theirs.shutdown(socket.SHUT_WR)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Bare(ours, None, Counters()).run)
            await wait_all_tasks_blocked()
            manager.may_answer.set()
    unpacker = msgpack.Unpacker()
    while received := theirs.recv(1 << 16):
        unpacker.feed(received)
    assert sorted(message[1] for message in unpacker) == [*range(most)]


async def test_one_that_asks_for_no_more_and_then_goes(
    manager: Manager, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    counters = Counters()
    theirs.sendall(encode_request(1, "metrics", []))
    theirs.shutdown(socket.SHUT_WR)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Bare(ours, None, counters).run)
            await wait_all_tasks_blocked()
            assert counters.in_flight == 1
            theirs.close()
    assert not manager.may_answer.is_set()
    assert counters.methods["metrics"].ends == {"OK": 0, "GONE": 1}


@pytest.mark.parametrize("flags", [0, socket.MSG_OOB], ids=["plain", "urgent"])
async def test_requests_in_pieces_that_came_before_it_was_served(
    pair: tuple[socket.socket, socket.socket], flags: int
) -> None:
    """Descriptors and urgent data lie between, where a receive stops."""
    ours, theirs = pair
    whole = encode_request(1, "exports", [])
    theirs.send(whole[:3])
    theirs.sendmsg([whole[3:4]], ancillary_with([theirs.fileno()]))
    try:
        theirs.send(whole[4:5], flags)
    except OSError as error:
        pytest.skip(f"no urgent data on unix sockets: {error}")
    theirs.send(whole[5:])
    received = b""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Bare(ours, None, Counters()).run)
            await trio.lowlevel.wait_readable(theirs)
            received = theirs.recv(1000)
            theirs.shutdown(socket.SHUT_RDWR)
    assert msgpack.unpackb(received) == [1, 1, None, []]


async def test_errors_as_neovim_shows_them(pair: tuple[socket.socket, socket.socket]) -> None:
    """All of a connection has them so from that answer on, until it wants maps again."""
    ours, theirs = pair

    async def asked(method: str, *params: object) -> object:
        theirs.sendall(encode_request(1, method, [*params]))
        await trio.lowlevel.wait_readable(theirs)
        return msgpack.unpackb(theirs.recv(10_000))[2]

    missing = "there is no export 'files'"
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Bare(ours, None, Counters()).run)
            assert await asked("errors_as", "pair") is None
            assert await asked("stat", "files", "/") == [0, f"UNKNOWN_EXPORT: {missing}"]
            refused = [0, "BAD_REQUEST: form: one of map, pair is wanted"]
            assert await asked("errors_as", "pears") == refused
            assert await asked("errors_as", "map") is None
            error = {"code": "UNKNOWN_EXPORT", "message": missing}
            assert await asked("stat", "files", "/") == error
            assert await asked("errors_as", "pair") is None
            theirs.sendall(b"\xc1")  # no MessagePack: a notification says so
            await trio.lowlevel.wait_readable(theirs)
            [_, name, [[kind, text]]] = msgpack.unpackb(theirs.recv(10_000))
            assert (name, kind) == ("error", 0)
            assert text.startswith("BAD_REQUEST: ")


async def test_a_request_that_is_never_whole(
    pair: tuple[socket.socket, socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    ours, theirs = pair
    theirs.sendall(encode_request(1, "exports", [])[:3])
    await Bare(ours, None, Counters()).run()
    assert autojump_clock.current_time() == pytest.approx(ClientLimits().stall, abs=1)
    [_, name, [error]] = msgpack.unpackb(theirs.recv(1000))
    assert (name, error["code"]) == ("error", "TIMEOUT")
    assert theirs.recv(1) == b""


async def test_one_that_asks_for_no_more_is_answered(
    manager: Manager, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    theirs.sendall(encode_request(1, "metrics", []))
    theirs.shutdown(socket.SHUT_WR)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Bare(ours, None, Counters()).run)
            await wait_all_tasks_blocked()
            manager.may_answer.set()
    assert b"numbers" in theirs.recv(100)
    assert theirs.recv(100) == b""


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(encode_request(1, "exports", []), id="a request"),
        pytest.param(b"\xc1", id="what is no message"),
    ],
)
async def test_nothing_of_one_that_is_gone_waits_for_the_garbage_collector(
    pair: tuple[socket.socket, socket.socket], sent: bytes
) -> None:
    ours, theirs = pair
    gc.disable()
    try:
        bare = Bare(ours, None, Counters())
        theirs.sendall(sent)
        theirs.shutdown(socket.SHUT_WR)
        with trio.fail_after(10):
            await bare.run()
        assert theirs.recv(1000)
        assert bare.connection is not None
        kept = weakref.ref(bare.connection)
        bare.connection = None
        assert kept() is None
    finally:
        gc.enable()


async def test_the_log_tells_who_was_dropped_and_why(
    manager: Manager,
    pair: tuple[socket.socket, socket.socket],
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    del autojump_clock
    ours, theirs = pair
    manager.may_answer.set()
    monkeypatch.setattr(send_buffers, "_WIDE", 4096)
    theirs.sendall(b"".join(encode_request(number, "api_info", []) for number in range(500)))
    bare = Bare(ours, None, Counters())
    with caplog.at_level(logging.INFO):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bare.run)
            await wait_all_tasks_blocked()
            assert bare.connection is not None
            peer = bare.connection.rights.peer
    who = f"a client of uid {peer.uid} (pid {peer.pid}) was dropped"
    assert f"{who}: it does not read" in caplog.text
