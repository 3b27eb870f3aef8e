"""Where the daemon's own time goes: calls on a file system in this process, without the RPC.

``make bench-inside`` prints what a call costs: processor time, FUSE requests, and passes of trio's
scheduler, alone and with many in flight; then what a request of a job costs. ``--profile`` shows
the functions behind it.
"""

import argparse
import cProfile
import math
import os
import pstats
import tempfile
import time
from collections.abc import Callable
from typing import Final

import trio

from protocol import fuse
from vuserd.backend.find import find_program
from vuserd.backend.process import BackendOptions, sandboxes, start_backend
from vuserd.delivery.inline import read_small
from vuserd.device.jobs import DEPTH, Job, Jobs
from vuserd.device.procedure import Errand, Procedure
from vuserd.device.request import Ask
from vuserd.device.session import Session, SessionOptions, open_session
from vuserd.fs.filesystem import FileSystem

_CALLS: Final = 5000
_SHALLOW: Final = b"Image"
_DEEP: Final = b"boot/dtbs/vendor/board.dtb"
_SIZE: Final = 20_000
_FUNCTIONS: Final = 25
_ROUNDS: Final = 5
_REQUESTS: Final = 300  #: of each job

Operation = Callable[[FileSystem], Procedure[object]]


class _Passes(trio.abc.Instrument):
    """Counts how often the scheduler looked for I/O."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - the interface is trio's
        self.count += 1


def _read(files: FileSystem) -> Procedure[None]:
    content = yield from read_small(_DEEP, 0, 1 << 20, files)
    content.give_back()


_OPERATIONS: Final[dict[str, Operation]] = {
    "stat in the root": lambda files: files.attributes(_SHALLOW, follow=True),
    "stat, depth 4": lambda files: files.attributes(_DEEP, follow=True),
    "read of 20 kB, depth 4": _read,
}


class _Calls:
    """Calls, some in flight all the time, each an errand, as a short call of the daemon is."""

    def __init__(self, files: FileSystem, operation: Operation) -> None:
        self._files, self._operation = files, operation
        self._left = iter(range(_CALLS))
        self._in_flight = 0
        self._failure: Exception | None = None
        self._over = trio.Event()

    async def run(self, in_flight: int) -> None:
        """Make them all, so many at once."""
        self._in_flight = in_flight
        for _ in range(in_flight):
            self._begin()
        await self._over.wait()
        if self._failure is not None:
            raise self._failure

    def _begin(self) -> None:
        if self._failure is None and next(self._left, None) is not None:
            procedure = self._operation(self._files)
            Errand(self._files.session.lane, None, procedure, self._ended).resume()
            return
        self._in_flight -= 1
        if not self._in_flight:
            self._over.set()

    def _ended(self, _: object, failure: Exception | None) -> None:
        self._failure = self._failure or failure
        self._begin()


async def _all_calls(files: FileSystem, operation: Operation, in_flight: int) -> None:
    await _Calls(files, operation).run(in_flight)


def _getattrs() -> Job:
    for _ in range(_REQUESTS):
        yield [Ask(fuse.getattr(fuse.ROOT_ID))]


def _same_getattr() -> Job:
    ask = [Ask(fuse.getattr(fuse.ROOT_ID))]
    for _ in range(_REQUESTS):
        yield ask


def _lookups() -> Job:
    for _ in range(_REQUESTS):
        yield [Ask(fuse.lookup(fuse.ROOT_ID, _SHALLOW))]


_JOBS: Final[dict[str, Callable[[], Job]]] = {
    "the same GETATTR": _same_getattr,
    "GETATTR": _getattrs,
    "LOOKUP": _lookups,
}


async def _measure_jobs(session: Session) -> None:
    """Print what a request of a job costs: the least of some rounds, since others work, too."""
    print("\n| request of a job, 64 jobs at once | CPU, µs | wall, µs |")
    print("|---|---:|---:|")
    for name, make in _JOBS.items():
        best, quickest = math.inf, math.inf
        for _ in range(_ROUNDS):
            jobs = Jobs(session.lane)
            for _ in range(DEPTH):
                jobs.add(make())
            cpu, began = time.process_time(), time.perf_counter()
            await jobs.run()
            best = min(best, time.process_time() - cpu)
            quickest = min(quickest, time.perf_counter() - began)
        count = DEPTH * _REQUESTS / 1e6
        print(f"| {name} | {best / count:.2f} | {quickest / count:.2f} |")


async def _measure(directory: str, backend: str | None, *, profile: bool) -> None:
    program = await find_program(backend, os.geteuid())
    sandbox = sandboxes(program.kind, os.geteuid())[0]
    options = BackendOptions().within_limits()
    async with start_backend(program, directory, sandbox, options, "inside") as process:
        stream = await process.connect()
        async with open_session(stream, SessionOptions()) as session:
            files = FileSystem(session, 4096)
            print("| call | in flight | calls/s | CPU, µs | FUSE requests | scheduler passes |")
            print("|---|---:|---:|---:|---:|---:|")
            for name, operation in _OPERATIONS.items():
                for in_flight in (1, 16):
                    await _all_calls(files, operation, in_flight)  # warm
                    passes, requests = _Passes(), session.lane.submitted
                    trio.lowlevel.add_instrument(passes)
                    cpu, began = time.process_time(), time.perf_counter()
                    await _all_calls(files, operation, in_flight)
                    cpu, took = time.process_time() - cpu, time.perf_counter() - began
                    trio.lowlevel.remove_instrument(passes)
                    requests = session.lane.submitted - requests
                    print(
                        f"| {name} | {in_flight} | {_CALLS / took:,.0f} | {cpu / _CALLS * 1e6:.0f}"
                        f" | {requests / _CALLS:.1f} | {passes.count / _CALLS:.1f} |"
                    )
            await _measure_jobs(session)
            if profile:
                with cProfile.Profile() as profiler:
                    await _all_calls(files, _OPERATIONS["read of 20 kB, depth 4"], 16)
                pstats.Stats(profiler).sort_stats("tottime").print_stats(_FUNCTIONS)
            files.close()
        process.expect_end()


def main() -> None:
    """Measure on a new directory."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", help="the virtiofsd (default: the first one found)")
    parser.add_argument("--profile", action="store_true", help="show the functions, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vuserd-bench-") as directory:
        for path in (_SHALLOW, _DEEP):
            whole = os.path.join(os.fsencode(directory), path)
            os.makedirs(os.path.dirname(whole), exist_ok=True)
            with open(whole, "wb") as file:
                file.write(os.urandom(_SIZE))
        time.sleep(0.1)  # files that have just changed would be looked at again
        trio.run(lambda: _measure(directory, arguments.backend, profile=arguments.profile))


if __name__ == "__main__":
    main()
