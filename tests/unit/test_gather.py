"""Calls that run at once: their results in order, or the first exception and no task left."""

import pytest
import trio

from vuserd.tasks.gather import gather


async def test_results_come_in_the_order_of_the_calls(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def call(seconds: float) -> float:
        await trio.sleep(seconds)
        return seconds

    begun = autojump_clock.current_time()
    assert await gather([lambda: call(3), lambda: call(1), lambda: call(2)]) == [3, 1, 2]
    assert autojump_clock.current_time() - begun == 3
    assert await gather([lambda: call(0)]) == [0]


async def test_one_that_fails_ends_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ended: list[str] = []

    async def fail(seconds: float) -> None:
        await trio.sleep(seconds)
        raise KeyError(seconds)

    async def wait() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("wait")

    with pytest.raises(KeyError, match="1"):
        await gather([wait, lambda: fail(2), lambda: fail(1)])
    assert ended == ["wait"]
    assert autojump_clock.current_time() < 2


@pytest.mark.parametrize("count", [1, 2])
async def test_a_caller_that_is_cancelled_has_no_group_raised(count: int) -> None:
    raised: list[type[BaseException]] = []  # a scope takes a group, too
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await gather([trio.sleep_forever] * count)
        except BaseException as error:
            raised.append(type(error))
            raise
    assert raised == [trio.Cancelled]


async def test_what_is_no_cancellation_is_not_taken_for_one() -> None:
    async def interrupt() -> None:
        raise KeyboardInterrupt

    raised: BaseException | None = None
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await gather([trio.sleep_forever, interrupt])
        except BaseExceptionGroup as group:
            raised = group.subgroup(KeyboardInterrupt)
    assert raised is not None
