"""Mixed work for a long time, with lost backends and rude clients: memory does not grow.

``make soak`` lets it run for an hour.
"""

import json
import os
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.e2e import attacks
from tests.e2e.good_clients import (
    SMALL,
    good_clients,
    large_content,
    long_name,
    small_content,
)
from tests.e2e.processes import family
from tests.e2e.rounds import LONG, rounds
from tests.running import RunningDaemon
from vuserd.client import Client

#: Seconds in every run of the suite; where somebody asks for rounds, each is a second.
SECONDS: Final = 3
#: Of all that time, what it takes until caches and arenas have their size.
_WARM: Final = 0.1
#: How much more memory the daemon may have at the end than once it was warm: a twentieth.
_DRIFT: Final = 0.05
#: Backends that are lost before the memory is looked at, and as many again; bytes that each may
#: leave behind.
_BACKENDS: Final = 15
_OF_EACH: Final = 64 << 10
#: Files of a directory that some clients list at once: more than a page with attributes.
_ENTRIES: Final = 5000
#: Files that one backend happens to know when it is counted, and another does not.
_SPARE: Final = SMALL


@contextmanager
def serving(folder: Path, backend: str) -> Iterator[RunningDaemon]:
    files = folder / "files"
    files.mkdir()
    (files / "large").write_bytes(large_content())
    for number in range(SMALL):
        (files / f"small-{number}").write_bytes(small_content(number))
    (files / "long").mkdir()
    for number in range(_ENTRIES):
        os.mknod(files / "long" / long_name(number))
    with RunningDaemon({"files": files}, folder / "s", backend) as running:
        yield running


class Resident(NamedTuple):
    """The bytes that a process has in memory."""

    all: int
    #: Without what it shares with a backend, of which each begins with untouched pages.
    own: int

    @classmethod
    def of(cls, process: int) -> "Resident":
        """Ask the kernel: proc_pid_status(5)."""
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return cls(*(int(fields[name].split()[0]) << 10 for name in ("VmRSS", "RssAnon")))

    @classmethod
    def median(cls, samples: Sequence["Resident"]) -> "Resident":
        """Return the medians: one sample says more of the moment than of the hour."""
        return cls(*(int(statistics.median(column)) for column in zip(*samples, strict=True)))


def held(process: int) -> int:
    """Return the descriptors that the daemon and its backends have open."""
    return sum(len(os.listdir(f"/proc/{each}/fd")) for each in family(process))


def settled(client: Client, process: int) -> int:
    """Return what is open once it is noticed that all other clients have gone."""
    deadline = time.monotonic() + 20
    while len(client.status()["clients"]) > 1:
        assert time.monotonic() < deadline
    return held(process)


def be_rude(path: str) -> None:
    """Make a few attacks of hostile clients."""
    attacks.malformed_frames(path, 50)
    attacks.peers_gone_in_mid_transfer(path, 20)
    attacks.descriptors_of_wrong_kinds(path, 20)


@pytest.mark.timeout(120 + 2 * rounds(SECONDS))
@pytest.mark.slow
def test_memory_stays_as_it_is(tmp_path: Path, virtiofsd: str) -> None:
    seconds = rounds(SECONDS)
    with (
        serving(tmp_path, virtiofsd) as running,
        good_clients(running.socket, entries=_ENTRIES) as good,
        Client.connect(running.socket) as client,
    ):
        daemon = running.process.pid
        good.go()
        be_rude(running.socket)
        good.stop()  # by now all files are known, and the image is kept
        descriptors = settled(client, daemon)
        samples: list[Resident] = []
        losses = 0
        good.go()
        begun = time.monotonic()
        while (elapsed := time.monotonic() - begun) < seconds:
            be_rude(running.socket)
            [export] = client.exports()
            if export.state == "up" and losses % 2:
                client.reload("files")
                losses += 1
            elif export.backend is not None and export.backend.pid is not None:
                os.kill(export.backend.pid, signal.SIGKILL)
                losses += 1
            client.stat("files", "large")
            if elapsed > seconds * _WARM:
                samples.append(Resident.of(daemon))
            time.sleep(min(10.0, seconds / 20))  # work goes on meanwhile, in other processes
        report = good.stop()
        assert report.faults == []
        some = -(-len(samples) // 10)
        warm, end = Resident.median(samples[:some]), Resident.median(samples[-some:])
        requests = client.status()["requests"]
        print(
            json.dumps(
                {
                    "seconds": seconds,
                    "requests": requests,
                    "backends killed or replaced": losses,
                    "small calls": str(report.small),
                    "resident MiB, warm and at the end": [
                        [round(size / (1 << 20), 1) for size in each] for each in (warm, end)
                    ],
                    "drift, of all and of what is its own": [
                        round(after / before - 1, 4)
                        for before, after in zip(warm, end, strict=True)
                    ],
                }
            )
        )
        assert settled(client, daemon) <= descriptors + _SPARE
        if LONG:
            assert requests > 280 * seconds  # a million in an hour
            assert end.all < warm.all * (1 + _DRIFT)


def test_backends_that_were_there_before_keep_no_memory(virtiofsd: str, tmp_path: Path) -> None:
    """Each is a third of a MiB of objects that refer to each other."""
    with serving(tmp_path, virtiofsd) as running, Client.connect(running.socket) as client:
        before = 0
        for number in range(2 * _BACKENDS):
            if number == _BACKENDS:
                before = Resident.of(running.process.pid).own
            [export] = client.exports()
            assert export.backend is not None
            assert export.backend.pid is not None
            os.kill(export.backend.pid, signal.SIGKILL)
            while client.exports()[0].backend in (None, export.backend):
                time.sleep(0.01)
            assert client.stat("files", "large").type == "file"
        after = Resident.of(running.process.pid).own
    assert after - before < _BACKENDS * _OF_EACH
