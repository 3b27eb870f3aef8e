"""Restarts of the daemon under busy clients: no call fails, and every byte is right."""

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, Self

import pytest
import trio

from tests.e2e.rounds import repeated, rounds
from tests.running import REPOSITORY
from vuserd.client import Client, TrioClient, calls
from vuserd.client.errors import ClientError
from vuserd.ctl.copying.get_tree import get_tree
from vuserd.ctl.target import Target

_RESTARTS: Final = rounds(6)
_THREADS: Final = 8
_SMALL: Final = 200_000
_LARGE: Final = 20 << 20
#: How much longer the file is whose transfer lasts until its daemon is killed.
_TIMES: Final = 2
#: Seconds for a daemon to start or to end.
_PATIENCE: Final = 60.0

# What a service manager does between fork and exec: the socket is descriptor 3.
_ACTIVATED: Final = """
import os, sys, vuserd.cli
os.dup2({descriptor}, 3)
os.environ |= {{"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "rpc"}}
sys.exit(vuserd.cli.main())
"""


class Service:
    """``vuserd serve`` that is restarted as a service manager does it: stopped, then started.

    With ``activated`` the socket is the manager's, and stays open between two daemons.
    """

    def __init__(self, folder: Path, backend: str, *, activated: bool) -> None:
        self.address = str(folder / "vuserd.sock")
        self.log_path = folder / "log"
        self._files = folder / "files"
        self._backend = backend
        self._listener: socket.socket | None = None
        if activated:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(self.address)
            self._listener.listen(128)
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        start, passed = ["-m", "vuserd.cli"], list[int]()
        socket_options = ["--socket", self.address]
        if self._listener is not None:
            passed, socket_options = [self._listener.fileno()], []
            start = ["-c", _ACTIVATED.format(descriptor=passed[0])]
        command = [sys.executable, *start, "serve", *socket_options]
        command += ["--export", f"files={self._files}", "--backend", self._backend]
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stderr=log,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
                pass_fds=passed,
            )

    def wait_until_it_serves(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            with (
                suppress(ClientError),
                Client.connect(self.address, timeout=_PATIENCE, reconnect=0) as client,
            ):
                assert client.status()["pid"] == self.process.pid
                return
            time.sleep(0.01)
        raise AssertionError("the daemon did not start: " + self.log_path.read_text())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=_PATIENCE) == 0, self.log_path.read_text()

    def restart(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.start_after_the_end()

    def start_after_the_end(self) -> None:
        """Start the next daemon when the present one has ended, which it was asked to."""
        assert self.process.wait(timeout=_PATIENCE) == 0, self.log_path.read_text()
        self.process = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=_PATIENCE)
        if self._listener is not None:
            self._listener.close()
        log = self.log_path.read_text()
        assert "Traceback" not in log, log
        assert "cut off" not in log, log


class Expected:
    """The files that are served."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.small = {f"small-{number}": os.urandom(_SMALL) for number in range(10)}
        self.large = random.Random(1).randbytes(_LARGE)
        for name, content in self.small.items():
            (folder / name).write_bytes(content)
        (folder / "large").write_bytes(self.large)
        old = time.time() - 3600  # a client need not wait for their time stamps to settle
        for name in (*self.small, "large"):
            os.utime(folder / name, (old, old))
        self.names = {*self.small, "large"}


#: Does some calls and tells how many, over one client; raises where anything is wrong.
Work = Callable[[Client, Expected, random.Random], int]


def one_at_a_time(client: Client, expected: Expected, choice: random.Random) -> int:
    name = choice.choice(list(expected.small))
    offset = choice.randrange(_SMALL)
    assert client.read("files", name, offset, 50_000) == expected.small[name][offset:][:50_000]
    assert client.stat("files", name).size == _SMALL
    assert {entry.name for entry in client.iterdir("files", "")} == expected.names
    return 3


def many_in_flight(client: Client, expected: Expected, choice: random.Random) -> int:
    wanted = [(name, choice.randrange(_SMALL), bytearray(20_000)) for name in expected.small]
    reads = [
        client.begin(calls.read_into("files", name, offset, buffer))
        for name, offset, buffer in wanted
    ]
    for read, (name, offset, buffer) in zip(reads, wanted, strict=True):
        count = client.finish(read)
        assert buffer[:count] == expected.small[name][offset:][:20_000]
    return len(reads)


def images(client: Client, expected: Expected, choice: random.Random) -> int:
    name = choice.choice(list(expected.small))
    with client.fetch("files", name) as image, image.buffer() as content:
        assert content == expected.small[name]
    return 1


def whole_files(client: Client, expected: Expected, _: random.Random) -> int:
    memfd = os.memfd_create("copy")
    try:
        client.download("files", "large", memfd)
        with open(f"/proc/self/fd/{memfd}", "rb") as copy:
            assert hashlib.file_digest(copy, "sha256").digest() == (
                hashlib.sha256(expected.large).digest()
            )
    finally:
        os.close(memfd)
    return 1


def streams(client: Client, expected: Expected, _: random.Random) -> int:
    collected = bytearray()
    client.stream("files", "large", collected.extend)
    assert collected == expected.large
    return 1


def trees(client: Client, expected: Expected, _: random.Random) -> int:
    with tempfile.TemporaryDirectory() as folder:
        assert get_tree(client, Target("files", ""), folder) == 0
        found = {name: (Path(folder) / name).read_bytes() for name in os.listdir(folder)}
        assert found == {**expected.small, "large": expected.large}
    return len(found)


_WORK: Final = (
    one_at_a_time,
    trees,
    many_in_flight,
    many_in_flight,
    images,
    whole_files,
    streams,
)


async def tasks_of_trio(address: str, expected: Expected, stopped: threading.Event) -> int:
    done = 0

    async def work(number: int) -> None:
        nonlocal done
        choice = random.Random(number)
        while not stopped.is_set():
            name = choice.choice(list(expected.small))
            offset = choice.randrange(_SMALL)
            found = await client.read("files", name, offset, 20_000)
            assert found == expected.small[name][offset:][:20_000]
            done += 1

    async with (
        TrioClient.connect(address, reconnect=_PATIENCE) as client,
        trio.open_nursery() as nursery,
    ):
        for number in range(10):
            nursery.start_soon(work, number)
    return done


class Busy:
    """Threads that work until the block ends; what went wrong in them is raised there."""

    def __init__(self, address: str, expected: Expected) -> None:
        self._address = address
        self._expected = expected
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._watch, args=(number,)) for number in range(_THREADS)
        ]
        self.done = [0] * _THREADS
        self.problems: list[BaseException] = []

    def _watch(self, number: int) -> None:
        try:
            if number == _THREADS - 1:
                arguments = (self._address, self._expected, self._stopped)
                self.done[number] = trio.run(tasks_of_trio, *arguments)
            else:
                self._work(number)
        except BaseException as problem:
            self.problems.append(problem)

    def _work(self, number: int) -> None:
        choice = random.Random(number)
        with Client.connect(self._address, reconnect=_PATIENCE) as client:
            while not self._stopped.is_set():
                self.done[number] += _WORK[number](client, self._expected, choice)

    @contextmanager
    def running(self) -> Iterator[Self]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stopped.set()
            for thread in self._threads:
                thread.join()
        if self.problems:
            raise BaseExceptionGroup("in the threads", self.problems)


@repeated
@pytest.mark.parametrize("activated", [True, False], ids=["activated", "own_socket"])
@pytest.mark.slow
def test_no_call_is_lost(rust_virtiofsd: str, tmp_path: Path, *, activated: bool) -> None:
    expected = Expected(tmp_path / "files")
    with Service(tmp_path, rust_virtiofsd, activated=activated) as service:
        service.wait_until_it_serves()
        with Busy(service.address, expected).running() as busy:
            for number in range(_RESTARTS):
                time.sleep(random.Random(number).uniform(0.05, 0.3))
                service.restart()
                service.wait_until_it_serves()
                if busy.problems:
                    break
        assert all(busy.done), busy.done
        service.stop()


@pytest.mark.parametrize("activated", [True, False], ids=["activated", "own_socket"])
def test_who_waits_in_the_queue_is_answered(
    rust_virtiofsd: str, tmp_path: Path, *, activated: bool
) -> None:
    """A daemon that has not accepted a client yet when it ends: what that one sent is answered."""
    expected = Expected(tmp_path / "files")
    with Service(tmp_path, rust_virtiofsd, activated=activated) as service, ExitStack() as stack:
        service.wait_until_it_serves()
        service.process.send_signal(signal.SIGSTOP)
        clients = [
            stack.enter_context(Client.connect(service.address, reconnect=0)) for _ in range(8)
        ]
        asked = [
            (client, client.begin(calls.stat("files", name)))
            for client in clients
            for name in list(expected.small)[:3]
        ]
        service.process.send_signal(signal.SIGTERM)
        service.process.send_signal(signal.SIGCONT)
        service.start_after_the_end()
        for client, ticket in asked:
            assert client.finish(ticket).size == _SMALL
        service.wait_until_it_serves()
        service.stop()


@pytest.mark.parametrize(
    "again",
    [True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["and_starts_again", "and_does_not"],
)
@pytest.mark.parametrize("command", ["cat", "get"])
def test_a_daemon_that_is_killed_in_a_transfer(
    rust_virtiofsd: str, tmp_path: Path, command: str, *, again: bool
) -> None:
    """It is looked for again. The transfer goes on, or fails with the file's name."""
    expected = Expected(tmp_path / "files")
    large = tmp_path / "files" / "large"
    with large.open("ab") as file:
        for _ in range(_TIMES):
            file.write(expected.large)
    old = time.time() - 3600
    os.utime(large, (old, old))
    copy = tmp_path / "copy"
    with Service(tmp_path, rust_virtiofsd, activated=False) as service:
        service.wait_until_it_serves()
        words = [*("--socket", service.address, command, "files:large")]
        client = subprocess.Popen(
            [sys.executable, "-m", "vuserd.ctl.main", *words, *([str(copy)] * (command == "get"))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
        )
        assert client.stdout is not None
        out = client.stdout.read(1 << 20) if command == "cat" else b""
        while command == "get" and client.poll() is None and not _has_begun(tmp_path):
            time.sleep(0.001)
        service.process.kill()
        service.process.wait(timeout=_PATIENCE)
        if again:
            service.process = service._start()
        rest, errors = client.communicate(timeout=_PATIENCE)
        service.process.poll()
    if client.returncode == 0:
        content = copy.read_bytes() if command == "get" else out + rest
        assert content == large.read_bytes()
    else:
        assert not again, errors
        assert errors.startswith(b"vuserctl: files:large: "), errors
        assert not copy.exists()


def _has_begun(folder: Path) -> bool:
    """Return whether a part of a copy is there."""
    names = [each for each in folder.iterdir() if "copy" in each.name]
    return any(each.stat().st_blocks for each in names)
