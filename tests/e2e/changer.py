"""Processes that change one file each as they are told, and the states that they put it into.

Each reads a line of JSON for each round, ``[[version, size, pause], ...]``: the changes to make,
each after a pause in seconds.  It writes a line when it is about to begin, and another one when
they are made: how long the longest of them took.

Hundreds are needed: they are forked from one process, which has loaded what they need.
"""

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import IO, Final, NamedTuple

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
    """One of the processes, from the side that tells it what to do."""

    def __init__(self, orders: IO[bytes], answers: IO[bytes]) -> None:
        self._orders, self._answers = orders, answers

    def begin(self, states: list[State], pauses: list[float]) -> None:
        """Put the file through these states; the first pause begins now."""
        order = [[*state, pause] for state, pause in zip(states, pauses, strict=True)]
        self._orders.write(json.dumps(order).encode() + b"\n")
        self._orders.flush()
        assert self._answers.readline() == b"ready\n"

    def finish(self) -> float:
        """Wait until it has; return the seconds that the longest change took."""
        return float(self._answers.readline())


class Changers:
    """The process that the others are forked from.

    A process that is forked from the one that has started it may use it, too.
    """

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests

    @contextmanager
    def changer(self, change: Change, path: str, state: State) -> Iterator[Changer]:
        """Have a process for a file that holds ``state``, for the block's time."""
        theirs, orders = os.pipe()
        answers, theirs_too = os.pipe()
        with open(orders, "wb") as to_it, open(answers, "rb") as from_it:
            socket.send_fds(
                self._requests, [json.dumps([change, path, state]).encode()], [theirs, theirs_too]
            )
            os.close(theirs)
            os.close(theirs_too)
            yield Changer(to_it, from_it)
            to_it.close()
            assert from_it.read() == b"over\n"


@contextmanager
def changers() -> Iterator[Changers]:
    """Run that process."""
    requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with requests:
        command = [sys.executable, "-m", "tests.e2e.changer", str(theirs.fileno())]
        with theirs:
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=_REPOSITORY)
        yield Changers(requests)
    assert process.wait(timeout=60) == 0


def main() -> None:
    """Fork whenever that is requested, until there is nobody who might."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what is forked
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, 1 << 16, 2)
        if not request:
            return
        if not os.fork():
            requests.close()
            change, path, state = json.loads(request)
            with open(descriptors[0], "rb") as orders, open(descriptors[1], "w") as answers:
                work(Change(change), path, State(*state), orders, answers)
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def work(change: Change, path: str, state: State, orders: IO[bytes], answers: IO[str]) -> None:
    """Change the file until there are no more orders."""
    descriptor = os.open(path, os.O_RDWR)
    for line in orders:
        longest = 0.0
        ahead = []
        for version, size, pause in json.loads(line):
            after = State(version, size)
            ahead.append((after, after.content(), pause))
            if change is Change.REPLACE:
                with open(spare(path, version), "wb") as new:
                    new.write(ahead[-1][1])
        print("ready", file=answers, flush=True)
        for after, content, pause in ahead:
            time.sleep(pause)  # lets the reader come as far as it will
            begun = time.monotonic()
            if change is Change.REPLACE:
                os.rename(spare(path, after.version), path)
            else:
                _change(descriptor, state, after, content)
            longest = max(longest, time.monotonic() - begun)
            state = after
        print(longest, file=answers, flush=True)
    print("over", file=answers, flush=True)


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
