"""Processes that take a changing file for some rounds each, and share a coarse clock's waits.

Run as a program, it reads a list of :class:`Lane` as JSON and forks one process for each: what they
need is loaded once. It prints what became of each, as JSON: how often what came, and a fault.
"""

import json
import multiprocessing
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from tests.e2e.changer import Change, Changers, changers
from tests.e2e.judging import COARSE, judged_rounds
from tests.e2e.ways import WAYS, Served
from tests.running import REPOSITORY
from vuserd.client import Client

_changers: Changers


class Lane(NamedTuple):
    """What is taken, how, and how often."""

    socket: str
    way: str
    change: str
    path: str
    on_host: str
    rounds: int


def run_lanes(lanes: Sequence[Lane]) -> dict[str, tuple[Counter[str], str]]:
    """Run all of them at a time; return what came and what was wrong, by way."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.lane"],
        input=json.dumps(lanes),
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    found = {lane.way: (Counter[str](), "") for lane in lanes}
    for lane, (came, fault) in zip(lanes, json.loads(done.stdout), strict=True):
        earlier, faults = found[lane.way]
        found[lane.way] = earlier + Counter(came), faults + (f"{lane}: {fault}\n" if fault else "")
    return found


def run_lane(lane: Lane) -> tuple[Counter[str], str]:
    """Run the rounds of one lane, in a process that has been told who changes files."""
    [way] = [way for way in WAYS if way.__name__ == lane.way]
    try:
        with Client.connect(lane.socket) as client:
            served = Served(client, lane.socket)
            change = Change(lane.change)
            paths = lane.path, lane.on_host
            return judged_rounds(served, way, *paths, change, lane.rounds, COARSE, _changers), ""
    except Exception:
        return Counter(), traceback.format_exc()


def _use(started: Changers) -> None:
    global _changers
    _changers = started


def main() -> None:
    """Run the lanes that are asked for, each in a process of its own."""
    lanes = [Lane(*each) for each in json.load(sys.stdin)]
    forking = multiprocessing.get_context("fork")
    with (
        changers() as started,
        ProcessPoolExecutor(len(lanes), forking, _use, (started,)) as pool,
    ):
        print(json.dumps(list(pool.map(run_lane, lanes))))


if __name__ == "__main__":
    main()
