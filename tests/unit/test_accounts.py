"""Requests of a user in the daemon: who may begin one, and who is next."""

from typing import Final

import pytest
import trio

from vuserd.config.model import ClientLimits
from vuserd.rpc.accounts import Account, Allowance
from vuserd.rpc.counters import Counters
from vuserd.rpc.outbox import Reply
from vuserd.tasks.turns import Turns

LIMITS: Final = ClientLimits(requests=2, user_requests=3)


class Waiting:
    """A connection, which counts how often it was told to try again."""

    def __init__(self, account: Account, counters: Counters) -> None:
        self.allowance = Allowance(LIMITS, account, counters)
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1

    def begin(self) -> bool:
        return self.allowance.begin_request(self)

    def end(self) -> None:
        self.allowance.gone(Reply([b""]))


@pytest.fixture
async def account() -> Account:
    await trio.lowlevel.checkpoint()
    return Account(0, None, LIMITS, Turns())


async def test_one_connection_has_no_more_than_its_limit(account: Account) -> None:
    one = Waiting(account, Counters())
    assert [one.begin() for _ in range(3)] == [True, True, False]
    one.end()
    assert one.begin()


async def test_connections_of_a_user_wait_in_their_order(account: Account) -> None:
    counters = Counters()
    first, second, third, fourth = (Waiting(account, counters) for _ in range(4))
    assert [first.begin(), first.begin(), second.begin()] == [True, True, True]
    assert not third.begin()
    assert not fourth.begin()
    first.end()
    assert (third.woken, fourth.woken) == (1, 0)
    assert not fourth.begin()  # it does not overtake
    assert third.begin()
    assert fourth.woken == 1  # it may try, in vain
    assert not fourth.begin()
    assert counters.in_flight == account.requests == 3


async def test_two_places_let_two_begin(account: Account) -> None:
    counters = Counters()
    first, second, third, fourth = (Waiting(account, counters) for _ in range(4))
    assert [first.begin(), first.begin(), second.begin()] == [True, True, True]
    assert [third.begin(), fourth.begin()] == [False, False]
    first.end()
    first.end()
    assert third.begin()
    assert fourth.woken
    assert fourth.begin()


async def test_one_that_is_gone_keeps_nobody_waiting(account: Account) -> None:
    counters = Counters()
    first, second, third, fourth = (Waiting(account, counters) for _ in range(4))
    assert [first.begin(), first.begin(), second.begin()] == [True, True, True]
    assert [third.begin(), fourth.begin()] == [False, False]
    first.allowance.close()
    account.stop_waiting(third)
    assert fourth.woken
    assert fourth.begin()
    assert counters.in_flight == account.requests == 2
