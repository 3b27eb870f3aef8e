"""Budgets: amounts are taken in turn and all at once, and none is lost."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from vuserd.tasks.budget import Budget, Share


class Takers:
    """Tasks that take parts, and the order in which they got them."""

    def __init__(self, budget: Budget | Share, nursery: trio.Nursery) -> None:
        self.got: list[int] = []
        self._budget = budget
        self._nursery = nursery

    async def start(self, amount: int) -> trio.CancelScope:
        scope = trio.CancelScope()

        async def take() -> None:
            with scope:
                await self._budget.take(amount)
                self.got.append(amount)

        self._nursery.start_soon(take)
        await wait_all_tasks_blocked()
        return scope


async def test_a_large_part_is_not_overtaken_by_small_ones() -> None:
    budget = Budget(10)
    await budget.take(6)
    async with trio.open_nursery() as nursery:
        takers = Takers(budget, nursery)
        await takers.start(5)
        await takers.start(1)
        assert takers.got == []
        budget.give_back(1)
        await wait_all_tasks_blocked()
        assert takers.got == [5]
        budget.give_back(1)
    assert takers.got == [5, 1]
    assert budget.available == 10 - 6 + 2 - 6


async def test_who_gives_up_lets_the_next_one_have_its_turn() -> None:
    budget = Budget(10)
    await budget.take(6)
    async with trio.open_nursery() as nursery:
        takers = Takers(budget, nursery)
        large = await takers.start(5)
        await takers.start(4)
        assert takers.got == []
        large.cancel()
    assert takers.got == [4]
    assert budget.available == 0


async def test_nobody_waits_for_what_has_ended() -> None:
    budget = Budget(1)
    await budget.take(1)
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(KeyError, match="over"):
                await budget.take(1)

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        budget.end(lambda: KeyError("over"))
    with pytest.raises(KeyError, match="over"):
        await budget.take(0)


@pytest.mark.parametrize("amount", [-1, 11])
async def test_more_than_there_is_is_a_mistake(amount: int) -> None:
    with pytest.raises(ValueError, match=f"{amount} units of a budget of 10"):
        await Budget(10).take(amount)


async def test_a_share_is_bounded_by_both() -> None:
    common = Budget(10)
    first, second = Share(6, common), Share(60, common)
    assert (first.total, second.total) == (6, 10)
    await first.take(6)
    async with trio.open_nursery() as nursery:
        takers = Takers(second, nursery)
        scope = await takers.start(5)
        assert takers.got == []
        assert second.taken == 5  # its own part is reserved meanwhile
        scope.cancel()
        await wait_all_tasks_blocked()
        assert second.taken == 0
        await takers.start(5)
        first.give_back(6)
    assert takers.got == [5]
    assert (first.taken, second.taken, common.available) == (0, 5, 5)
