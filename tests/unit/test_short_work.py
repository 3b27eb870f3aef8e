"""Short work that is done between the steps of long work."""

import os
from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol import fuse
from protocol.fuse import Opcode
from tests.fake.backend import Answer, FakeBackend, File, FuseRequest
from vuserd.config.model import ClientLimits
from vuserd.device.session import Session
from vuserd.errors import BackendBroken
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.listings import Listing
from vuserd.fs.walk import TreeWalk
from vuserd.rpc.access import Peer, Rights
from vuserd.rpc.accounts import Account
from vuserd.rpc.caller import Caller
from vuserd.tasks.short_work import do_short_work, short_work
from vuserd.tasks.turns import SHARER, Turns, give_way

NAMES = [b"file-%d" % number for number in range(20)]


class Sharer:
    """A client that has a turn whenever it wants one."""

    def __init__(self, *, is_alone: bool) -> None:
        self._is_alone = is_alone

    def is_alone(self) -> bool:
        return self._is_alone

    async def take_turn(self) -> None:
        await trio.lowlevel.checkpoint()


class Waiting:
    """Requests that the backend has, and is told to answer one by one."""

    def __init__(self, backend: FakeBackend) -> None:
        self._backend = backend
        self.requests: list[FuseRequest] = []
        backend.answer = self._answer

    def _answer(self, request: FuseRequest) -> Answer | None:
        if request.opcode is not Opcode.STATFS:
            return self._backend.serve_files(request)
        self.requests.append(request)
        return None

    def answer(self) -> None:
        request = self.requests.pop()
        answer = self._backend.serve_files(request)
        assert answer is not None
        self._backend.reply(request, answer)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(dict.fromkeys(NAMES, File(b"x")))


async def test_it_is_done_during_the_block_alone() -> None:
    done: list[str] = []
    do_short_work()
    with short_work(lambda: done.append("one")):
        do_short_work()
        with short_work(lambda: done.append("other")):
            do_short_work()
        do_short_work()
    do_short_work()
    await trio.lowlevel.checkpoint()
    assert done == ["one", "one", "other", "one"]


async def test_blocks_may_end_in_any_order() -> None:
    done: list[str] = []
    one, other = short_work(lambda: done.append("one")), short_work(lambda: done.append("other"))
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    do_short_work()
    other.__exit__(None, None, None)
    do_short_work()
    await trio.lowlevel.checkpoint()
    assert done == ["other"]


@pytest.mark.parametrize(
    ("sharer", "times"), [(None, 0), (Sharer(is_alone=True), 0), (Sharer(is_alone=False), 1)]
)
async def test_way_is_given_while_another_client_wants_anything(
    sharer: Sharer | None, times: int
) -> None:
    SHARER.set(sharer)
    done: list[None] = []
    with short_work(lambda: done.append(None)):
        give_way()
    await trio.lowlevel.checkpoint()
    assert len(done) == times


@pytest.mark.parametrize("others", [0, 1])
async def test_a_turn_is_begun_with_it_beside_others(others: int) -> None:
    turns, limits = Turns(), ClientLimits()
    rights = Rights(Peer(os.getpid(), os.geteuid(), frozenset()))
    caller = Caller(rights, Account(os.geteuid(), None, limits, turns), limits)
    for _ in range(others):
        turns.hear(object())
    done: list[None] = []
    with short_work(lambda: done.append(None)):
        await caller.take_turn()
    await trio.lowlevel.checkpoint()
    assert len(done) == others


async def test_replies_are_taken_before_their_task_has_a_turn(
    backend: FakeBackend, session: Session
) -> None:
    waiting = Waiting(backend)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(session.lane.call, fuse.statfs(fuse.ROOT_ID), fuse.decode_statfs)
        await wait_all_tasks_blocked()
        in_flight = [session.lane.in_flight]
        for _ in range(2):
            waiting.answer()
            do_short_work()
            in_flight.append(session.lane.in_flight)
    assert in_flight == [2, 1, 0]


async def test_what_a_reply_leads_to_is_kicked_at_once(
    backend: FakeBackend, session: Session
) -> None:
    """The task that kicks for those that found the device at work has not run either."""
    waiting = Waiting(backend)
    session.lane.post(fuse.statfs(fuse.ROOT_ID))
    await wait_all_tasks_blocked()
    kicks = backend.kicks[1]
    session.lane.post(fuse.statfs(fuse.ROOT_ID))
    waiting.answer()
    do_short_work()
    assert not session.lane.requests._is_kick_due
    await wait_all_tasks_blocked()
    assert backend.kicks[1] == kicks + 1
    waiting.answer()
    await session.lane.drained()


async def test_a_used_ring_that_lies_then_ends_the_session_as_ever(
    backend: FakeBackend, session: Session
) -> None:
    waiting = Waiting(backend)
    session.lane.post(fuse.statfs(fuse.ROOT_ID))
    await wait_all_tasks_blocked()
    assert waiting.requests
    backend.use_anything(1, (7, 8))
    do_short_work()
    assert session.lost
    assert isinstance(await session.wait_lost(), BackendBroken)
    do_short_work()  # of a lost one nothing is believed, and nothing is done


async def list_all(files: FileSystem) -> None:
    listing = Listing(b"", attributes=True)
    while not listing.finished:
        await listing.next_page(files, 5)


async def walk_all(files: FileSystem) -> None:
    walk = TreeWalk(b"", attributes=True)
    while not walk.finished:
        await walk.next_page(files, 1000)
    walk.close()


@pytest.mark.parametrize("job", [list_all, walk_all])
async def test_long_work_gives_way_before_it_takes_what_was_read(
    backend: FakeBackend, session: Session, job: Callable[[FileSystem], object]
) -> None:
    files = FileSystem(session, idle_nodes=10)
    SHARER.set(Sharer(is_alone=False))
    read = Opcode.READDIRPLUS
    given: list[int] = []
    with short_work(lambda: given.append(len(backend.named(read)))):
        await job(files)  # type: ignore[misc]
    replies = len(backend.named(read))
    assert replies >= 2
    assert {*range(1, replies + 1)} <= {*given}
    files.close()
    await session.lane.drained()
