"""A process of clients that behave and check every answer, and how long their calls take.

It is a process of its own, so that what an attacker does in Python does not slow it down.  On
``go`` its clients begin; on ``stop`` they pause, and it prints what came of it as one line of JSON.
Where nobody asks for rounds, each rests for some milliseconds after a call.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from tests.e2e.rounds import LONG
from tests.running import REPOSITORY
from vuserd.client import Client

#: What the export holds.
LARGE: Final = 2_000_003
SMALL: Final = 20
#: Seconds that a call may take before it counts as hung: below what the daemon gives a stalled one.
_PATIENCE: Final = 25.0
#: Seconds from the end of a client's call to its next one.
_REST: Final = 0.0 if LONG else 0.005


def large_content() -> bytes:
    """Return what the file ``large`` holds."""
    return hashlib.shake_128(b"large").digest(LARGE)


def small_content(number: int) -> bytes:
    """Return what the file ``small-N`` holds."""
    return b"%d," % number * 1000


def long_name(number: int) -> str:
    """Return the name of a file in ``long``."""
    return f"entry-{number:05}"


class Times(NamedTuple):
    """How long calls took, in milliseconds."""

    calls: int
    median: float
    p99: float
    worst: float

    @classmethod
    def of(cls, seconds: list[float]) -> "Times":
        """Sum up."""
        if not seconds:
            return cls(0, 0.0, 0.0, 0.0)
        ordered = sorted(seconds)
        at = (len(ordered) // 2, len(ordered) * 99 // 100, -1)
        return cls(len(ordered), *(round(ordered[index] * 1e3, 3) for index in at))

    def __str__(self) -> str:
        return (
            f"{self.calls} calls, median {self.median:.2f} ms, p99 {self.p99:.2f} ms,"
            f" worst {self.worst:.1f} ms"
        )


class Report(NamedTuple):
    """What came of one time."""

    faults: list[str]  #: wrong answers and failed calls
    small: Times  #: stats
    bulk: Times  #: reads, fetches, loads and listings


class GoodClients:
    """The process, from the side that tells it what to do."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._orders = process.stdin
        self._answers = process.stdout

    def go(self) -> None:
        """Start the clients; they have begun when this returns."""
        self._order("go")
        assert self._answers.readline() == "gone\n"

    def stop(self) -> Report:
        """Pause the clients, and return their results since :meth:`go`."""
        self._order("stop")
        faults, small, bulk = json.loads(self._answers.readline())
        return Report(faults, Times(*small), Times(*bulk))

    def _order(self, word: str) -> None:
        self._orders.write(f"{word}\n")
        self._orders.flush()


@contextmanager
def good_clients(
    socket: str, user: int | None = None, *, entries: int = 0
) -> Iterator[GoodClients]:
    """Run the process, for a daemon whose export ``files`` has what is named above.

    With ``entries`` it has a directory ``long`` with so many files as well, and some more clients
    list, walk and take it at the same time.
    """
    command = [sys.executable, "-m", "tests.e2e.good_clients", socket, str(entries)]
    if user is not None:
        command.append(str(user))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as process:
        try:
            yield GoodClients(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            status = process.wait(timeout=60)
        assert status == 0


class _Client(threading.Thread):
    """One client that goes through its calls again and again, from ``go`` to ``stop``."""

    def __init__(self, socket: str, ways: list[Callable[[Client], bool]]) -> None:
        super().__init__(daemon=True)
        self._socket = socket
        self._ways = ways
        self._going = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._first = threading.Event()
        self.seconds: list[float] = []
        self.faults: list[str] = []

    def go(self) -> None:
        self.seconds, self.faults = [], []
        self._first.clear()
        self._idle.clear()
        self._going.set()
        self._first.wait()

    def stop(self) -> None:
        self._going.clear()
        self._idle.wait()

    def run(self) -> None:
        while self._going.wait():
            try:
                with Client.connect(self._socket, timeout=_PATIENCE) as client:
                    self._call_while_going(client)
            except Exception as error:
                self.faults.append(repr(error))
                self._first.set()
                self._going.clear()
            self._idle.set()

    def _call_while_going(self, client: Client) -> None:
        while self._going.is_set():
            for way in self._ways:
                begun = time.perf_counter()
                right = way(client)
                self.seconds.append(time.perf_counter() - begun)
                if not right:
                    self.faults.append(f"{way.__name__}: a wrong answer")
                self._first.set()
                time.sleep(_REST)


class _Ways:
    def __init__(self) -> None:
        self._large = large_content()
        self._number = 0

    def stat(self, client: Client) -> bool:
        self._number = (self._number + 1) % SMALL
        return client.stat("files", f"small-{self._number}").size == len(
            small_content(self._number)
        )

    def read(self, client: Client) -> bool:
        return client.read("files", "large", 1000, 1_500_000) == self._large[1000:1_501_000]

    def fetch(self, client: Client) -> bool:
        with client.fetch("files", "large") as image, image.buffer() as buffer:
            return buffer == self._large

    def load(self, client: Client) -> bool:
        with client.attach(size=4 << 20) as memory:
            count = memory.load("files", "large", 4096)
            return bytes(memory.buffer[4096 : 4096 + count]) == self._large

    def list(self, client: Client) -> bool:
        names = {entry.name for entry in client.iterdir("files", "", attrs=True)}
        return names - {"long"} == {"large", *(f"small-{number}" for number in range(SMALL))}


class _LongWays:
    """What several clients do with one directory of several pages."""

    def __init__(self, entries: int) -> None:
        self._names = {long_name(number) for number in range(entries)}

    def names(self, client: Client) -> bool:
        return self._are_all(entry.name for entry in client.iterdir("files", "long"))

    def attributes(self, client: Client) -> bool:
        return self._are_all(
            entry.name for entry in client.iterdir("files", "long", attrs=True) if entry.stat
        )

    def walk(self, client: Client) -> bool:
        return self._are_all(
            entry.path for entry in client.iterwalk("files", "long", attrs=True) if entry.stat
        )

    def _are_all(self, found: Iterable[str]) -> bool:
        names = [*found]
        return len(names) == len(self._names) and {*names} == self._names


def main() -> None:
    """Obey orders until there are no more, as another user if one is given."""
    entries = int(sys.argv[2])
    for user in map(int, sys.argv[3:]):
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    ways = _Ways()
    small = _Client(sys.argv[1], [ways.stat])
    bulk = _Client(sys.argv[1], [ways.read, ways.fetch, ways.load, ways.list])
    clients = [small, bulk]
    if entries:
        long = _LongWays(entries)
        orders = [long.names, long.attributes], [long.attributes, long.names], [long.walk]
        clients += [_Client(sys.argv[1], [*order]) for order in orders]
    for client in clients:
        client.start()
    for line in sys.stdin:
        if line == "go\n":
            for client in clients:
                client.go()
            print("gone", flush=True)
        else:
            for client in clients:
                client.stop()
            faults = [fault for client in clients for fault in client.faults]
            report = [faults, *(Times.of(client.seconds) for client in (small, bulk))]
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
