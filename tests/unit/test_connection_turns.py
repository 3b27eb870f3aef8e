"""How much of one client's stream the daemon reads before others have their turn."""

import socket
from typing import Final

import pytest
import trio
import trio.testing

from tests.fake.bare_daemon import Bare
from vuserd.delivery.images import ImageStore
from vuserd.rpc import connection
from vuserd.rpc.counters import Counters
from vuserd.rpc.intake import Intake
from vuserd.wire.codec import Message, NeedData, encode_request

#: What one receive takes.
_FLOOD: Final = 64 << 10
_MOST_A_TURN: Final = 256


class Turns(trio.abc.Instrument):
    """Counts the messages that are decoded in each step of a task."""

    def __init__(self) -> None:
        self.all = 0
        self.longest = 0
        self._now = 0

    def count(self) -> None:
        self.all += 1
        self._now += 1

    def after_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002 - trio's
        self.longest = max(self.longest, self._now)
        self._now = 0


async def turns_of(
    flood: bytes, monkeypatch: pytest.MonkeyPatch, *, has_gone: bool = False
) -> Turns:
    """Serve a client that has sent all of this, and reads nothing; it may have gone since."""
    turns = Turns()

    class CountingIntake(Intake):
        def next_message(self) -> Message | NeedData:
            turns.count()
            return super().next_message()

    monkeypatch.setattr(connection, "Intake", CountingIntake)
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.sendall(flood)
        if has_gone:
            theirs.close()
        ours.setblocking(False)
        async with trio.open_nursery() as nursery:
            store = ImageStore(0, 1, nursery)
            served = Bare(ours, store, Counters())
            trio.lowlevel.add_instrument(turns)
            nursery.start_soon(served.run)
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.remove_instrument(turns)
            if not has_gone:
                theirs.shutdown(socket.SHUT_RDWR)
    return turns


@pytest.mark.parametrize(
    "unit",
    [b"\x00", b"\x93\x02\xa0\x90", encode_request(1, "exports", [])],
    ids=["no message", "notification", "request"],
)
async def test_others_have_their_turn_in_a_flood(
    unit: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = await turns_of(unit * (_FLOOD // len(unit)), monkeypatch)
    assert turns.all > _MOST_A_TURN
    assert turns.longest <= _MOST_A_TURN


@pytest.mark.parametrize("unit", [b"\x93\x02\xa0\x90", b"\x94\x01\x01\xc0\xc0"])
async def test_what_a_client_that_has_gone_left_behind_is_not_read(
    unit: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = await turns_of(unit * (_FLOOD // len(unit)), monkeypatch, has_gone=True)
    assert turns.all <= _MOST_A_TURN
