"""The rounds: tasks take turns, in an order that moves on by one, until all had their rounds."""

import contextlib
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.tasks import Task
from benchmarks.worker import Fault, Usage, Worker


@dataclass
class Row:
    """What one task took: a sample each round, or many where the work is many calls."""

    name: str
    backend: str  #: which virtiofsd is behind it; empty for a peer
    samples: list[float] = field(default_factory=list)
    cpu: Usage | None = None  #: seconds of one round, on average
    memory: Usage | None = None  #: bytes, at the end of the last round's work
    fault: Fault | None = None

    @property
    def key(self) -> str:
        """The row's name with its backend."""
        return ", ".join(filter(None, (self.name, self.backend)))

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.samples)

    @property
    def least(self) -> float:
        """Seconds."""
        return min(self.samples)

    @property
    def p99(self) -> float:
        """Seconds: the 99th of 100, which of fewer samples than that is the largest."""
        return percentile(self.samples, 0.99)


@dataclass
class Group:
    """One workload's rows, measured in the same rounds.

    Attributes:
        key: the workload's name, with the size where it comes in several.
        title: what is done.
        size: how many ``unit`` the work of one sample brings; 0 where a rate says nothing.
        unit: what they are.
        plain: the samples are plain numbers, not seconds.

    """

    key: str
    title: str
    size: float = 0.0
    unit: str = ""
    plain: bool = False
    rows: list[Row] = field(default_factory=list)

    def row(self, name: str, backend: str = "") -> Row | None:
        """Return a row that was measured."""
        for row in self.rows:
            if (row.name, row.backend) == (name, backend) and row.fault is None and row.samples:
                return row
        return None


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the smallest sample that at least ``share`` of all are not above."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def run_rounds(group: Group, tasks: Sequence[Task], rounds: int) -> Group:
    """Measure all tasks and add their rows to the group.

    The first round warms up and is proven with hashes, and so is the last.
    """
    say(f"  {group.key}: {group.title}")
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(task)) for task in tasks]
        rows = [Row(task.name, task.contender.backend) for task in tasks]
        spent: list[list[Usage]] = [[] for _ in tasks]
        for turn in range(rounds + 1):
            last = turn == rounds
            for step in range(len(workers)):
                index = (turn + step) % len(workers)
                result = workers[index].turn(thorough=last or turn == 0, weigh=last)
                if result is None or turn == 0:
                    continue
                rows[index].samples += result.seconds
                rows[index].memory = result.memory
                spent[index].append(result.cpu)
        for row, worker, cpu in zip(rows, workers, spent, strict=True):
            row.fault = worker.fault
            if cpu:
                row.cpu = Usage(*(statistics.fmean(part) for part in zip(*cpu, strict=True)))
    group.rows += rows
    return group


def say(words: str) -> None:
    """Print the progress for the person who waits."""
    print(words, file=sys.stderr, flush=True)
