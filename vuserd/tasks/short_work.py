"""Short work that is done between the steps of long work, too, and not once in a pass only.

In a pass of trio's scheduler every task that is ready takes a step. A short call needs some passes:
to be received, and for each round trip to the backend; and in each it would wait for a step of all
the long work that there is. So whoever does such work stops between two steps for what is short::

    listing, walk, tree -- do_short_work() -> the hub: receives, and begins short calls
                                           -> the lanes: take replies, and end them
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Final

from trio.lowlevel import RunVar

#: What does such work, of all that run on one loop.
_DOERS: Final[RunVar[list[Callable[[], None]]]] = RunVar("short work")


@contextmanager
def short_work(do: Callable[[], None]) -> Iterator[None]:
    """Have ``do`` called between steps of long work, during the block.

    It does what there is, in little time; it is never called within itself. Context variables are
    as they were here: what it does is not on behalf of whoever stops for it.
    """
    doer = functools.partial(copy_context().run, do)
    _DOERS.set([*_DOERS.get([]), doer])
    try:
        yield
    finally:
        _DOERS.set([each for each in _DOERS.get() if each is not doer])


def do_short_work() -> None:
    """Do what is short and waits; called by who has just waited, and is to take a long step."""
    for do in _DOERS.get([]):
        do()
