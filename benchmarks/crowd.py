"""W7: a thousand clients that make the same call, and one small call beside much work.

The clients of a storm are plain sockets in two processes: each sends the same encoded ``stat``
again as soon as the answer is there, and an answer is right when it is the bytes of its first one,
which was decoded. All ask for one file, as rigs do that wait for a kernel, and the daemon asks the
backend once for those that come together; in one storm each client has a file of its own.

The small clients beside a bulk reader ask on a schedule, and their time counts from when they
should have asked. The one beside a tree, a walk and a listing sleeps until it is due, and the
kernel may wake it late: a row counts its time from when it asks, or from when it should have asked
if it had no answer to the stat before then, and another one counts what it overslept, too.
"""

import gc
import itertools
import multiprocessing
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any, Final

import msgpack

from benchmarks.contender import WrongBytesError
from benchmarks.contenders.sockets import connect
from benchmarks.contenders.vuserd import Vuserd
from benchmarks.corpus import (
    MIB,
    BigFile,
    make_big_file,
    make_small_files,
    make_tree,
    make_wide_directory,
    warm_buffer,
)
from benchmarks.daemon import EXPORT, Served
from benchmarks.measure import Group, Row, say
from benchmarks.worker import Usage, spent_by, weigh
from benchmarks.workloads import DTB_PATH, DTB_SIZE, Bench, all_served, folder, make_dtb
from vuserd.client import Client

RATE: Final = "stat: answers a second"
SHARE: Final = "stat: most-served over least-served client"
SMALL: Final = "read of 20 kB"
BULK: Final = "read of 64 MiB"
STAT: Final = "stat"
STAT_AND_SLEEP: Final = "stat, and what its client overslept"
#: What goes on beside it, by the folder that each job is about.
JOBS: Final = {
    "small": "tree with the files' bytes",
    "tree": "walk with attributes",
    "wide": "listing of names",
}

_FORK: Final = multiprocessing.get_context("fork")
_PROCESSES: Final = 2
_SMALL_CLIENTS: Final = 50
_SMALL_EVERY: Final = 0.05  #: seconds between two reads of one small client
_STAT_EVERY: Final = 0.005  #: seconds
_HEAD_START: Final = 0.1  #: seconds
_PATIENCE: Final = 60.0  #: seconds beyond what a process was told to take
_MESSAGE: Final = 1  #: the one message id


def crowds(bench: Bench) -> Iterator[Group]:
    """Both, one backend after the other in each round."""
    with folder(bench, "crowd") as directory:
        content = make_dtb(directory)
        bulk = make_big_file(directory, "bulk.bin", 64 * MIB)
        with all_served(bench, directory) as daemons:
            clients = bench.profile.connections
            yield _storms(bench, daemons, "W7, storm", [bulk.name] * clients, bulk.size)
            yield _storms(bench, daemons, "W7, deep storm", [DTB_PATH] * clients, DTB_SIZE)
            own = _make_own_files(directory, clients)
            yield _storms(bench, daemons, "W7, storm of own files", own, DTB_SIZE)
            yield _mixes(bench, daemons, bulk, content)
    with folder(bench, "jobs") as directory:
        profile = bench.profile
        small, tree, wide = (os.path.join(directory, name) for name in JOBS)
        os.mkdir(small)
        counts = (
            len(make_small_files(small, profile.small_files).files),
            make_tree(tree, profile.tree_directories, profile.tree_files).entries,
            make_wide_directory(wide, profile.wide).entries,
        )
        with all_served(bench, directory) as daemons:
            yield _beside_jobs(bench, daemons, counts)


def _make_own_files(directory: str, count: int) -> list[str]:
    """Make a file for each client; return their paths."""
    paths = [f"own/{number}" for number in range(count)]
    os.mkdir(os.path.join(directory, "own"))
    for path in paths:
        with open(os.path.join(directory, path), "wb") as file:
            file.truncate(DTB_SIZE)
    return paths


def _storms(
    bench: Bench, daemons: list[Served], key: str, paths: Sequence[str], size: int
) -> Group:
    seconds = bench.profile.storm
    depth = paths[0].strip("/").count("/") + 1
    title = (
        f"{len(paths):,} clients in {_PROCESSES} processes, a stat in flight each of"
        f" {'one file' if paths[0] == paths[-1] else 'a file of its own'}, depth {depth}"
    )
    group = Group(key, title, plain=True)
    say(f"  {group.key}: {group.title}")
    for served in daemons:
        group.rows += [Row(RATE, served.kind), Row(SHARE, served.kind)]
    for index, served, is_counted in _rounds(bench, daemons):
        before = spent_by(served.servers)
        answers = _run(
            [
                (_storm_clients, (served.socket, paths[first::_PROCESSES], size, seconds))
                for first in range(_PROCESSES)
            ],
            seconds,
        )
        after = spent_by(served.servers)
        if not is_counted:
            continue
        rate, share = group.rows[2 * index : 2 * index + 2]
        counts = list(itertools.chain.from_iterable(counts for counts, _ in answers))
        rate.samples.append(sum(counts) / seconds)
        share.samples.append(max(counts) / max(1, min(counts)))
        rate.cpu = Usage(sum(cpu for _, cpu in answers), after[0] - before[0], after[1] - before[1])
        rate.memory = weigh(served.servers)
    return group


def _mixes(bench: Bench, daemons: list[Served], bulk: BigFile, content: bytes) -> Group:
    rate = _SMALL_CLIENTS / _SMALL_EVERY
    title = f"{_SMALL_CLIENTS} clients read 20 kB, {rate:,.0f}/s in all, beside a bulk reader"
    group = Group("W7, mixed", title)
    say(f"  {group.key}: {group.title}")
    seconds = bench.profile.storm
    for served in daemons:
        group.rows += [Row(SMALL, served.kind), Row(BULK, served.kind)]
    for index, served, is_counted in _rounds(bench, daemons):
        waits, passes = _run(
            [
                (_small_clients, (served.socket, content, seconds)),
                (_bulk_client, (served, bulk, seconds)),
            ],
            seconds,
        )
        if is_counted:
            group.rows[2 * index].samples += waits
            group.rows[2 * index + 1].samples += passes
    return group


def _beside_jobs(bench: Bench, daemons: list[Served], counts: tuple[int, ...]) -> Group:
    files, walked, listed = counts
    title = (
        f"a client's stat beside others' tree of {files:,} files, walk of {walked:,} entries and"
        f" listing of {listed:,}, all at once"
    )
    group = Group("W7, jobs", title)
    say(f"  {group.key}: {group.title}")
    seconds = bench.profile.storm
    names = (STAT, STAT_AND_SLEEP, *JOBS.values())
    for served in daemons:
        group.rows += [Row(name, served.kind) for name in names]
    for index, served, is_counted in _rounds(bench, daemons):
        samples = itertools.chain.from_iterable(
            _run(
                [(_stat_client, (served.socket, seconds)), (_jobs, (served.socket, counts))],
                seconds,
            )
        )
        if is_counted:
            rows = group.rows[index * len(names) :]
            for row, more in zip(rows, samples, strict=False):
                row.samples += more
    return group


def _rounds(bench: Bench, daemons: list[Served]) -> Iterator[tuple[int, Served, bool]]:
    """Yield each daemon in each round, and whether the round counts: the first one warms up."""
    for turn in range(bench.profile.rounds + 1):
        for index, served in enumerate(daemons):
            yield index, served, turn > 0


def _run(jobs: list[tuple[Callable[..., Any], tuple[Any, ...]]], seconds: float) -> list[Any]:
    """Run each job in a process of its own, all from the same moment on; return their answers.

    A job says on its pipe that it is ready, waits there for the start, and sends its answer.
    """
    with ExitStack() as stack:
        pipes = []
        for target, arguments in jobs:
            ours, theirs = _FORK.Pipe()
            process = _FORK.Process(target=_job, args=(target, theirs, *arguments), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
            stack.callback(ours.close)
            theirs.close()
            pipes.append(ours)
        for pipe in pipes:
            _answer(pipe, _PATIENCE)
        for pipe in pipes:
            pipe.send(None)
        return [_answer(pipe, seconds + _PATIENCE) for pipe in pipes]


def _job(target: Callable[..., Any], pipe: Connection, *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the program's, which ends its jobs
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # what the program has made is not the clients'
    target(pipe, *arguments)


def _answer(pipe: Connection, within: float) -> Any:
    if not pipe.poll(within):
        raise TimeoutError("a crowd of clients is stuck")
    return pipe.recv()


def _start_together(pipe: Connection) -> None:
    pipe.send(None)
    pipe.recv()


def _storm_clients(
    pipe: Connection, socket: str, paths: Sequence[str], size: int, seconds: float
) -> None:
    """Send how many answers each client had, and the CPU time of them all."""
    clients: dict[int, tuple[Any, bytes, bytes]] = {}
    poll = select.epoll()
    for path in paths:
        client = connect(socket)
        request = msgpack.packb([0, _MESSAGE, "stat", [EXPORT, path]])
        client.send(request)
        answer = client.recv(4096)
        _, message, error, result = msgpack.unpackb(answer)
        if message != _MESSAGE or error is not None or result["size"] != size:
            raise WrongBytesError(f"{error or result}")
        clients[client.fileno()] = client, request, answer
        poll.register(client, select.EPOLLIN)
    counts = dict.fromkeys(clients, 0)
    _start_together(pipe)
    before = time.process_time()
    for client, request, _ in clients.values():
        client.send(request)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for number, _ in poll.poll(0.1):
            client, request, answer = clients[number]
            if client.recv(len(answer) + 1) != answer:
                raise WrongBytesError("another answer to the same question")
            counts[number] += 1
            client.send(request)
    pipe.send((list(counts.values()), time.process_time() - before))


def _bulk_client(pipe: Connection, served: Served, file: BigFile, seconds: float) -> None:
    """Send how long each pass over the file took."""
    client = Vuserd(served)
    client.open()
    view = warm_buffer(file.size)
    passes = []
    _start_together(pipe)
    end = time.monotonic() + _HEAD_START + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        client.stream(file, view)
        column = file.touch(view)
        passes.append(time.perf_counter() - began)
        file.prove(column, None)
    pipe.send(passes)
    client.close()


def _small_clients(pipe: Connection, path: str, content: bytes, seconds: float) -> None:
    """Send how long each read took."""
    request = msgpack.packb([0, _MESSAGE, "read", [EXPORT, DTB_PATH, 0, 2 * DTB_SIZE]])
    answer = msgpack.packb([1, _MESSAGE, None, content])
    clients = {client.fileno(): client for client in (connect(path) for _ in range(_SMALL_CLIENTS))}
    asked = {number: deque[float]() for number in clients}
    received = {number: bytearray() for number in clients}
    poll = select.epoll()
    for client in clients.values():
        poll.register(client, select.EPOLLIN)
    waits: list[float] = []
    _start_together(pipe)
    begin = time.perf_counter() + _HEAD_START
    gap = _SMALL_EVERY / _SMALL_CLIENTS
    schedule = zip(
        (begin + gap * number for number in range(int(seconds / gap))),
        itertools.cycle(clients),
        strict=False,
    )
    due = next(schedule, None)
    while due is not None or any(asked.values()):
        while due is not None and due[0] <= time.perf_counter():
            when, number = due
            clients[number].send(request)
            asked[number].append(when)
            due = next(schedule, None)
        wait = 1.0 if due is None else max(0.0, due[0] - time.perf_counter())
        select.select([poll], [], [], wait)  # an epoll waits for whole milliseconds
        for number, _ in poll.poll(0):
            buffer = received[number]
            buffer += clients[number].recv(256 << 10)
            while len(buffer) >= len(answer):
                if buffer[: len(answer)] != answer:
                    raise WrongBytesError("another answer to the same question")
                del buffer[: len(answer)]
                waits.append(time.perf_counter() - asked[number].popleft())
    pipe.send(waits)


def _stat_client(pipe: Connection, path: str, seconds: float) -> None:
    """Send how long each stat took, in a list, and how long with what was overslept before it."""
    request = msgpack.packb([0, _MESSAGE, "stat", [EXPORT, "/"]])
    waits = []
    waits_from_due = []
    with connect(path) as client:
        _start_together(pipe)
        due = time.perf_counter() + _HEAD_START
        end = due + seconds
        while due < end:
            began = due
            if (early := due - time.perf_counter()) > 0:
                time.sleep(early)
                began = time.perf_counter()
            client.send(request)
            answer = msgpack.unpackb(client.recv(4096))
            now = time.perf_counter()
            waits.append(now - began)
            waits_from_due.append(now - due)
            if answer[3]["type"] != "dir":
                raise WrongBytesError(f"{answer}")
            due += _STAT_EVERY
    pipe.send([waits, waits_from_due])


def _jobs(pipe: Connection, path: str, counts: tuple[int, ...]) -> None:
    """Send how long each job took, a list for each; all begin at once, each in a thread."""
    with ThreadPoolExecutor(len(JOBS)) as pool:
        _start_together(pipe)
        pipe.send([*pool.map(_job_time, itertools.repeat(path), JOBS, counts)])


def _job_time(path: str, name: str, count: int) -> list[float]:
    with Client.connect(path) as client:
        began = time.perf_counter()
        if name == "small":
            found = sum(entry.content is not None for entry in client.tree(EXPORT, name))
        elif name == "tree":
            found = sum(1 for _ in client.iterwalk(EXPORT, name, attrs=True))
        else:
            found = sum(1 for _ in client.iterdir(EXPORT, name))
        took = time.perf_counter() - began
    if found != count:
        raise WrongBytesError(f"{found} of {count} in {name}")
    return [took]
