"""Versions of files: how long until a change cannot hide behind the same timestamps."""

import pytest

from vuserd.fs.nodes import root_node
from vuserd.fs.version import Version, time_to_settle

NOW = 1_700_000_000_987_654_321
SECOND = 1_000_000_000
#: Long settled, with a fraction as fine as there is.
OLD = 1_600_000_000_123_456_789


def changed(mtime_ns: int, ctime_ns: int = OLD) -> Version:
    return Version(ino=1, size=5, mtime_ns=mtime_ns, ctime_ns=ctime_ns)


@pytest.mark.parametrize(
    ("stamp", "step"),
    [
        pytest.param(1_600_000_000_123_456_789, 0.01, id="nanoseconds"),
        pytest.param(1_600_000_000_123_456_700, 0.01, id="NTFS: a tenth of a microsecond"),
        pytest.param(1_600_000_000_123_456_000, 0.01, id="microseconds"),
        pytest.param(1_600_000_000_123_000_000, 0.01, id="milliseconds"),
        pytest.param(1_600_000_000_120_000_000, 0.11, id="exFAT: a hundredth"),
        pytest.param(1_600_000_000_100_000_000, 2.01, id="a tenth"),
        pytest.param(1_600_000_001_000_000_000, 2.01, id="ext4 of old: a second"),
        pytest.param(1_600_000_000_000_000_000, 2.01, id="FAT: two seconds"),
        pytest.param(0, 2.01, id="1970"),
        pytest.param(-SECOND, 2.01, id="before 1970"),
        pytest.param(-123_456_789, 0.01, id="a moment before 1970"),
    ],
)
def test_a_timestamp_settles_after_its_step(stamp: int, step: float) -> None:
    step_ns = round(step * SECOND)
    assert time_to_settle(changed(stamp, stamp), stamp) == pytest.approx(step)
    assert time_to_settle(changed(stamp, stamp), stamp + step_ns // 2) == pytest.approx(step / 2)
    assert time_to_settle(changed(stamp, stamp), stamp + step_ns - 100_000) == pytest.approx(1e-4)
    assert time_to_settle(changed(stamp, stamp), stamp + step_ns) == 0
    assert time_to_settle(changed(stamp, stamp), stamp + 100 * SECOND) == 0


def test_the_later_of_both_counts() -> None:
    fine, coarse = NOW - 4_000_000, NOW // SECOND * SECOND
    assert time_to_settle(changed(fine), NOW) == pytest.approx(0.006)
    assert time_to_settle(changed(OLD, fine), NOW) == pytest.approx(0.006)
    age = (NOW - coarse) / SECOND
    assert time_to_settle(changed(fine, coarse), NOW) == pytest.approx(2.01 - age)
    assert time_to_settle(changed(coarse, fine), NOW) == pytest.approx(2.01 - age)
    assert time_to_settle(changed(OLD, OLD), NOW) == 0


@pytest.mark.parametrize(
    ("ahead", "pause"), [(5_000_000, 0.015), (9_999_999, 0.02), (10_000_000, 0), (10**18, 0)]
)
def test_one_of_the_future_settles_unless_it_is_near(ahead: int, pause: float) -> None:
    stamp = 1_700_000_000_123_456_789
    assert time_to_settle(changed(stamp), stamp - ahead) == pytest.approx(pause, abs=1e-6)


def test_it_is_the_time_of_day_that_counts() -> None:
    assert time_to_settle(changed(OLD)) == 0
    assert time_to_settle(changed(10**18 * 9)) == 0


def test_it_is_made_of_attributes_however_odd() -> None:
    attributes = root_node().attributes._replace(
        ino=2**64 - 1, size=2**64 - 1, mtime=-5, mtime_nsec=2**32 - 1, ctime=2**62, ctime_nsec=1
    )
    assert Version.of(attributes) == Version(
        ino=2**64 - 1,
        size=2**64 - 1,
        mtime_ns=-5 * SECOND + 2**32 - 1,
        ctime_ns=2**62 * SECOND + 1,
    )
    assert time_to_settle(Version.of(attributes)) == 0
