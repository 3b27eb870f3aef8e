"""Calls without a task whose client goes away, whose daemon ends, or whose backend dies."""

import socket
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio
from trio.testing import MockClock

from protocol.fuse import Attributes, Opcode
from tests.fake.backend import FakeBackend
from tests.fake.files import Answer, FuseRequest
from tests.faults.harness import CONTENT, FOR_EVER, exported, until
from tests.faults.system_calls import FILE, daemon_on, is_served
from vuserd.client import TrioClient, calls
from vuserd.client.calls import Call
from vuserd.client.errors import RemoteError
from vuserd.device.procedure import Procedure
from vuserd.errors import BackendDown
from vuserd.exports.calls import PAST, Lost
from vuserd.fs.filesystem import FileSystem
from vuserd.rpc.access import Rights, VisibleExports
from vuserd.rpc.peer_log import PeerLog
from vuserd.tasks.turns import SHARER, Sharer

CALLS = [("stat", [FILE, "Image"]), ("read", [FILE, "Image", 0, 100])]


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend({b"Image": CONTENT, b"poison": b"is what kills it"})


@pytest.fixture
def held(backend: FakeBackend) -> list[FuseRequest]:
    """Keep the answers of LOOKUP back that are asked for from now on."""
    return backend.hold(lambda request: request.opcode is Opcode.LOOKUP)


async def is_at_rest(address: str) -> None:
    """Wait until nothing is owed for what a client has left behind."""
    with trio.fail_after(FOR_EVER):
        async with TrioClient.connect(address) as client:
            while True:
                status = await client.status()
                [export] = status["exports"]
                if not export["in_flight"] and len(status["clients"]) == 1:
                    break
                await trio.sleep(0.01)
            assert export["payloads"] == 0
    await is_served(address, CONTENT)


@pytest.mark.parametrize(("method", "params"), CALLS)
async def test_a_client_that_goes_away_leaves_nothing(
    backend: FakeBackend, held: list[FuseRequest], tmp_path: Path, method: str, params: list[Any]
) -> None:
    async with daemon_on(backend, str(tmp_path)) as address:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(address)
            client.sendall(msgpack.packb([0, 1, method, params]))
            await until(lambda: held)
        await until(lambda: backend.named(Opcode.INTERRUPT))
        backend.let_go(held)
        await is_at_rest(address)


@pytest.mark.parametrize(("method", "params"), CALLS)
async def test_a_daemon_that_ends_cuts_it_off_with_an_answer(
    backend: FakeBackend,
    held: list[FuseRequest],
    tmp_path: Path,
    method: str,
    params: list[Any],
    autojump_clock: MockClock,
) -> None:
    """When its time for calls in progress is over; nothing is left to do for an autojump clock."""
    autojump_clock.autojump_threshold = 0.1
    async with daemon_on(backend, str(tmp_path)) as address:
        client = trio.socket.socket(trio.socket.AF_UNIX)
        await client.connect(address)
        await client.send(msgpack.packb([0, 1, method, params]))
        await until(lambda: held)
    answer = msgpack.unpackb(await client.recv(4096))
    assert answer[:2] == [1, 1]
    assert answer[2]["code"] == "SHUTTING_DOWN"
    client.close()


@pytest.mark.parametrize("method", ["stat", "read"])
async def test_one_that_kills_backends_kills_two(
    backend: FakeBackend, tmp_path: Path, method: str
) -> None:
    killed = 0

    def answer(request: FuseRequest) -> Answer | None:
        nonlocal killed
        if request.opcode is Opcode.LOOKUP and request.body == b"poison\0":
            killed += 1
            backend.die()
            return None
        return backend.serve_files(request)

    backend.answer = answer
    async with daemon_on(backend, str(tmp_path)) as address, TrioClient.connect(address) as client:
        await is_served(address, CONTENT)
        call: Call[Any] = calls.stat(FILE, "poison")
        if method == "read":
            call = calls.read_into(FILE, "poison", 0, bytearray(100))
        with trio.fail_after(FOR_EVER), pytest.raises(RemoteError) as lost:
            await client.call(call)
        assert lost.value.code == "BACKEND_DOWN"
        assert killed == 2
        await is_served(address, CONTENT)


async def test_a_lie_that_shows_when_its_client_is_gone_ends_the_session_alone(
    backend: FakeBackend, tmp_path: Path
) -> None:
    """One of the answers that the client left behind is none; the other is still to come."""
    asked: list[Opcode] = []

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode not in (Opcode.LOOKUP, Opcode.OPEN):
            return backend.serve_files(request)
        asked.append(request.opcode)
        return Answer(b"is no entry") if request.opcode is Opcode.LOOKUP else None

    async with daemon_on(backend, str(tmp_path)) as address:
        await is_served(address, CONTENT)
        backend.answer = answer
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(address)
            client.sendall(msgpack.packb([0, 1, "read", [FILE, "Image", 0, 100]]))
            await until(lambda: len(asked) == 2)
            await trio.testing.wait_all_tasks_blocked()  # the lie has come
        backend.answer = backend.serve_files
        await until(lambda: backend.sessions == 2)
        await is_served(address, CONTENT)


async def test_reads_without_a_free_buffer_are_not_begun_in_vain(
    backend: FakeBackend, tmp_path: Path
) -> None:
    """A hundred come at once, and there are 32 buffers."""
    async with daemon_on(backend, str(tmp_path)) as address, TrioClient.connect(address) as client:
        await is_served(address, CONTENT)
        looked_up = len(backend.named(Opcode.LOOKUP))
        with trio.fail_after(FOR_EVER):
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(client.read, FILE, "Image", 0, len(CONTENT))
        assert len(backend.named(Opcode.LOOKUP)) - looked_up < 130


async def test_a_fault_of_the_daemons_ends_the_call_alone(
    backend: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise LookupError

    async with daemon_on(backend, str(tmp_path)) as address, TrioClient.connect(address) as client:
        await is_served(address, CONTENT)
        for owner, name in ((VisibleExports, "find"), (FileSystem, "attributes")):
            with monkeypatch.context() as patched:
                patched.setattr(owner, name, broken)
                with trio.fail_after(FOR_EVER), pytest.raises(RemoteError) as failed:
                    await client.stat(FILE, "Image")
            assert failed.value.code == "INTERNAL"
        await is_served(address, CONTENT)


async def test_a_lost_backend_gives_it_no_more_time(
    backend: FakeBackend, held: list[FuseRequest], tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It waits in its task for the next one as long as it would have without having lost one."""
    autojump_clock.autojump_threshold = 0.1
    ended: list[Exception | None] = []

    def stat(files: FileSystem) -> Procedure[Attributes]:
        return files.attributes(b"Image", follow=True)

    async with exported(backend, str(tmp_path / "backend.sock")) as export:
        began = trio.current_time()
        errand = export.errand(None, stat, lambda _, failure: ended.append(failure))
        assert errand is not None
        errand.resume()
        await until(lambda: held)
        await trio.sleep_until(began + 6)
        backend.on_connect = backend.die  # and comes back no more
        backend.die()
        await until(lambda: ended)
        [lost] = ended
        assert isinstance(lost, Lost)
        PAST.set(lost.past)
        with pytest.raises(BackendDown):
            await export.call(lambda files: files.stat(b"Image", follow=True))
        assert trio.current_time() == pytest.approx(began + export.config.session.timeout, abs=1)


async def test_a_call_whose_backend_another_one_loses_takes_turns_in_its_task(
    backend: FakeBackend,
    held: list[FuseRequest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What ends the first call, a lie, ends the session, and with it the second one."""
    sharers: list[Sharer | None] = []
    stat = FileSystem.stat

    async def stat_in_a_task(files: FileSystem, path: bytes, *, follow: bool) -> Attributes:
        sharers.append(SHARER.get())
        return await stat(files, path, follow=follow)

    monkeypatch.setattr(FileSystem, "stat", stat_in_a_task)
    async with daemon_on(backend, str(tmp_path)) as address, TrioClient.connect(address) as client:
        async with trio.open_nursery() as nursery:
            for path in ("Image", "poison"):
                nursery.start_soon(client.stat, FILE, path)
            await until(lambda: len(held) == 2)
            backend.answer = backend.serve_files
            backend.reply(held[0], Answer(b"is no entry"))
        assert len(sharers) == 2
        assert None not in sharers


@pytest.mark.parametrize(("method", "params"), CALLS)
async def test_a_refusal_is_noted_once(
    backend: FakeBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    params: list[Any],
) -> None:
    noted: list[str] = []
    monkeypatch.setattr(PeerLog, "note", lambda _, __, what: noted.append(what))
    monkeypatch.setattr(Rights, "sees", lambda *_: False)
    async with daemon_on(backend, str(tmp_path)) as address, TrioClient.connect(address) as client:
        with trio.fail_after(FOR_EVER), pytest.raises(RemoteError) as refused:
            await client.call(Call(method, params, dict))
    assert refused.value.code == "UNKNOWN_EXPORT"
    assert noted == [f"export {FILE}"]


async def test_reads_that_hang_leave_others_their_buffers(
    backend: FakeBackend, tmp_path: Path
) -> None:
    """More of them than there are buffers, of a file that is not even found yet."""
    kept: list[FuseRequest] = []

    def answer(request: FuseRequest) -> Answer | None:
        if request.body != b"poison\0":
            return backend.serve_files(request)
        kept.append(request)
        return None

    backend.answer = answer
    async with daemon_on(backend, str(tmp_path)) as address:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(address)
            hanging = [[0, place, "read", [FILE, "poison", 0, 1]] for place in range(40)]
            client.sendall(b"".join(map(msgpack.packb, hanging)))
            await until(lambda: len(kept) == len(hanging))
            await is_served(address, CONTENT)
            assert not backend.named(Opcode.INTERRUPT)  # they hang still
            backend.let_go(kept)
