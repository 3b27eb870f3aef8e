"""Calls that are made at once: their results in order, or the first fault and no task left."""

import pytest
import trio

from vuserd.gather import gather


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
