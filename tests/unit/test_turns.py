"""Turns: at once where a pass has one left, and to several holders in turn."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
import trio.testing

from vuserd.tasks.turns import Turns


class Clock:
    """The processor time that a pass takes, which each turn adds to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def turns(clock: Clock, nursery: trio.Nursery) -> AsyncIterator[Turns]:
    made = Turns(clock)
    nursery.start_soon(made.run)
    await trio.testing.wait_all_tasks_blocked()
    yield made
    nursery.cancel_scope.cancel()


def taker(turns: Turns, log: list[str]) -> Callable[[str, int], Awaitable[None]]:
    async def take(holder: str, count: int) -> None:
        for _ in range(count):
            await turns.take(holder)
            log.append(holder)
            await trio.lowlevel.checkpoint()

    return take


async def test_alone_there_is_no_waiting(turns: Turns, autojump_clock: trio.abc.Clock) -> None:
    del autojump_clock
    await turns.take("one")
    await trio.sleep(1)  # whoever was there before is forgotten
    for _ in range(10):  # of which it learns how long a pass is
        await turns.take("one")
        await trio.lowlevel.checkpoint()
    for _ in range(100):
        with trio.testing.assert_no_checkpoints():
            await turns.take("one")
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(("step", "least", "most"), [(0.00001, 10, 16), (0.001, 1, 1)])
async def test_a_pass_has_as_many_turns_as_it_has_time_for(
    turns: Turns, clock: Clock, step: float, least: int, most: int
) -> None:
    taken = 0

    async def work() -> None:
        nonlocal taken
        while True:
            await turns.take("one")
            taken += 1
            clock.now += step
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(work)
        for _ in range(40):
            await trio.lowlevel.checkpoint()
        before = taken
        for _ in range(40):
            await trio.lowlevel.checkpoint()
        # Which of the tasks of a pass run first is by chance: some turns fall into the next one.
        assert 30 * least <= taken - before <= 60 * most
        nursery.cancel_scope.cancel()


async def test_one_does_not_wait_for_the_many_turns_of_another(turns: Turns) -> None:
    log: list[str] = []
    take = taker(turns, log)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(take, "many", 10)
        nursery.start_soon(take, "few", 10)
    assert len(log) == 1010
    last = max(at for at, holder in enumerate(log) if holder == "few")
    assert last < 150


async def test_everybody_comes_in_the_order_of_arrival(turns: Turns) -> None:
    log: list[str] = []
    await turns.take("other")

    async def take(number: int) -> None:
        await turns.take("same")
        log.append(str(number))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(take, number)
            await trio.testing.wait_all_tasks_blocked()
    assert log == [str(number) for number in range(20)]


async def test_who_is_cancelled_keeps_nobody_waiting(turns: Turns) -> None:
    log: list[str] = []
    take = taker(turns, log)
    await turns.take("other")
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as doomed:
                for _ in range(10):
                    doomed.start_soon(take, "same", 5)
                scope.cancel()
        assert scope.cancelled_caught
        log.clear()
        nursery.start_soon(take, "same", 3)
        nursery.start_soon(take, "third", 3)
    assert sorted(log) == ["same"] * 3 + ["third"] * 3


async def test_who_is_alone_again_waits_for_nobody(
    turns: Turns, autojump_clock: trio.testing.MockClock
) -> None:
    """Also while it is so busy that there is always one of its tasks that waits."""
    log: list[str] = []

    async def busy() -> None:
        while autojump_clock.current_time() < 1.0:
            await turns.take("busy")
            log.append("busy")
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(busy)
        await turns.take("once")
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        assert not turns.is_free("busy")
        autojump_clock.jump(0.2)
        for _ in range(30):
            await trio.lowlevel.checkpoint()
        assert turns.is_free("busy")
        for _ in range(30):
            await trio.lowlevel.checkpoint()
        log.clear()
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        assert len(log) > 10  # all of them in each pass
        autojump_clock.jump(1.0)


async def test_of_several_clients_none_is_alone(
    turns: Turns, autojump_clock: trio.abc.Clock
) -> None:
    del autojump_clock
    assert turns.is_alone("bulk")
    turns.hear("bulk")
    assert turns.is_alone("bulk")
    for _ in range(3):
        turns.hear("small")
        await trio.sleep(0.05)
        assert not turns.is_alone("bulk")
    await trio.sleep(0.2)  # who has not asked again is forgotten
    assert turns.is_alone("bulk")
