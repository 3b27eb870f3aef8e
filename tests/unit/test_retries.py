"""When an export's next backend is tried: the pauses, and the end of trying."""

import pytest

from vuserd.exports.retries import Retries

LEAST, MOST = 0.05, 5.0


def after(failures: int, *, asked: bool = False) -> Retries:
    retries = Retries()
    for _ in range(failures):
        retries.note_failure(asked=asked)
    return retries


@pytest.mark.parametrize(
    ("failures", "delay"),
    [(0, 0.0), (1, 0.0), (2, 0.05), (3, 0.1), (4, 0.2), (8, 3.2), (9, 5.0), (10_000, 5.0)],
)
def test_the_first_start_is_at_once_and_the_next_ones_are_later_and_later(
    failures: int, delay: float
) -> None:
    assert after(failures).delay(LEAST, MOST, asked=False) == pytest.approx(delay)


@pytest.mark.parametrize(
    ("failures", "delay"), [(1, 0.0), (2, 0.05), (5, 0.4), (6, 0.5), (50, 0.5)]
)
def test_calls_do_not_wait_for_the_longest_pause(failures: int, delay: float) -> None:
    retries = after(failures, asked=True)
    assert retries.delay(LEAST, MOST, asked=True) == pytest.approx(delay)
    assert retries.delay(LEAST, 0.01, asked=True) == (0.0 if failures == 1 else 0.01)


@pytest.mark.parametrize(
    ("failures", "alone", "waited_for"),
    [(0, 0.1, 0.1), (1, 0.12, 0.12), (9, 0.516, 0.5), (20, 3.834, 0.5), (10_000, 10.0, 0.5)],
)
def test_an_adopted_socket_is_tried_more_often_where_calls_wait(
    failures: int, alone: float, waited_for: float
) -> None:
    retries = after(failures)
    assert retries.adopt_delay(waited_for=False) == pytest.approx(alone, abs=1e-3)
    assert retries.adopt_delay(waited_for=True) == pytest.approx(waited_for, abs=1e-3)


def test_a_call_that_was_served_ends_the_pauses_and_a_start_the_failed_starts() -> None:
    retries = after(5)
    retries.note_answer()
    assert retries.delay(LEAST, MOST, asked=False) == 0.0
    assert retries.are_over(4)
    assert not retries.are_over(5)
    retries.note_failure(asked=True)
    assert not retries.are_over(0)
