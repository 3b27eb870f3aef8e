"""A backend that dies is replaced, and its clients notice nothing but a delay."""

import operator
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest

from tests.e2e.processes import stop_group
from tests.e2e.rounds import LONG, rounds
from tests.e2e.standing import Standing, assert_settles
from tests.running import RunningDaemon
from vuserd.client import Client
from vuserd.client.errors import RemoteError

#: Backends killed in one storm.
KILLS = rounds(4)
#: Backends stopped in one storm.
STOPS = rounds(2)
#: Backends that are replaced in one storm, while they serve.
REPLACED = rounds(3)
CLIENTS = 32
#: Seconds from the end of a client's call to its next one: they are many, and need not be busy.
REST = 0.0 if LONG else 0.02
SIZE = 3_000_017


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    top = tmp_path / "shared"
    for number in range(20):
        folder = top / f"d{number}" / "below"
        folder.mkdir(parents=True)
        (folder / "small").write_bytes(b"%d" % number * 1000)
    (top / "large").write_bytes(random.Random(4).randbytes(SIZE))
    return top


def backend_pid(client: Client) -> int:
    """Return the process of the first export's backend, once there is one."""
    while True:
        backend = client.exports()[0].backend
        if backend is not None and backend.pid is not None:
            return backend.pid
        time.sleep(0.002)


def wait_for_state(client: Client, state: str) -> None:
    """Ask for the first export until it is in this state."""
    while client.exports()[0].state != state:
        time.sleep(0.002)


def alive(process: int) -> bool:
    """Return whether a process has not ended."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


class Crowd:
    """Clients that read all the time, each in its own thread and way, and check what they get."""

    def __init__(self, socket: str, top: Path, tolerated: Container[str] = ()) -> None:
        self._socket = socket
        #: Codes of errors that the calls may end with.
        self._tolerated = tolerated
        self._large = (top / "large").read_bytes()
        self._ended = threading.Event()
        self._progress = threading.Condition()
        self.faults: list[str] = []
        #: What each client has done so far.
        self._done = [0] * CLIENTS
        ways = [self._stat, self._read, self._fetch, self._load, self._list, self._walk]
        self._threads = [
            threading.Thread(target=self._run, args=(ways[number % len(ways)], number))
            for number in range(CLIENTS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def go_on(self) -> None:
        """Wait until each client has come through what it does once more, or a fault.

        Whoever needs ten answers in a row would starve where there is time for a few: a backend
        that is lost again and again as soon as it serves is not what this is about.
        """
        with self._progress:
            before = list(self._done)

            def all_went_on() -> bool:
                return bool(self.faults) or all(map(operator.lt, before, self._done))

            assert self._progress.wait_for(all_went_on, timeout=60), "the clients do not go on"

    @property
    def calls(self) -> int:
        """How often something was done."""
        return sum(self._done)

    def _count(self, number: int) -> None:
        with self._progress:
            self._done[number] += 1
            self._progress.notify_all()

    def _fail(self, words: str) -> None:
        with self._progress:
            self.faults.append(words)
            self._progress.notify_all()

    def _run(self, way: Callable[[Client, random.Random], bool], number: int) -> None:
        chance = random.Random(number)
        try:
            with Client.connect(self._socket) as client:
                while not self._ended.is_set():
                    try:
                        if not way(client, chance):
                            self._fail(f"{way.__name__}: a wrong answer")
                    except RemoteError as error:
                        if error.code not in self._tolerated:
                            raise
                    self._count(number)
                    self._ended.wait(REST)
        except Exception as error:
            self._fail(f"{way.__name__}: {error!r}")

    def _stat(self, client: Client, _: random.Random) -> bool:
        return client.stat("files", "large").size == SIZE

    def _read(self, client: Client, chance: random.Random) -> bool:
        begin = chance.randrange(SIZE)
        got = client.read("files", "large", begin, 2_000_000)
        return got == self._large[begin : begin + 2_000_000]

    def _fetch(self, client: Client, chance: random.Random) -> bool:
        number = chance.randrange(20)
        with client.fetch("files", f"d{number}/below/small") as image:
            return image.buffer() == b"%d" % number * 1000

    def _load(self, client: Client, chance: random.Random) -> bool:
        begin = chance.randrange(SIZE)
        with client.attach(size=4 << 20) as memory:
            count = memory.load("files", "large", 4096, offset=begin)
            return memory.buffer[4096 : 4096 + count] == self._large[begin:]

    def _list(self, client: Client, _: random.Random) -> bool:
        names = {entry.name for entry in client.iterdir("files", "", attrs=True)}
        return names == {"large", *(f"d{number}" for number in range(20))}

    def _walk(self, client: Client, _: random.Random) -> bool:
        paths: set[str] = set()
        after = None
        while True:
            page = client.walk("files", "", attrs=True, limit=7, after=after)
            paths.update(entry.path for entry in page.entries)
            if page.problems:
                return False
            if (after := page.next) is None:
                return len(paths) == 61


def see_everything(client: Client) -> None:
    """Make the daemon know all files and images, as it does at the end of each test."""
    client.stat("files", "large")
    for number in range(20):
        client.fetch("files", f"d{number}/below/small").close()
    assert len(list(client.iterwalk("files", "", attrs=True))) == 61


@contextmanager
def storm(
    running: RunningDaemon, client: Client, top: Path, tolerated: Container[str] = ()
) -> Iterator[Crowd]:
    """Keep clients working for the block's time, and check that they leave nothing behind."""
    see_everything(client)
    before = Standing.of(running)
    with Crowd(running.socket, top, tolerated) as crowd:
        yield crowd
    assert crowd.faults == []
    see_everything(client)
    assert_settles(running, before)


@pytest.mark.timeout(120 + 4 * KILLS)
@pytest.mark.slow
def test_clients_see_only_a_delay(virtiofsd: str, shared: Path, tmp_path: Path) -> None:
    delays = []
    with (
        RunningDaemon({"files": shared}, tmp_path / "s", virtiofsd) as daemon,
        Client.connect(daemon.socket) as client,
        storm(daemon, client, shared) as crowd,
    ):
        for _ in range(KILLS):
            os.killpg(backend_pid(client), signal.SIGKILL)
            begun = time.monotonic()
            assert client.stat("files", "large").size == SIZE
            delays.append(time.monotonic() - begun)
            crowd.go_on()
        [export] = client.status()["exports"]
        assert export["backend"] is not None
        assert export["backend"]["generation"] == KILLS + 1
    delays.sort()
    print(f"from kill to next served call: median {delays[len(delays) // 2] * 1e3:.1f} ms,", end="")
    print(
        f" p99 {delays[len(delays) * 99 // 100] * 1e3:.1f} ms, {KILLS} kills, {crowd.calls} calls"
    )


@pytest.mark.timeout(120 + 8 * STOPS)
def test_one_that_hangs_is_replaced(virtiofsd: str, shared: Path, tmp_path: Path) -> None:
    seconds = 0.5
    late = []
    with (
        RunningDaemon(
            {"files": shared}, tmp_path / "s", virtiofsd, "--timeout", str(seconds)
        ) as daemon,
        Client.connect(daemon.socket) as client,
        storm(daemon, client, shared, {"TIMEOUT", "BACKEND_DOWN"}) as crowd,
    ):
        for _ in range(STOPS):
            first = backend_pid(client)
            stop_group(first)
            begun = time.monotonic()
            try:
                client.stat("files", "large")
            except RemoteError as failure:
                if failure.code == "TIMEOUT":
                    late.append(time.monotonic() - begun - seconds)
            # Else this thread came late itself, and others had shown that the backend hangs.
            while backend_pid(client) == first:
                time.sleep(0.002)
            wait_for_state(client, "up")
            assert client.stat("files", "large").size == SIZE
            crowd.go_on()
    late.sort()
    print(f"{STOPS} backends stopped, {crowd.calls} calls; {len(late)} times TIMEOUT", end="")
    if late:
        print(
            f", {late[-1] * 1e3:.0f} ms late at worst, {late[len(late) // 2] * 1e3:.1f} ms", end=""
        )
        print(" in the median")


@pytest.mark.timeout(120 + 4 * REPLACED)
@pytest.mark.slow
def test_a_planned_restart_loses_nothing(virtiofsd: str, shared: Path, tmp_path: Path) -> None:
    with (
        RunningDaemon({"files": shared}, tmp_path / "s", virtiofsd) as daemon,
        Client.connect(daemon.socket) as client,
        Crowd(daemon.socket, shared) as crowd,
    ):
        for _ in range(REPLACED):
            first = backend_pid(client)
            client.reload("files")
            assert not alive(first)
            backend = client.exports()[0].backend
            assert backend is not None
            assert backend.pid != first
            crowd.go_on()
    assert crowd.faults == []
    assert "trying again" not in daemon.log
    assert backend is not None
    went_on = daemon.log.count("goes on with all that it has open")
    assert backend.generation == REPLACED + 1 - went_on
    assert (went_on > 0) == (backend.kind == "rust")


def test_a_replacement_that_cannot_be_had_leaves_the_old_one(
    tmp_path: Path, rust_virtiofsd: str
) -> None:
    program = tmp_path / "virtiofsd"
    program.symlink_to(rust_virtiofsd)
    adopt = ["--adopt", f"theirs={tmp_path}/nobody.sock"]
    with (
        RunningDaemon({"one": tmp_path}, tmp_path / "s", str(program), *adopt) as daemon,
        Client.connect(daemon.socket) as client,
    ):
        first = backend_pid(client)
        program.unlink()
        program.write_text(
            "#!/bin/sh\n[ $1 = --version ] && exec echo virtiofsd 1.0\necho no luck >&2; exit 3\n"
        )
        program.chmod(0o755)
        with pytest.raises(RemoteError, match=r"the other backend.*status 3"):
            client.reload("one")
        assert backend_pid(client) == first
        assert client.stat("one", "/").type == "dir"
        with pytest.raises(RemoteError, match="adopted: restart it"):
            client.reload("theirs")
        with pytest.raises(RemoteError, match="UNKNOWN_EXPORT"):
            client.reload("three")


def test_a_child_that_outlives_its_parent_is_replaced(
    virtiofsd: str, shared: Path, tmp_path: Path
) -> None:
    with (
        RunningDaemon({"files": shared}, tmp_path / "s", virtiofsd) as daemon,
        Client.connect(daemon.socket) as client,
    ):
        first = backend_pid(client)
        os.kill(first, signal.SIGKILL)  # the one that was started, not what it forked
        while backend_pid(client) == first:
            time.sleep(0.002)
        assert client.stat("files", "large").size == SIZE
    assert "SIGKILL" in daemon.log


def test_one_that_cannot_be_replaced_has_failed(tmp_path: Path, rust_virtiofsd: str) -> None:
    """And another export goes on."""
    program = tmp_path / "virtiofsd"
    program.symlink_to(rust_virtiofsd)
    with (
        RunningDaemon({"one": tmp_path, "two": tmp_path}, tmp_path / "s", str(program)) as daemon,
        Client.connect(daemon.socket) as client,
    ):
        pid = backend_pid(client)
        program.unlink()
        program.write_text(
            "#!/bin/sh\n[ $1 = --version ] && exec echo virtiofsd 1.0\necho no luck >&2; exit 3\n"
        )
        program.chmod(0o755)
        os.killpg(pid, signal.SIGKILL)
        with pytest.raises(RemoteError) as down:
            client.stat("one", "/")
        assert down.value.code == "BACKEND_DOWN"
        assert client.stat("two", "/").type == "dir"


def test_an_adopted_one_is_connected_to_again(
    rust_virtiofsd: str, shared: Path, tmp_path: Path
) -> None:
    listening = tmp_path / "virtiofsd.sock"
    command = [rust_virtiofsd, f"--socket-path={listening}", "--sandbox=none"]
    command += [f"--shared-dir={shared}", "--log-level=error", "--rlimit-nofile=4096"]
    with (
        RunningDaemon({}, tmp_path / "s", None, "--adopt", f"files={listening}") as daemon,
        Client.connect(daemon.socket) as client,
    ):
        assert client.exports()[0].state == "absent"
        for _ in range(2):
            with subprocess.Popen(command) as virtiofsd:
                wait_for_state(client, "up")
                assert client.stat("files", "large").size == SIZE
                virtiofsd.kill()
            Path(f"{listening}.pid").unlink(missing_ok=True)
            listening.unlink(missing_ok=True)
        assert client.exports()[0].state in ("up", "restarting")
