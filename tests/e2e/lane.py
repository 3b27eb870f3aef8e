"""A process that takes a changing file for some rounds; many of them share a coarse clock's waits.

Its argument is a :class:`Lane` as JSON; it prints how often what came, as JSON. Another status than
0 is a fault, which standard error describes.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from tests.e2e.changer import Change
from tests.e2e.judging import COARSE, judged_rounds
from tests.e2e.ways import WAYS, Served
from tests.running import REPOSITORY
from vuserd.client import Client


class Lane(NamedTuple):
    """What is taken, how, and how often."""

    socket: str
    way: str
    change: str
    path: str
    on_host: str
    rounds: int


def run_lanes(lanes: Iterable[Lane]) -> dict[str, tuple[Counter[str], str]]:
    """Run all of them at a time; return what came and what was wrong, by way."""
    found = {lane.way: (Counter[str](), "") for lane in lanes}
    processes = [
        (
            lane,
            subprocess.Popen(
                [sys.executable, "-m", "tests.e2e.lane", json.dumps(lane)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=REPOSITORY,
            ),
        )
        for lane in lanes
    ]
    for lane, process in processes:
        output, said = process.communicate()
        came, faults = found[lane.way]
        if process.returncode:
            faults += f"{lane}: {said}\n"
        else:
            came.update(json.loads(output))
        found[lane.way] = came, faults
    return found


def main() -> None:
    """Do the rounds of the lane that is asked for."""
    lane = Lane(*json.loads(sys.argv[1]))
    [way] = [way for way in WAYS if way.__name__ == lane.way]
    with Client.connect(lane.socket) as client:
        served = Served(client, lane.socket)
        change = Change(lane.change)
        came = judged_rounds(served, way, lane.path, lane.on_host, change, lane.rounds, COARSE)
    print(json.dumps(came))


if __name__ == "__main__":
    main()
