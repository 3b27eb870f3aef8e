"""W8: how soon a daemon serves, and what it uses while idle."""

import os
import tempfile
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.contenders.ring_session import kind_of
from benchmarks.daemon import serve_command, served
from benchmarks.measure import Group, Row, say
from benchmarks.processes import resident, running, wake_ups
from benchmarks.workloads import Bench, folder
from vuserd.client import Client
from vuserd.client.errors import CannotConnect

READY: Final = "vuserd serve, to the first answer"
WAKE_UPS: Final = "vuserd, idle: wake-ups"
RESIDENT: Final = "vuserd, idle: resident MiB"
_BACKEND_WAKE_UPS: Final = "virtiofsd, idle: wake-ups"
_READY_WITHIN: Final = 60.0
_LOOK_EVERY: Final = 0.001
_SETTLE: Final = 1.0


def readiness(bench: Bench) -> Iterator[Group]:
    """Start daemons again and again, then watch one do nothing."""
    rounds = bench.profile.rounds
    starts = Group("W8, start", "start to ready, warm page cache")
    idle = Group("W8, idle", f"nobody asks for {bench.profile.idle:g} s", plain=True)
    kinds = {program: str(kind_of(program)) for program in bench.programs}
    with folder(bench, "idle") as directory:
        say(f"  {starts.key}: {starts.title}")
        rows = {program: Row(READY, kind) for program, kind in kinds.items()}
        for turn in range(rounds + 1):
            for program, row in rows.items():
                seconds = _time_start(program, directory)
                if turn:
                    row.samples.append(seconds)
        starts.rows += rows.values()
        say(f"  {idle.key}: {idle.title}")
        for program, kind in kinds.items():
            with served(program, directory) as daemon:
                time.sleep(_SETTLE)
                processes = daemon.daemon, daemon.backend
                before = [wake_ups(process) for process in processes]
                time.sleep(bench.profile.idle)
                after = [wake_ups(process) for process in processes]
                woken = [float(late - early) for late, early in zip(after, before, strict=True)]
                idle.rows += [
                    Row(WAKE_UPS, kind, [woken[0]]),
                    Row(_BACKEND_WAKE_UPS, kind, [woken[1]]),
                    Row(RESIDENT, kind, [resident(daemon.daemon) / 2**20]),
                ]
    yield starts
    yield idle


def _time_start(program: str, directory: str) -> float:
    with tempfile.TemporaryDirectory(prefix="vuserd-bench-") as place:
        path = os.path.join(place, "s")
        command = serve_command(program, directory, path)
        began = time.perf_counter()
        with running(command) as process:
            while not _answers(path):
                if process.poll() is not None or time.perf_counter() - began > _READY_WITHIN:
                    raise RuntimeError("the daemon does not start")
                time.sleep(_LOOK_EVERY)
            return time.perf_counter() - began


def _answers(path: str) -> bool:
    """Return whether the daemon serves the export's files, not only its socket."""
    try:
        with Client.connect(path) as client:
            client.stat("bench", "/")
    except CannotConnect:
        return False
    return True
