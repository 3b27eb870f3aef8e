"""A task in a process of its own, told by the program when its turn is."""

import gc
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Final, NamedTuple, Self

from benchmarks.contender import Servers, Unavailable
from benchmarks.processes import cpu_seconds, kill, proportional_memory, tree
from benchmarks.tasks import Task

_FORK: Final = multiprocessing.get_context("fork")
#: Seconds that one turn may take before it counts as stuck.
_PATIENCE: Final = 90.0
#: Seconds that the end of a task's servers may take.
_CLOSES_WITHIN: Final = 15.0


class Usage(NamedTuple):
    """An amount (CPU seconds or bytes of memory) of each of the three parties.

    Of a client's memory, what :meth:`Task.brought` counts is left out: its caller keeps that.
    """

    client: float
    server: float
    backend: float


class Turn(NamedTuple):
    """What one round brought."""

    seconds: list[float]
    cpu: Usage
    memory: Usage | None


class Fault(NamedTuple):
    """Why a task is out."""

    reason: str
    unavailable: bool


class _Order(NamedTuple):
    thorough: bool
    weigh: bool


class Worker:
    """The process of one task, from its ``open`` to its ``close``."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.fault: Fault | None = None
        self._pipe, other = _FORK.Pipe()
        arguments = (task, other, self._pipe)
        self._process = _FORK.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        other.close()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def turn(self, *, thorough: bool, weigh: bool) -> Turn | None:
        """Make the task run once; return None once it has failed, see ``fault``."""
        if self.fault is not None:
            return None
        self._pipe.send(_Order(thorough, weigh))
        return self._answer()

    def _answer(self) -> Turn | None:
        answer: object = Fault("it is stuck", unavailable=False)
        try:
            if self._pipe.poll(_PATIENCE):
                answer = self._pipe.recv()
        except EOFError:
            answer = Fault("its process ended", unavailable=False)
        if isinstance(answer, Fault):
            self.fault = answer
            return None
        assert answer is None or isinstance(answer, Turn)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the task; if that does not end its process, kill that with all that it started."""
        self._pipe.close()
        self._process.join(_CLOSES_WITHIN)
        if self._process.is_alive():
            assert self._process.pid is not None
            kill(tree([self._process.pid]))
            self._process.join()


def _serve(task: Task, pipe: Connection, other_end: Connection) -> None:
    other_end.close()  # or this process would never see it close
    # What the program has made is not the client's: the collector would traverse all of that, too,
    # and each page that it writes to would be copied, and count as the client's memory.
    gc.freeze()
    # Terminal signals are the program's: it ends its workers by closing their pipes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        try:
            task.open()
            pipe.send(None)
            while True:
                order = pipe.recv()
                pipe.send(_turn(task, order))
        finally:
            task.close()
    except (EOFError, BrokenPipeError):
        pass
    except Unavailable as error:
        pipe.send(Fault(str(error), unavailable=True))
    except Exception as error:
        traceback.print_exc()
        pipe.send(Fault(f"{type(error).__name__}: {error}", unavailable=False))


def _turn(task: Task, order: _Order) -> Turn:
    task.prepare()
    servers = task.contender.servers()
    before = _spent(servers)
    began = time.perf_counter()
    seconds = task.work()
    elapsed = time.perf_counter() - began
    after = _spent(servers)
    memory = weigh(servers) if order.weigh else None
    if memory is not None:
        memory = memory._replace(client=memory.client - task.brought())
    task.check(thorough=order.thorough)
    cpu = Usage(*(late - early for late, early in zip(after, before, strict=True)))
    return Turn(seconds or [elapsed], cpu, memory)


def _spent(servers: Servers) -> Usage:
    """Return the CPU time spent so far; commands that have ended count as servers."""
    server, backend = spent_by(servers)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Usage(time.process_time(), server + ended.ru_utime + ended.ru_stime, backend)


def _groups(servers: Servers) -> tuple[list[int], list[int]]:
    """Return the processes of a server and of its backend, which may be the server's child."""
    backend = tree(servers.backend)
    return [process for process in tree(servers.server) if process not in backend], backend


def spent_by(servers: Servers) -> tuple[float, float]:
    """Return the CPU time that a server and its backend have used so far."""
    server, backend = map(cpu_seconds, _groups(servers))
    return server, backend


def weigh(servers: Servers, clients: Sequence[int] = ()) -> Usage:
    """Return the memory of clients (by default this process), server and backend."""
    groups = (tree(clients) or [os.getpid()], *_groups(servers))
    return Usage(*map(proportional_memory, groups))
