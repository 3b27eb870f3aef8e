"""What a client has sent, on its way to requests: the quick way and the long one meet."""

import math
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from vuserd.config.model import ClientLimits
from vuserd.rpc.accounts import Account, Allowance
from vuserd.rpc.counters import Counters
from vuserd.rpc.intake import Intake
from vuserd.tasks.turns import Turns
from vuserd.wire.codec import NEED_DATA, Message, Request, encode_notification, encode_request

_LIMITS: Final = ClientLimits()


@pytest.fixture
async def intake() -> Intake:
    account = Account(0, None, _LIMITS, Turns())
    return Intake(_LIMITS, Allowance(_LIMITS, account, Counters()), account.foreign)


def taken(intake: Intake, piece: bytes) -> list[Message]:
    """Feed a piece of the stream, and take all that there is."""
    intake.feed(piece, [])
    messages: list[Message] = []
    while (message := intake.next_message()) is not NEED_DATA:
        messages.append(message)
    intake.settle()
    return messages


@pytest.mark.parametrize("size", [1, 7, 64, 300, 5000])
async def test_however_the_stream_is_cut(intake: Intake, size: int) -> None:
    """Plain requests and others follow each other, in pieces of all sizes."""
    frames = [
        encode_request(1, "stat", ["k", "a"]),
        encode_notification("nothing", []),
        encode_request(2, "stat", ["k", "a", {"follow": True}]),
        encode_request(3, "stat", ["k", [[]]]),
        encode_request(4, "read", ["k", "a" * 1100, 0, 1]),
        encode_request(5, "exports", []),
    ] * 3
    stream = b"".join(frames)
    messages = [
        message
        for begin in range(0, len(stream), size)
        for message in taken(intake, stream[begin : begin + size])
    ]
    assert [message.msgid for message in messages if isinstance(message, Request)] == [
        *range(1, 6)
    ] * 3
    assert len(messages) == len(frames)
    assert intake.finish_by == math.inf


async def test_the_time_of_a_request_counts_from_its_first_byte(
    intake: Intake, autojump_clock: MockClock
) -> None:
    del autojump_clock
    whole = encode_request(1, "exports", [])
    assert len(taken(intake, whole + whole[:3])) == 1
    begun = intake.finish_by
    assert begun == pytest.approx(trio.current_time() + _LIMITS.stall, abs=0.1)
    await trio.sleep(1)
    assert taken(intake, whole[3:5]) == []
    assert intake.finish_by == begun
    assert len(taken(intake, whole[5:])) == 1
    assert intake.finish_by == math.inf
