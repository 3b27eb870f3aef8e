"""Clients that attack: others are served with right answers meanwhile, and nothing stays behind.

Times are printed, never judged: ``pytest -s`` shows the good clients' p99 beside their idle one.
"""

import contextlib
import os
import resource
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.attacks.threats import Who, threat
from tests.e2e import attacks
from tests.e2e.at_all_limits import IMAGE, IMAGES, at_all_limits, times_of_others
from tests.e2e.attacks import connected, connections, packed
from tests.e2e.good_clients import (
    SMALL,
    GoodClients,
    Report,
    good_clients,
    large_content,
    small_content,
)
from tests.e2e.rounds import LONG, repeated, rounds
from tests.e2e.standing import Standing, assert_settles
from tests.running import RunningDaemon
from tests.systems.conftest import without
from vuserd.client import Client
from vuserd.client.errors import RemoteError

Attack = Callable[[str, int], None]

GOOD_USER: Final = 61_001
#: Descriptors that this process and the daemon need for 2,000 connections, with some to spare.
_DESCRIPTORS: Final = 4096


class Sized(NamedTuple):
    """An attack, with its rounds in every run of the suite and the most that make sense.

    Where somebody asks for rounds, each counts for ``worth``.
    """

    attack: Attack
    few: int
    most: int = 1_000_000
    worth: int = 1

    @property
    def rounds(self) -> int:
        """How many rounds to do now."""
        return min(rounds(self.few) * (self.worth if LONG else 1), self.most)


ATTACKS: Final = (
    Sized(attacks.malformed_frames, 1500),
    Sized(attacks.half_sent_frames, 500, 10_000),
    Sized(attacks.giant_frames, 250, 1000),
    Sized(attacks.nested_frames, 100, 2000),
    Sized(attacks.allocation_bombs, 600, 5000),
    Sized(attacks.pipelined_requests, 3000, worth=100),
    Sized(attacks.floods_of_nothing, 2, 40),
    Sized(attacks.descriptors_of_wrong_kinds, 500, 5000),
    Sized(attacks.descriptors_where_none_are_taken, 250, 5000),
    Sized(attacks.memory_that_is_cut_afterwards, 150, 1000),
    Sized(attacks.readers_that_stop, 16, 500),
    Sized(attacks.trees_that_nobody_reads, 8, 500),
    Sized(attacks.peers_gone_in_mid_transfer, 200, 1000),
    Sized(attacks.slow_senders, 200, 500),
    Sized(attacks.many_connections, 2000, 2000),
)


class Served(NamedTuple):
    """A daemon with its good clients, and how they do while nothing else happens."""

    running: RunningDaemon
    good: GoodClients
    idle: Report


@pytest.fixture(scope="module", autouse=True)
def _many_descriptors() -> Iterator[None]:
    """Raise what this process and those that it starts may open, where that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile-clients") / "files"
    folder.mkdir()
    (folder / "large").write_bytes(large_content())
    for number in range(SMALL):
        (folder / f"small-{number}").write_bytes(small_content(number))
    old = time.time() - 100  # so that nobody has to wait until they have settled
    for file in folder.iterdir():
        os.utime(file, (old, old))
    return folder


@pytest.fixture(scope="module")
def served(files: Path, rust_virtiofsd: str) -> Iterator[Served]:
    """Serve clients of another user than the attackers, as far as we may become one."""
    user = GOOD_USER if os.geteuid() == 0 else None
    config = files.parent / "vuserd.toml"
    config.write_text(
        f'backend = "{rust_virtiofsd}"\n'
        f'[[export]]\nname = "files"\npath = "{files}"\nusers = ["*"]\n'
    )
    with (
        tempfile.TemporaryDirectory() as folder,  # pytest's own are for one user alone
        RunningDaemon({}, Path(folder) / "s", None, "--config", str(config)) as running,
        good_clients(running.socket, user) as good,
    ):
        os.chmod(folder, 0o755)
        os.chmod(running.socket, 0o666)
        good.go()
        with Client.connect(running.socket) as client:  # as long as these take, they measure
            for _ in range(rounds(300)):
                assert client.read("files", "large", 0, 300_000)
        idle = good.stop()
        assert idle.faults == []
        print(f"\nidle: {idle.small}")
        yield Served(running, good, idle)


@threat(
    "busy-clients",
    who=Who.CLIENT,
    against="other clients",
    does="asks without reading, reads without asking, connects and leaves, a thousand times",
    promise="others are served meanwhile, and nothing stays of it",
)
@repeated
@pytest.mark.parametrize("sized", ATTACKS, ids=lambda sized: sized.attack.__name__)
def test_others_are_served_and_nothing_stays(served: Served, sized: Sized) -> None:
    needed = sized.rounds + 500 if sized.attack is attacks.many_connections else 500
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if needed > allowed:
        pytest.skip(f"{needed} descriptors are needed, this process may open {allowed}")
    before = Standing.of(served.running)
    served.good.go()
    begun = time.monotonic()
    try:
        sized.attack(served.running.socket, sized.rounds)
    finally:
        took = time.monotonic() - begun
        report = served.good.stop()
    assert report.faults == []
    assert_settles(served.running, before)
    times = report.small.p99 / served.idle.small.p99
    print(
        f"{sized.attack.__name__}, {sized.rounds} rounds in {took:.1f} s; good clients'"
        f" {report.small}: {times:.1f} times the idle p99; bulk {report.bulk}"
    )


# -- a user with all that it may have --------------------------------------------------------------

_LIMITED: Final = """
backend = "{backend}"
image_cache = 0
[limits]
stall = 600
user_connections = {connections}
user_kept = 60
user_descriptors = 64
user_frames = "{frames}M"
user_images = "64M"
user_payload = "64M"
[[listen]]
socket = "{folder}/s"
mode = "0666"
[[export]]
name = "files"
path = "{folder}/files"
users = ["*"]
idle_time = 0.5
"""
#: How often the times are taken, idle and then at the limits, where somebody asks for rounds.
#: The best pair counts: whatever else the machine does only makes one worse.
_PAIRS: Final = 4


@threat(
    "all-limits-at-once",
    who=Who.CLIENT,
    against="other users' time",
    does="has as many connections, frames, descriptors, images, walks, open files and"
    " attached memories as it may have, all at once, reads no reply and asks for more",
    promise="others' small calls are answered, in the long form with a p99 of twice the idle one"
    " at most",
)
@repeated
def test_others_calls_beside_a_user_at_all_its_limits(virtiofsd: str) -> None:
    """The long form, with $VUSERD_TEST_ROUNDS calls at a time, judges the times, too."""
    if os.geteuid() != 0:
        without("only root becomes other users")
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        config = write_limited(folder, virtiofsd)
        with RunningDaemon({}, folder / "s", None, "--config", config, configured=True) as running:
            times_of_others(running.socket, 100)  # what is loaded once is
            for _ in range(_PAIRS if LONG else 1):
                before = Standing.of(running)
                idle = times_of_others(running.socket, rounds(100))
                with at_all_limits(running.socket, folder / "stuck") as told:
                    assert set(told.values()) == {"BUSY", "TOO_LARGE"}, told
                    times = times_of_others(running.socket, rounds(100))
                assert_settles(running, before)
                ratios.append(times.p99 / idle.p99)
                print(f"\nidle: {idle}\nthen: {times}: {ratios[-1]:.2f} times the idle p99")
    if LONG:
        assert min(ratios) <= 2


def write_limited(folder: Path, backend: str) -> str:
    """Write the files and the configuration; return its name."""
    files = folder / "files"
    files.mkdir()
    (files / "page").write_bytes(b"p" * 4096)
    for number in range(IMAGES):
        (files / f"image-{number}").write_bytes(bytes(IMAGE))
    connections, frames = (2000, 64) if LONG else (250, 4)
    config = folder / "vuserd.toml"
    config.write_text(
        _LIMITED.format(backend=backend, folder=folder, connections=connections, frames=frames)
    )
    return str(config)


# -- faults that are known and not mended yet ------------------------------------------------------


@pytest.fixture
def daemon_alone(files: Path, rust_virtiofsd: str, tmp_path: Path) -> Iterator[RunningDaemon]:
    """Serve from a daemon that nobody else uses."""
    with RunningDaemon({"files": files}, tmp_path / "s", rust_virtiofsd) as running:
        yield running


@threat(
    "stopped-readers",
    who=Who.CLIENT,
    against="the daemon's payload buffers",
    does="asks for much and reads none of it",
    promise="a user's bounds hold for all connections together, and the others' calls go on",
)
def test_readers_that_stop_do_not_take_all_of_the_arena(daemon_alone: RunningDaemon) -> None:
    running = daemon_alone
    with (
        connections(running.socket, 40) as stopped,
        Client.connect(running.socket) as client,
        connected(running.socket) as good,
    ):
        for connection in stopped:
            for msgid in range(4):
                connection.sendall(packed([0, msgid, "read", ["files", "large", 0, 2_000_000]]))
        requests = client.status()["requests"]
        while (now := client.status()["requests"]) > requests + 1:
            requests = now  # some of theirs are still being taken in
        good.settimeout(20)
        good.sendall(packed([0, 1, "read", ["files", "large", 0, 2_000_000]]))
        try:
            answer = attacks.one_message(good)
        except TimeoutError:
            pytest.fail("a read of 2 MB was not served within 20 s")
        assert answer[2] is None


def resident(process: int) -> int:
    """Return the bytes of its own that a process has in memory."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)["RssAnon"].split()[0]) << 10


@pytest.mark.parametrize("part", ["method", "export", "option"])
def test_errors_that_nobody_reads_take_little_memory(
    daemon_alone: RunningDaemon, part: str
) -> None:
    name = b"\xdb" + (500_000).to_bytes(4, "big") + b"\x01" * 500_000
    bombs = {
        "method": b"\x94\x00\x01" + name + b"\x90",
        "export": b"\x94\x00\x01\xa4stat\x92" + name + b"\xa0",
        "option": b"\x94\x00\x01\xa4stat\x93\xa5files\xa0\x81" + name + b"\xc3",
    }
    running = daemon_alone
    before = resident(running.process.pid)
    with connected(running.socket) as hostile, Client.connect(running.socket) as client:
        hostile.settimeout(1)

        def send() -> None:
            with contextlib.suppress(OSError):  # it takes no more: 64 are in the daemon
                for _ in range(80):
                    hostile.sendall(bombs[part])

        sender = threading.Thread(target=send)
        sender.start()
        sender.join()
        assert client.stat("files", "large").size == len(large_content())
        grown = resident(running.process.pid) - before
        hostile.shutdown(socket.SHUT_RDWR)
    assert grown < 32 << 20, f"{grown >> 20} MiB more than before"


@threat(
    "listings that nobody reads",
    who=Who.CLIENT,
    against="the daemon's memory, and other clients",
    does="asks for long listings, walks and trees, as maps or in columns, and receives none of"
    " them",
    promise="memory stays bounded, and other clients are served",
)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("readdir", {"columns": False}),
        ("readdir", {"columns": True}),
        ("walk", {"columns": False}),
        ("walk", {"columns": True}),
        ("tree", {"size": 8 << 20}),
    ],
)
def test_listings_that_nobody_reads_take_little_memory(
    rust_virtiofsd: str, tmp_path: Path, method: str, options: dict[str, int]
) -> None:
    many = tmp_path / "files"
    many.mkdir()
    for number in range(3000):
        (many / f"{number:0>255}").touch()
    with (
        RunningDaemon({"files": many}, tmp_path / "s", rust_virtiofsd) as running,
        connected(running.socket) as hostile,
        Client.connect(running.socket) as client,
    ):
        assert client.readdir("files", "", limit=10_000).next is None
        before = resident(running.process.pid)
        asked = options | {"limit": 10_000} | ({} if method == "tree" else {"attrs": True})
        for msgid in range(64):
            hostile.sendall(packed([0, msgid, method, ["files", "", asked]]))
        requests = client.status()["requests"]
        while (now := client.status()["requests"]) > requests + 1:
            requests = now  # some of them are still being taken in
        while client.status()["exports"][0]["in_flight"]:
            assert client.stat("files", "").type == "dir"
        grown = resident(running.process.pid) - before
    assert grown < 32 << 20, f"{grown >> 20} MiB more than before"


@threat(
    "idle-memory",
    who=Who.CLIENT,
    against="a backend's few slots for memory",
    does="attaches memory, loads into it once and keeps it",
    promise="memory that lies idle gives way to others",
)
def test_attached_memory_that_lies_idle_leaves_others_a_slot(
    files: Path, virtiofsd: str, tmp_path: Path
) -> None:
    with (
        RunningDaemon({"files": files}, tmp_path / "s", virtiofsd) as running,
        contextlib.ExitStack() as stack,
    ):
        attached = 0
        while attached < 520:
            hostile = stack.enter_context(Client.connect(running.socket))
            with contextlib.suppress(RemoteError):
                for _ in range(8):
                    memory = stack.enter_context(hostile.attach(size=1 << 16))
                    attached += 1
                    assert memory.load("files", "small-1", 0) == len(small_content(1))
                continue
            break
        with Client.connect(running.socket) as good, good.attach(size=1 << 16) as memory:
            assert memory.load("files", "small-2", 0) == len(small_content(2))
