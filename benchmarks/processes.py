"""Processes: their trees, what they used, and how to end them."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import IO, Final

_STOP_WITHIN: Final = 10.0
_GONE: Final = (FileNotFoundError, ProcessLookupError)


def tree(roots: Sequence[int]) -> list[int]:
    """Return these processes and all that they started, as far as they still live."""
    found: list[int] = []
    waiting = list(roots)
    while waiting:
        process = waiting.pop()
        with contextlib.suppress(*_GONE):
            for task in os.listdir(f"/proc/{process}/task"):
                waiting += map(int, _text(f"/proc/{process}/task/{task}/children").split())
            found.append(process)
    return found


def cpu_seconds(processes: Sequence[int]) -> float:
    """Return the processor time that the processes have used so far, to the nanosecond."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(OSError):
            # clock_getcpuclockid(3): Linux makes the clock's number from that of the process.
            total += time.clock_gettime((~process << 3) | 2)
    return total


def proportional_memory(processes: Sequence[int]) -> int:
    """Return the bytes of memory they have mapped; a page of N processes counts as 1/N page."""
    total = 0
    for process in processes:
        with contextlib.suppress(*_GONE):
            for line in _text(f"/proc/{process}/smaps_rollup").splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def resident(process: int) -> int:
    """Return the bytes of memory that a process has mapped and that are there."""
    return int(_status(f"/proc/{process}/status")["VmRSS"].split()[0]) * 1024


def deep_size(value: object) -> int:
    """Return the bytes of memory of a value made of containers, with all that is in it."""
    total, seen, waiting = 0, set[int](), [value]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type):  # records lead to their types
            continue
        seen.add(id(one))
        total += sys.getsizeof(one)
        waiting += gc.get_referents(one)
    return total


def wake_ups(process: int) -> int:
    """Return how often the process's threads have waited so far (voluntary context switches)."""
    total = 0
    for task in os.listdir(f"/proc/{process}/task"):
        status = _status(f"/proc/{process}/task/{task}/status")
        total += int(status["voluntary_ctxt_switches"])
    return total


def _status(path: str) -> dict[str, str]:
    lines = (line.split(":", 1) for line in _text(path).splitlines())
    return {name: value.strip() for name, value in lines}


def _text(path: str) -> str:
    with open(path) as file:
        return file.read()


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    cwd: str | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command for the block's time, in a session of its own so that ^C is ours alone."""
    process = subprocess.Popen(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
        cwd=cwd,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a process and what it started: politely, then for certain."""
    descendants = tree([process.pid])[1:]
    process.terminate()
    try:
        process.wait(_STOP_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    kill(descendants)


def kill(processes: Sequence[int]) -> None:
    """End processes that live, and what they started."""
    for process in tree(processes):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
