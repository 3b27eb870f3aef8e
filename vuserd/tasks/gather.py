"""Run a few calls at once and return their results, or raise the first exception ungrouped."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

Result = TypeVar("Result")


async def gather(calls: Sequence[Callable[[], Awaitable[Result]]]) -> list[Result]:
    """Run all calls in parallel; return their results in order.

    When one fails, the others are cancelled and its exception is raised. When the caller is
    cancelled, ``trio.Cancelled`` is raised, and not the group that a nursery makes of its tasks'.
    """
    if len(calls) == 1:
        return [await calls[0]()]
    results: dict[int, Result] = {}
    failure: Exception | None = None

    async def run(index: int, call: Callable[[], Awaitable[Result]]) -> None:
        nonlocal failure
        try:
            results[index] = await call()
        except Exception as error:
            failure = failure or error
            nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for index, call in enumerate(calls):
                nursery.start_soon(run, index, call)
    except BaseExceptionGroup as group:
        if group.split(trio.Cancelled)[1] is None:
            await trio.lowlevel.checkpoint_if_cancelled()
        raise
    if failure is not None:
        try:
            raise failure
        finally:
            failure = None  # break the cycle exception -> traceback -> frame
    return [results[index] for index in range(len(calls))]
