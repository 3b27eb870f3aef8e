"""A process that changes one file as it is told, and the states that it puts the file into.

It reads a line of JSON for each round, ``[[version, size, pause], ...]``: the changes to make, each
after a pause in seconds.  It prints a line when it is about to begin, and another one when they are
made: how long the longest of them took.

Many of them are started: this module does not import what takes long.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Final, NamedTuple

_REPOSITORY: Final = os.path.abspath(f"{__file__}/../../..")
#: Of a whole file: more than one READ, and more than one read of a client's.
WHOLE: Final = (1 << 20) + (300 << 10)


class State(NamedTuple):
    """What a file holds."""

    version: int
    size: int

    def content(self) -> bytes:
        """Return the bytes: no two versions have eight of them in common at the same place.

        A longer file of the same version begins with the shorter one.
        """
        return hashlib.shake_128(b"%d" % self.version).digest(self.size)


class Change(StrEnum):
    """What happens to the file."""

    CUT = "cut"  #: cut to some length by one ftruncate, and written anew
    GROW = "grow"  #: appended to, and cut back when it is large
    REPLACE = "replace"  #: another file takes its name
    REWRITE = "rewrite"  #: other bytes, as many, by one pwrite

    def following(self, state: State, chance: random.Random) -> State:
        """Return what the file holds after the next change."""
        version, size = state
        match self:
            case Change.CUT:
                if size == WHOLE:
                    return State(version, chance.randrange(WHOLE))
                return State(version + 1, WHOLE)
            case Change.GROW:
                if size > WHOLE:
                    return State(version, chance.randrange(WHOLE // 2))
                return State(version, size + chance.randrange(1, WHOLE // 2))
            case Change.REPLACE:
                return State(version + 1, chance.randrange(WHOLE))
            case Change.REWRITE:
                return State(version + 1, size)


class Changer:
    """The process, from the side that tells it what to do."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._orders = process.stdin
        self._answers = process.stdout

    def begin(self, states: list[State], pauses: list[float]) -> None:
        """Put the file through these states; the first pause begins now."""
        order = [[*state, pause] for state, pause in zip(states, pauses, strict=True)]
        self._orders.write(json.dumps(order).encode() + b"\n")
        self._orders.flush()
        assert self._answers.readline() == b"ready\n"

    def finish(self) -> float:
        """Wait until it has; return the seconds that the longest change took."""
        return float(self._answers.readline())


@contextmanager
def changer(change: Change, path: str, state: State) -> Iterator[Changer]:
    """Run the process, for a file that holds ``state``."""
    command = [sys.executable, "-m", "tests.e2e.changer", change, path, *map(str, state)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_REPOSITORY
    ) as process:
        yield Changer(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=20) == 0


def main() -> None:
    """Change the file until there are no more orders."""
    change, path = Change(sys.argv[1]), sys.argv[2]
    state = State(*map(int, sys.argv[3:]))
    descriptor = os.open(path, os.O_RDWR)
    for line in sys.stdin:
        longest = 0.0
        ahead = []
        for version, size, pause in json.loads(line):
            after = State(version, size)
            ahead.append((after, after.content(), pause))
            if change is Change.REPLACE:
                with open(spare(path, version), "wb") as new:
                    new.write(ahead[-1][1])
        print("ready", flush=True)
        for after, content, pause in ahead:
            time.sleep(pause)  # lets the reader come as far as it will
            begun = time.monotonic()
            if change is Change.REPLACE:
                os.rename(spare(path, after.version), path)
            else:
                _change(descriptor, state, after, content)
            longest = max(longest, time.monotonic() - begun)
            state = after
        print(longest, flush=True)


def spare(path: str, version: int) -> str:
    """Return where the next version waits: in no directory that is taken as a whole."""
    return f"{os.path.dirname(path)}.{version}"


def _change(descriptor: int, before: State, after: State, content: bytes) -> None:
    """Go from one state to the next by one system call."""
    if after.version != before.version:
        assert os.pwrite(descriptor, content, 0) == after.size >= before.size
    elif after.size < before.size:
        os.ftruncate(descriptor, after.size)
    else:
        tail = content[before.size :]
        assert os.pwrite(descriptor, tail, before.size) == len(tail)


if __name__ == "__main__":
    main()
