"""Calls that may take long, or for ever, in threads; and what it means that there is none."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


async def in_thread(
    function: Callable[[*Arguments], T],
    *arguments: *Arguments,
    abandon_on_cancel: bool = False,
    limiter: trio.CapacityLimiter | None = None,
) -> T:
    """Call a function in a thread, as :func:`trio.to_thread.run_sync` does.

    Raises:
        OSError: without a number: there is no thread to be had, as a limit of processes or
            TasksMax= of a unit has it.
        Exception: what the function raises.

    """
    has_begun = False

    def run() -> T:
        nonlocal has_begun
        has_begun = True
        return function(*arguments)

    try:
        return await trio.to_thread.run_sync(
            run, abandon_on_cancel=abandon_on_cancel, limiter=limiter
        )
    except RuntimeError as error:
        if has_begun:
            raise
        raise OSError(str(error)) from error


@contextmanager
def starting_in_thread() -> Iterator[None]:
    """Start a process within the block, for which trio takes a thread.

    Raises:
        OSError: without a number: there is no thread to be had, as :func:`in_thread` says it.

    """
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error)) from error
