"""Try tests on mutants: each in a process of its own, forked from one that has pytest loaded."""

import gc
import importlib.util
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from enum import Enum
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from types import CodeType
from typing import Final, NoReturn

import hypothesis.stateful  # noqa: F401 # loaded once here, not in every process
import pytest
import trio  # noqa: F401 # the same
from hypothesis import HealthCheck, Phase, settings

from tests.mutants.making import Mutant

_ADDRESS_SPACE: Final = 4 << 30
#: Seconds after which a trial is taken to wait for nothing. How long one runs is judged by its time
#: on a processor: a busy machine would have mutants killed that no test notices.
_LONGEST_WAIT: Final = 600
_ARGUMENTS: Final = (
    # without what tests share: it loads the daemon, and only the tests of a module are to judge it
    *("-x", "-q", "--tb=short", "-p", "no:cacheprovider", "--noconftest"),
    *("--hypothesis-profile", "mutants"),
    # hypothesis, a plugin, is loaded before pytest could rewrite its assertions
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
)

# The same examples in every run, and none kept; a busy machine is no finding.
settings.register_profile(
    "mutants",
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


class Verdict(Enum):
    """What the tests made of a mutant."""

    LIVES = "lives"
    KILLED = "killed"  #: a test failed, or the module cannot even be imported
    ENDLESS = "endless"  #: the tests ran far longer than without it
    STUCK = "stuck"  #: the tests waited for nothing


class TrialError(Exception):
    """The tests could not be run, or fail without any mutant."""


def baseline(tests: tuple[str, ...]) -> float:
    """Run ``tests`` on the module as it is; return how many seconds of a processor that takes.

    Raises:
        TrialError: they fail, or are not there.

    """
    before = _processor_time()
    process = _start(None, "", tests, limit=None)
    process.join()
    if process.exitcode != 0:
        raise TrialError(f"{' '.join(tests)} fail without a mutant (status {process.exitcode})")
    return _processor_time() - before


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_trials(
    mutants: Iterable[Mutant], path: str, tests: tuple[str, ...], limit: float
) -> Iterator[tuple[Mutant, Verdict]]:
    """Run ``tests`` on each mutant of the module at ``path``, on every processor at once.

    Args:
        mutants: taken as processors get free.
        path: relative to the current directory.
        tests: files, those that find most first.
        limit: seconds of a processor for one mutant; what takes longer counts as noticed.

    """
    waiting = iter(mutants)
    running: dict[ForkProcess, tuple[Mutant, float]] = {}
    processors = len(os.sched_getaffinity(0))
    gc.collect()
    gc.freeze()  # no trial has to look through what all of them have
    try:
        while True:
            while len(running) < processors and (mutant := next(waiting, None)) is not None:
                started = _start(mutant.code, path, tests, limit=math.ceil(limit))
                running[started] = mutant, time.monotonic() + _LONGEST_WAIT
            if not running:
                return
            first = min(deadline for _, deadline in running.values())
            wait([each.sentinel for each in running], max(0.0, first - time.monotonic()))
            for process, (mutant, deadline) in list(running.items()):
                if process.exitcode is not None:
                    verdict = _verdict(process.exitcode)
                elif time.monotonic() >= deadline:
                    verdict = Verdict.STUCK
                else:
                    continue
                if verdict in (Verdict.ENDLESS, Verdict.STUCK):
                    _kill(process)
                del running[process]
                process.close()
                yield mutant, verdict
    finally:
        for process in running:
            _kill(process)


def _verdict(status: int) -> Verdict:
    if status == pytest.ExitCode.OK:
        return Verdict.LIVES
    if status == -signal.SIGXCPU:
        return Verdict.ENDLESS
    if status in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise TrialError(f"pytest ran no tests (status {status})")
    return Verdict.KILLED


def _start(
    code: CodeType | None, path: str, tests: tuple[str, ...], *, limit: int | None
) -> ForkProcess:
    process = ForkProcess(target=_trial, args=(code, path, tests, limit))
    process.start()
    return process


def _kill(process: ForkProcess) -> None:
    """End a trial and what it has started."""
    assert process.pid
    with suppress(ProcessLookupError):  # it has no group of its own yet, or not any more
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _trial(code: CodeType | None, path: str, tests: tuple[str, ...], limit: int | None) -> NoReturn:
    """Put the mutant in the module's place, in this process only, and run the tests."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nowhere, descriptor)
        sys.dont_write_bytecode = True
    if code is not None:
        try:
            _install(code, path)
        except BaseException:
            os._exit(pytest.ExitCode.TESTS_FAILED)
    status = pytest.main([*_ARGUMENTS, *tests])
    os._exit(status)


def _install(code: CodeType, path: str) -> None:
    """Import ``code`` under the name that the module at ``path`` has."""
    name = path.removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    package, _, own = name.rpartition(".")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    exec(code, module.__dict__)
    setattr(importlib.import_module(package), own, module)
