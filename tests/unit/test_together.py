"""Equal calls that come at once are asked once, and each has its answer or its error."""

import contextlib
import gc
import os
import socket
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgpack
import pytest
import trio

from protocol.fuse import Opcode
from tests.fake.backend import Answer, FakeBackend, FuseRequest
from tests.faults.harness import CONTENT, FOR_EVER, until
from tests.faults.system_calls import FILE, daemon_on, is_served
from vuserd.config.model import Access
from vuserd.device.procedure import Done, Errand
from vuserd.exports.together import Joint, Together
from vuserd.rpc.access import Peer


class Caller:
    """A call that waits, or has found something; it may have others leave at its end."""

    def __init__(self) -> None:
        self.ends: list[object] = []
        self.others: list[tuple[Joint, Caller]] = []

    def end(self, found: Any, failure: Exception | None) -> None:
        self.ends.append(failure or found)
        for joint, other in self.others:
            joint.leave(other)


class Fakes:
    """Makes errands that end when they are told to."""

    def __init__(self) -> None:
        self.made: list[Done[Any]] = []
        self.begun: list[None] = []
        self.abandoned: list[None] = []

    def make(self, done: Done[Any]) -> Errand[Any]:
        self.made.append(done)
        return cast("Errand[Any]", self)

    def resume(self) -> None:
        self.begun.append(None)

    def abandon(self) -> None:
        self.abandoned.append(None)


def join(together: Together, fakes: Fakes, callers: Sequence[Caller], key: object = "") -> Joint:
    joint = together.find(key) or together.add(key, fakes.make)
    assert joint is not None
    for caller in callers:
        assert together.find(key) is joint
        joint.join(caller)
    return joint


def test_equal_ones_are_one_until_it_has_begun() -> None:
    together, fakes, callers = Together(), Fakes(), [Caller() for _ in range(4)]
    join(together, fakes, callers[:2])
    join(together, fakes, callers[2:3], "other")
    assert not fakes.begun
    together.begin()
    assert len(fakes.begun) == 2
    join(together, fakes, callers[3:])
    assert len(fakes.made) == 3
    fakes.made[0]("found", None)
    assert [caller.ends for caller in callers] == [["found"], ["found"], [], []]
    together.begin()
    assert len(fakes.begun) == 3


@pytest.mark.parametrize("has_begun", [False, True])
def test_who_leaves_is_told_nothing(has_begun: bool) -> None:
    together, fakes, (stays, leaves) = Together(), Fakes(), (Caller(), Caller())
    joint = join(together, fakes, [leaves, stays])
    if has_begun:
        together.begin()
    joint.leave(leaves)
    together.begin()
    assert len(fakes.begun) == 1
    error = ValueError()
    fakes.made[0](None, error)
    assert (stays.ends, leaves.ends, fakes.abandoned) == ([error], [], [])


@pytest.mark.parametrize("has_begun", [False, True])
def test_with_the_last_that_leaves_it_is_abandoned(has_begun: bool) -> None:
    together, fakes, callers = Together(), Fakes(), [Caller() for _ in range(3)]
    joint = join(together, fakes, callers[:2])
    if has_begun:
        together.begin()
    joint.leave(callers[0])
    joint.leave(callers[1])
    assert len(fakes.abandoned) == 1
    join(together, fakes, callers[2:])
    assert len(fakes.made) == 2  # nobody waits for what was abandoned
    together.begin()
    assert len(fakes.begun) == 1 + has_begun


def test_the_end_of_one_may_have_another_leave() -> None:
    together, fakes, callers = Together(), Fakes(), [Caller() for _ in range(3)]
    joint = join(together, fakes, callers)
    callers[0].others = [(joint, callers[2])]
    together.begin()
    fakes.made[0]("found", None)
    assert [caller.ends for caller in callers] == [["found"], ["found"], []]


def test_what_failed_is_not_kept_by_its_traceback() -> None:
    """Its frames would keep a lost session, and the memory of that mapped."""

    class Odd(Exception):  # noqa: N818
        pass

    class Raising(Caller):
        def end(self, found: Any, failure: Exception | None) -> None:
            self.ends.append(found)
            try:
                assert failure is not None
                raise failure
            except Odd:
                pass
            finally:
                del failure

    together, fakes = Together(), Fakes()
    join(together, fakes, [Raising()])
    together.begin()
    gc.disable()
    try:
        error = Odd()
        kept = weakref.ref(error)
        fakes.made[0](None, error)
        del error
        assert kept() is None
    finally:
        gc.enable()


def test_where_no_errand_is_to_be_had_nobody_waits() -> None:
    together = Together()
    assert together.add("", lambda _: None) is None
    assert together.find("") is None
    together.begin()


# -- at a daemon -----------------------------------------------------------------------------------


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend({b"Image": CONTENT, b"other": b""})


async def answers_to(address: str, *params: object) -> dict[int, list[Any]]:
    """Ask for ``stat`` of all at once; return the responses by their place."""
    requests = [msgpack.packb([0, place, "stat", each]) for place, each in enumerate(params)]
    unpacker = msgpack.Unpacker()
    found: dict[int, list[Any]] = {}
    with trio.fail_after(FOR_EVER), trio.socket.socket(socket.AF_UNIX) as client:
        await client.connect(address)
        await client.send(b"".join(requests))
        while len(found) < len(params):
            unpacker.feed(await client.recv(4096))
            found |= {message[1]: message for message in unpacker}
    return found


async def test_each_has_the_answer(backend: FakeBackend, tmp_path: Path) -> None:
    async with daemon_on(backend, str(tmp_path)) as address:
        before = len(backend.named(Opcode.LOOKUP))
        image, other = [FILE, "Image"], [FILE, "other"]
        found = await answers_to(address, image, other, image, other, image)
        assert len(backend.named(Opcode.LOOKUP)) == before + 2
        assert [found[place][3]["size"] for place in range(5)] == [
            len(CONTENT) if place % 2 == 0 else 0 for place in range(5)
        ]
        await is_served(address, CONTENT)


async def test_each_has_the_error(backend: FakeBackend, tmp_path: Path) -> None:
    async with daemon_on(backend, str(tmp_path)) as address:
        found = await answers_to(address, *[[FILE, "nothing"]] * 3)
        assert [found[place][2]["code"] for place in range(3)] == ["ENOENT"] * 3
        assert len(backend.named(Opcode.LOOKUP)) == 1


async def test_what_is_not_the_same_is_asked_by_itself(
    backend: FakeBackend, tmp_path: Path
) -> None:
    async with daemon_on(backend, str(tmp_path)) as address:
        options = [{}, {"follow": False}, {"split_times": True}]
        found = await answers_to(address, *([FILE, "Image", each] for each in options))
        assert len(backend.named(Opcode.LOOKUP)) == 3
        assert "mtime_ns" in found[1][3]
        assert "mtime_ns" not in found[2][3]


async def test_who_may_not_see_it_has_no_part_in_the_answer(
    backend: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clients of one user, in different groups, say the same in one pass."""
    groups = iter([{62_001}, {62_002}, {62_001}])

    def peer(_: socket.socket) -> Peer:
        return Peer(os.getpid(), 61_001, frozenset(next(groups)))

    monkeypatch.setattr(Peer, "of", peer)
    access = Access(groups=frozenset({62_001}))
    async with daemon_on(backend, str(tmp_path), access) as address:
        with contextlib.ExitStack() as stack, trio.fail_after(FOR_EVER):
            clients = [stack.enter_context(trio.socket.socket(socket.AF_UNIX)) for _ in range(3)]
            for client in clients:
                await client.connect(address)
            await trio.testing.wait_all_tasks_blocked()
            for client in clients:  # at once: the daemon has no turn meanwhile
                os.write(client.fileno(), msgpack.packb([0, 1, "stat", [FILE, "Image"]]))
            found = [msgpack.unpackb(await client.recv(4096)) for client in clients]
        codes = [None if error is None else error["code"] for _, _, error, _ in found]
        assert codes == [None, "UNKNOWN_EXPORT", None]
        assert len(backend.named(Opcode.LOOKUP)) == 1


async def test_one_that_comes_when_another_was_asked_is_asked_again(
    backend: FakeBackend, tmp_path: Path
) -> None:
    """What was looked up before it came may have changed since."""
    async with daemon_on(backend, str(tmp_path)) as address:
        held = backend.hold(lambda request: request.opcode is Opcode.LOOKUP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answers_to, address, [FILE, "Image"])
            await until(lambda: len(held) == 1)
            nursery.start_soon(answers_to, address, [FILE, "Image"])
            await until(lambda: len(held) == 2)
            backend.let_go(held)


async def test_a_lost_backend_loses_none_of_them(backend: FakeBackend, tmp_path: Path) -> None:
    """Each is put to the next one, by itself."""

    def lie(_: FuseRequest) -> Answer:
        backend.answer = backend.serve_files
        return Answer(b"is no entry")

    async with daemon_on(backend, str(tmp_path)) as address:
        backend.answer = lie
        found = await answers_to(address, *[[FILE, "Image"]] * 3)
        assert [found[place][3]["size"] for place in range(3)] == [len(CONTENT)] * 3
