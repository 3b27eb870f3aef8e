"""Lines of the log that clients cause."""

import logging

import pytest
import trio
import trio.testing

from vuserd.rpc.access import Peer
from vuserd.rpc.peer_log import PeerLog

REFUSED = "refused to %s: %s%s"


def peer(uid: int) -> Peer:
    return Peer(1, uid, frozenset())


async def test_what_happens_is_told_once_a_minute_with_a_count(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    log = PeerLog(logging.WARNING, REFUSED)
    with caplog.at_level(logging.WARNING):
        for _ in range(10):
            log.note(peer(61_001), "export a")
        log.note(peer(61_002), "export a")
        await trio.sleep(61)
        log.note(peer(61_001), "export b")
    assert [record.message for record in caplog.records] == [
        "refused to uid 61001 (pid 1): export a",
        "refused to uid 61002 (pid 1): export a",
        "refused to uid 61001 (pid 1): export b, and 9 times more since the last such line",
    ]
    assert log.count == 12


async def test_users_without_number_take_no_memory(autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    log = PeerLog(logging.WARNING, REFUSED)
    for uid in range(5000):
        log.note(peer(61_000 + uid), "export a")
    assert len(log._users) <= 1024


async def test_many_users_have_few_lines(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    """One person with subordinate uids is all of them, one after the other."""
    del autojump_clock
    log = PeerLog(logging.WARNING, REFUSED)
    for minute in range(3):
        for uid in range(5000):
            log.note(peer(61_000 + uid), "export a")
        assert len(caplog.records) <= 60 * (minute + 1)
        await trio.sleep(61)
    assert log.count == 15_000


async def test_a_fault_has_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    log = PeerLog(logging.ERROR, "fault in a call of %s: %s%s")
    for _ in range(3):
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            log.note(peer(61_001), "stat", with_traceback=True)
    [record] = caplog.records
    assert record.exc_info is not None
    assert record.message == "fault in a call of uid 61001 (pid 1): stat"
