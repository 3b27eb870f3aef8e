"""The hub: who goes on in a pass, and after whom."""

import math
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.attacks.threats import Who, threat
from vuserd.tasks.hub import ALONE, SHARED, Hub
from vuserd.tasks.short_work import do_short_work
from vuserd.tasks.turns import Turns
from vuserd.tasks.workers import Workers


class User:
    """Has connections."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def is_only_user(self) -> bool:
        return self._turns.is_free(self)


class Passes(trio.abc.Instrument):
    """Who went on, pass of the scheduler by pass."""

    def __init__(self) -> None:
        self.went_on: list[list[Client]] = [[]]

    @property
    def latest(self) -> list["Client"]:
        return self.went_on[-1] or self.went_on[-2]

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - trio's
        if self.went_on[-1]:
            self.went_on.append([])


@dataclass(eq=False)
class Client:
    """A connection that takes one byte in each step, as if it were a request."""

    user: User
    passes: Passes
    sock: socket.socket
    is_queued: bool = False
    is_readable: bool = False
    has_stops: bool = False
    has_more: bool = False
    finish_by: float = math.inf
    read: bytearray = field(default_factory=bytearray)
    ended: bool = False
    late: float | None = None

    @property
    def sharer(self) -> object:
        return self

    @property
    def descriptor(self) -> int:
        return self.sock.fileno()

    def go_on(self, most: int, request: int) -> int:
        assert most > 0
        self.passes.went_on[-1].append(self)
        try:
            got = self.sock.recv(1)
        except BlockingIOError:
            self.has_more = False
            return 1
        self.read += got
        self.ended = not got
        self.has_more = bool(got)
        return request

    def time_out(self) -> None:
        self.late = trio.current_time()


class Crowd:
    """Clients of some users, and the other ends of their sockets."""

    def __init__(self, hub: Hub, turns: Turns, stack: ExitStack) -> None:
        self.passes = Passes()
        self.hub = hub
        #: Seconds of the processor that a step takes.
        self.cost = 0.0
        self.turns = turns
        self._stack = stack

    def add(self, count: int, user: User | None = None) -> list[tuple[Client, socket.socket]]:
        user = user or User(self.turns)
        made = []
        for _ in range(count):
            ours, theirs = socket.socketpair()
            self._stack.enter_context(ours)
            self._stack.enter_context(theirs)
            ours.setblocking(False)
            client = Client(user, self.passes, ours)
            self.hub.add(client)
            made.append((client, theirs))
        return made


class Spent:
    """The processor's time: what the latest pass cost comes once it is over."""

    crowd: Crowd

    def __init__(self) -> None:
        self._seconds = 0.0
        self._is_asked_before = False

    def __call__(self) -> float:
        if self._is_asked_before:
            self._seconds += self.crowd.cost * len(self.crowd.passes.latest)
        self._is_asked_before = not self._is_asked_before
        return self._seconds


@pytest.fixture
async def crowd(nursery: trio.Nursery) -> AsyncIterator[Crowd]:
    turns = Turns()
    spent = Spent()
    hub = Hub(turns, lambda: None, spent)
    with ExitStack() as stack:
        made = spent.crowd = Crowd(hub, turns, stack)
        nursery.start_soon(turns.run)
        nursery.start_soon(hub.run, Workers(nursery))
        trio.lowlevel.add_instrument(made.passes)
        yield made
        trio.lowlevel.remove_instrument(made.passes)
        nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
    hub.close()


async def test_a_user_alone_goes_on_in_large_turns(crowd: Crowd) -> None:
    clients = crowd.add(200)
    for _, theirs in clients:
        theirs.send(b"a")
    await wait_all_tasks_blocked()
    assert all(client.read == b"a" for client, _ in clients)
    assert max(map(len, crowd.passes.went_on)) == ALONE.steps


async def test_clients_of_one_user_are_told_apart(crowd: Crowd) -> None:
    [(one, ours), (other, others)] = crowd.add(2)
    ours.send(b"a")
    await wait_all_tasks_blocked()
    assert crowd.turns.is_alone(one)
    others.send(b"a")
    await wait_all_tasks_blocked()
    assert not crowd.turns.is_alone(one)
    assert not crowd.turns.is_alone(other)


async def test_one_between_two_turns_of_another_is_told_apart(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is neither the first nor the last of the pass."""
    [(one, ours), (other, others)] = crowd.add(2)
    heard: list[object] = []
    monkeypatch.setattr(crowd.turns, "hear", heard.append)
    ours.send(b"aaa")
    others.send(b"b")
    await wait_all_tasks_blocked()
    assert bytes(one.read) == b"aaa"
    assert heard[:2] == [one, other]


@threat(
    "heavy requests",
    who=Who.CLIENT,
    against="users who call now and then",
    does="keeps the daemon busy with requests that are much work each, 64 at once",
    promise="turns are small while requests are heavy: few of them come before another's call",
)
@pytest.mark.parametrize(
    ("cost", "steps"),
    [
        (0.0001, [64, 32, 16, 16, 16]),  # each step is so much work
        (0.00001, [64, 64, 64, 64, 64]),
        (0.01, [64, 32, 16, 8, 8]),
    ],
)
async def test_turns_of_heavy_requests_are_small(
    crowd: Crowd, cost: float, steps: list[int]
) -> None:
    crowd.cost = cost
    for _, theirs in crowd.add(200):
        theirs.send(b"ab")
    await wait_all_tasks_blocked()
    assert [len(went_on) for went_on in crowd.passes.went_on][:5] == steps


async def test_turns_grow_again(crowd: Crowd) -> None:
    clients = crowd.add(200)
    for cost in (0.01, 0.00001):
        crowd.cost = cost
        for _, theirs in clients:
            theirs.send(b"abcd")
        await wait_all_tasks_blocked()
    went_on = [len(each) for each in crowd.passes.went_on]
    assert 8 in went_on
    assert went_on[went_on.index(8) :].count(64) >= 5


async def test_users_who_share_take_turns(mock_clock: MockClock, crowd: Crowd) -> None:
    del mock_clock  # it stands still, and so they share all the time
    many, [(lone, bell)] = crowd.add(100), crowd.add(1)
    for _, theirs in many:
        theirs.send(b"a")
    bell.send(b"b")
    await wait_all_tasks_blocked()
    assert lone.read == b"b"
    assert all(client.read == b"a" for client, _ in many)
    turns = [[client for client in each if client is not lone] for each in crowd.passes.went_on]
    requests = turns[: len(many)]  # behind them come looks at what has nothing more
    assert [len(each) for each in requests] == [SHARED.steps // SHARED.request] * len(many)
    assert lone in crowd.passes.went_on[0]


async def test_one_that_has_much_waits_for_the_others_of_its_user(crowd: Crowd) -> None:
    (greedy, flood), (modest, theirs) = crowd.add(2)
    flood.send(b"x" * 1000)
    theirs.send(b"y")
    await wait_all_tasks_blocked()
    order = [client for went_on in crowd.passes.went_on for client in went_on]
    assert order.index(modest) <= 1
    assert greedy.read == b"x" * 1000
    assert max(map(len, crowd.passes.went_on)) <= ALONE.steps


async def test_one_that_is_woken_goes_on(crowd: Crowd) -> None:
    [(client, _)] = crowd.add(1)
    await wait_all_tasks_blocked()
    crowd.hub.wake(client)
    crowd.hub.wake(client)
    await wait_all_tasks_blocked()
    assert [went_on for went_on in crowd.passes.went_on if went_on] == [[client]]


async def test_what_comes_between_two_steps_of_long_work_is_seen_there(crowd: Crowd) -> None:
    [(client, theirs)] = crowd.add(1)
    await wait_all_tasks_blocked()
    theirs.send(b"a")
    do_short_work()
    assert client.read == b"a"


async def test_a_turn_between_two_steps_is_small(crowd: Crowd) -> None:
    """Whoever is at work waits for it; the rest has its turn in the next pass."""
    clients = crowd.add(40)
    await wait_all_tasks_blocked()
    for _, theirs in clients:
        theirs.send(b"a")
    do_short_work()
    assert sum(client.read == b"a" for client, _ in clients) == SHARED.steps // SHARED.request
    await wait_all_tasks_blocked()
    assert all(client.read == b"a" for client, _ in clients)


async def test_no_call_for_a_pass_is_lost_between_two_steps(crowd: Crowd) -> None:
    """The one who waits for passes is not woken by what was seen there."""
    [(client, _)] = crowd.add(1)
    await wait_all_tasks_blocked()
    crowd.hub.wake(client)
    do_short_work()  # sees the bell
    crowd.hub.wake(client)
    await wait_all_tasks_blocked()
    assert len([went_on for went_on in crowd.passes.went_on if went_on]) == 2


async def test_a_fault_between_two_steps_leaves_the_hub_as_it_was(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told where it shows, and later passes come as ever."""
    (faulty, _), (other, _) = crowd.add(2)
    await wait_all_tasks_blocked()

    def fail(*_: int) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(faulty, "go_on", fail)
    crowd.hub.wake(faulty)
    with pytest.raises(ZeroDivisionError):
        do_short_work()
    crowd.hub.wake(other)
    await wait_all_tasks_blocked()
    assert [other] in crowd.passes.went_on


async def test_what_comes_and_goes_is_seen(crowd: Crowd) -> None:
    [(client, theirs)] = crowd.add(1)
    theirs.send(b"ab")
    await wait_all_tasks_blocked()
    seen = [(client.is_readable, client.has_stops, client.ended)]
    theirs.shutdown(socket.SHUT_WR)
    await wait_all_tasks_blocked()
    seen.append((client.is_readable, client.has_stops, client.ended))
    assert seen == [(True, False, False), (True, True, True)]


async def test_urgent_data_is_seen(crowd: Crowd) -> None:
    """A receive stops at it, and nothing more is reported of what lies behind."""
    [(client, theirs)] = crowd.add(1)
    try:
        theirs.send(b"!", socket.MSG_OOB)
    except OSError as error:
        pytest.skip(f"no urgent data on unix sockets: {error}")
    await wait_all_tasks_blocked()
    assert client.has_stops


async def test_one_that_was_removed_is_left_alone(crowd: Crowd) -> None:
    [(client, theirs)] = crowd.add(1)
    client.finish_by = trio.current_time()
    crowd.hub.watch_time(client)
    crowd.hub.remove(client)
    theirs.send(b"a")
    await wait_all_tasks_blocked()
    assert not client.read
    assert client.late is None


async def test_requests_that_are_not_whole_in_time(autojump_clock: MockClock, crowd: Crowd) -> None:
    del autojump_clock
    (slow, _), (steady, _), (_, _) = crowd.add(3)
    await trio.sleep(1)
    begun = trio.current_time()
    slow.finish_by, steady.finish_by = begun + 30, begun + 31
    crowd.hub.watch_time(slow)
    crowd.hub.watch_time(steady)
    await trio.sleep(20)
    steady.finish_by = math.inf
    crowd.hub.watch_time(steady)
    await trio.sleep(20)
    assert slow.late == pytest.approx(begun + 30, abs=0.1)
    assert steady.late is None


async def test_who_has_less_time_than_those_before(autojump_clock: MockClock, crowd: Crowd) -> None:
    """A reload may leave less of it to those who connect from then on."""
    del autojump_clock
    (before, _), (after, _) = crowd.add(2)
    begun = trio.current_time()
    before.finish_by = begun + 30
    crowd.hub.watch_time(before)
    await trio.sleep(1)
    after.finish_by = begun + 6
    crowd.hub.watch_time(after)
    await trio.sleep(39)
    assert after.late == pytest.approx(begun + 6, abs=0.1)
    assert before.late == pytest.approx(begun + 30, abs=0.1)
