"""Files that change while they are taken: each way gives one version of them, or says CHANGED.

A reader knows which states the file goes through in a round, and has to get one of them exactly.
The next round begins after the last of these changes: so no state of a round before will do.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.changer import WHOLE, Change, Changer, State, changer
from tests.e2e.rounds import repeated, rounds
from tests.e2e.ways import (
    FailedCommandError,
    Served,
    by_download,
    by_fetch,
    by_load,
    by_read,
    by_stream,
    by_vuserctl_get,
)
from tests.running import RunningDaemon
from vuserd.client import Client
from vuserd.client.errors import RemoteError

#: Seconds. The kernel stamps a file when a write begins.  One that takes longer than this can still
#: be at work when the stamp is old, and then no stamp tells of it: such a round is not judged.
LONGEST_CHANGE: Final = 0.004
#: Seconds: what a delivery takes at most, and what it takes where the file has just changed, which
#: makes it wait for a tick of the kernel's clock first.
PAUSES: Final = (0.003, 0.018)
_BLOCK: Final = 4096


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("changing")


@pytest.fixture(scope="module")
def served(
    files: Path, virtiofsd: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    socket = tmp_path_factory.mktemp("changing-daemon") / "s"
    with RunningDaemon({"files": files}, socket, virtiofsd), Client.connect(str(socket)) as client:
        yield Served(client, str(socket))


def taken(way: Callable[[Served, str], bytes], served: Served) -> bytes | None:
    """Take the file; None where it is reported to have changed."""
    try:
        return way(served, "changing")
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


def judged_round(
    served: Served,
    way: Callable[[Served, str], bytes],
    by: Changer,
    states: list[State],
    chance: random.Random,
) -> str:
    """Take the file while it goes through states, the first of which it holds; say what came."""
    by.begin(states[1:], [chance.uniform(0, chance.choice(PAUSES)) for _ in states[1:]])
    try:
        content = taken(way, served)
    finally:
        longest = by.finish()
    if content is None:
        return "CHANGED"
    for index, state in enumerate(states):
        if len(content) == state.size and content == state.content():
            return "before" if index == 0 else "after"
    if longest > LONGEST_CHANGE:
        return "not judged"
    pytest.fail(f"a mix came, the longest change took {longest} s: {composition(content, states)}")


@repeated
@pytest.mark.parametrize("change", Change)
@pytest.mark.parametrize(
    "way",
    [by_read, by_stream, by_download, by_fetch, by_load, by_vuserctl_get],
    ids=lambda way: way.__name__,
)
def test_what_comes_is_one_version_of_it(
    served: Served,
    files: Path,
    way: Callable[[Served, str], bytes],
    change: Change,
) -> None:
    chance = random.Random(f"{way.__name__} {change}")
    path = files / "changing"
    state = State(0, WHOLE)
    path.write_bytes(state.content())
    came: Counter[str] = Counter()
    with changer(change, str(path), state) as by:
        for number in range(rounds(8)):
            states = [state]
            for _ in range(4 if number % 4 == 3 else 1):
                states.append(change.following(states[-1], chance))
            came[judged_round(served, way, by, states, chance)] += 1
            state = states[-1]
    assert way(served, "changing") == state.content()
    assert came["not judged"] <= sum(came.values()) // 2
    print(way.__name__, change, dict(came))
