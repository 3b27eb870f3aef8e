"""The limits of users, by the memory that the daemon may take."""

import logging

import pytest

from vuserd import daemon
from vuserd.config.memory_limits import limits_within_memory
from vuserd.config.model import ClientLimits
from vuserd.delivery.cgroups import UNLIMITED
from vuserd.delivery.headroom import HEADROOM

MIB = 1 << 20


@pytest.mark.parametrize("total", [8 * MIB, 300 * MIB, 1 << 30, 3 << 30])
@pytest.mark.parametrize(
    "limits", [ClientLimits(), ClientLimits(user_payload=1 << 40, user_remembered=1 << 40)]
)
def test_one_user_leaves_half(total: int, limits: ClientLimits) -> None:
    cut = limits_within_memory(limits, total)
    assert cut.user_payload + cut.user_frames + cut.user_remembered <= total // 2
    assert all(small <= large for small, large in zip(cut, limits, strict=True))


def test_no_connection_may_have_more_than_its_user() -> None:
    """A request of such a size would be told to come later, for ever."""
    limits = ClientLimits(payload=32 * MIB, frame=16 * MIB)
    cut = limits_within_memory(limits, 64 * MIB)
    assert (cut.frame, cut.user_frames) == (8 * MIB, 8 * MIB)
    assert (cut.payload, cut.user_payload) == (8 * MIB, 8 * MIB)
    assert limits_within_memory(limits, UNLIMITED) == limits


@pytest.mark.parametrize("total", [4 << 30, UNLIMITED])
def test_the_usual_limits_are_left_as_they_are(total: int) -> None:
    assert limits_within_memory(ClientLimits(), total) == ClientLimits()


def test_what_the_daemon_cannot_work_without_stays() -> None:
    cut = limits_within_memory(ClientLimits(user_frames=2 * MIB), MIB)
    assert (cut.user_payload, cut.user_frames, cut.user_remembered) == (MIB, MIB, MIB)


def test_what_is_cut_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(daemon, "descriptors_allowed", lambda: None)
    monkeypatch.setattr(HEADROOM, "total", lambda: 256 * MIB)
    caplog.set_level(logging.INFO)
    assert daemon._fitting(ClientLimits()).user_payload == 32 * MIB
    [told] = caplog.messages
    assert told == (
        "limits of users are lowered to fit 268435456 bytes of memory (MemoryMax=): user_payload is"
        " 33554432 instead of 536870912, user_frames is 33554432 instead of 67108864,"
        " user_remembered is 33554432 instead of 536870912"
    )
