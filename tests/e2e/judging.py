"""Judge what a reader got of a file that changed meanwhile: one of its states, or CHANGED."""

import random
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Final, NamedTuple

from tests.e2e.changer import WHOLE, Change, Changer, Changers, State
from tests.e2e.ways import GROWING, FailedCommandError, Served
from vuserd.client.errors import RemoteError

_BLOCK: Final = 4096


class Pace(NamedTuple):
    """How changes go on a file system with timestamps of some granularity; in seconds."""

    #: The kernel stamps a file when a write begins.  One that takes longer than this can still be
    #: at work when the stamp is old, and then no stamp tells of it: such a round is not judged.
    longest: float
    #: What comes before a change at most, in turn: what a delivery takes, and what it takes where
    #: the file has just changed, which makes it wait until a stamp is settled.
    pauses: tuple[float, ...]
    #: What comes before a round: nothing, or until the file's stamp is settled.
    rests: tuple[float, ...] = (0.0,)


#: The kernel's own clock: ticks of 10 ms at most.
FINE: Final = Pace(longest=0.004, pauses=(0.003, 0.018))
#: Whole seconds, or two of them. Two readings are compared, twice that long apart at least.
COARSE: Final = Pace(longest=0.025, pauses=(0.003, 0.018, 1.0, 2.3), rests=(0.0, 2.2))


class MixedError(AssertionError):
    """Bytes came that are of none of the states; the message says of which they are."""


def taken(way: Callable[[Served, str], bytes], served: Served, path: str) -> bytes | None:
    """Take the file; None where it is reported to have changed."""
    try:
        return way(served, path)
    except RemoteError as error:
        if error.code != "CHANGED":
            raise
    except FailedCommandError as failed:
        if "(CHANGED)" not in str(failed):
            raise
    return None


def composition(content: bytes, states: list[State]) -> str:
    """Describe bytes that are none of the states: which state each of their blocks is of."""
    blocks = [
        next(
            (
                str(index)
                for index, state in enumerate(states)
                if state.content()[begin : begin + _BLOCK] == content[begin : begin + _BLOCK]
            ),
            "?",
        )
        for begin in range(0, len(content), _BLOCK)
    ]
    return f"{len(content)} bytes, of {states}, block by block: {''.join(blocks)}"


def _is_half_appended(content: bytes, states: list[State]) -> bool:
    """Return whether it is what a file holds while it is appended to, which takes a while."""
    return any(
        before.version == after.version
        and before.size < len(content) < after.size
        and content == after.content()[: len(content)]
        for before, after in pairwise(states)
    )


def judged_round(
    served: Served,
    way: Callable[[Served, str], bytes],
    path: str,
    by: Changer,
    states: list[State],
    chance: random.Random,
    pace: Pace,
) -> str:
    """Take the file while it goes through states, the first of which it holds; say what came."""
    by.begin(states[1:], [chance.uniform(0, chance.choice(pace.pauses)) for _ in states[1:]])
    try:
        content = taken(way, served, path)
    finally:
        longest = by.finish()
    if content is None:
        return "CHANGED"
    for index, state in enumerate(states):
        if len(content) == state.size and content == state.content():
            return "before" if index == 0 else "after"
    if way in GROWING and _is_half_appended(content, states):
        return "after"
    if longest > pace.longest:
        return "not judged"
    message = f"a mix came, the longest change took {longest} s: {composition(content, states)}"
    raise MixedError(message)


def judged_rounds(
    served: Served,
    way: Callable[[Served, str], bytes],
    path: str,
    on_host: str,
    change: Change,
    rounds: int,
    pace: Pace,
    changers: Changers,
) -> Counter[str]:
    """Take a new file as often as ``rounds`` says while it changes; return how often what came.

    Args:
        served: where it is exported.
        way: one of the ways of taking it.
        path: the file's on the export, in a directory of its own.
        on_host: where that is changed.
        change: what happens to it.
        rounds: in every fourth one it changes four times.
        pace: of the file system.
        changers: who changes it.

    """
    chance = random.Random(f"{way.__name__} {change} {path}")
    state = State(0, WHOLE)
    with open(on_host, "wb") as file:
        file.write(state.content())
    came: Counter[str] = Counter()
    with changers.changer(change, on_host, state) as by:
        for number in range(rounds):
            states = [state]
            for _ in range(4 if number % 4 == 3 else 1):
                states.append(change.following(states[-1], chance))
            time.sleep(chance.choice(pace.rests))
            came[judged_round(served, way, path, by, states, chance, pace)] += 1
            state = states[-1]
    time.sleep(max(pace.rests))
    assert way(served, path) == state.content()
    return came
