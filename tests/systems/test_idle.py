"""Seconds after the last call the daemon holds no file, directory, mount or disk space.

And nothing happens any more: neither the daemon nor its backends wake up.
"""

import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.e2e.processes import family
from tests.e2e.ways import WAYS, Served
from tests.running import RunningDaemon, find_backend, wait_until
from tests.systems.conftest import without
from tests.systems.grounds import GROUNDS
from tests.systems.mounting import loop_device, make_image, mounted, run
from vuserd.client import Client

#: Seconds after the last call until nothing is held, where idle_time is 1.
_SHORT: Final = 2.5
#: Seconds after the last call: trio's worker threads end after ten. What wakes up then is counted.
_WATCH: Final = (10.5, 12.5)
_DISK: Final = 64 << 20
_LARGE: Final = 40 << 20


class Ground(NamedTuple):
    """An exported folder that is a small disk in memory, and another file system mounted in it."""

    export: Path
    submount: Path
    device: str


@pytest.fixture
def ground(base: Path) -> Iterator[Ground]:
    ext4 = GROUNDS["ext4-256"]
    if ext4.lacking():
        pytest.skip(str(ext4.lacking()))
    if ext4.not_installed():
        without(str(ext4.not_installed()))
    export = base / "export"
    export.mkdir()
    with ExitStack() as stack:
        stack.enter_context(mounted("-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", export))
        (export / "submount").mkdir()
        device = stack.enter_context(loop_device(make_image(base / "image", 32, "mkfs.ext4", "-q")))
        stack.enter_context(mounted(device, export / "submount"))
        for folder in (export / "folder", export / "submount" / "folder"):
            folder.mkdir()
            for number in range(400):
                (folder / f"file-{number}").write_bytes(b"%d" % number)
        (export / "large").write_bytes(os.urandom(_LARGE))
        yield Ground(export, export / "submount", device)


@pytest.fixture(scope="session")
def backends() -> list[str]:
    """Return each real virtiofsd of this machine; the fixture of each one tells what is missing."""
    found = [program for kind in ("rust", "c") if (program := find_backend(kind))]
    if not found:
        without("no virtiofsd")
    return found


def serving(ground: Ground, virtiofsd: str, name: str, *, idle_time: int | None) -> RunningDaemon:
    """Serve the ground as ``files``; ``idle_time`` None for the default."""
    socket = ground.export.parent / name
    configuration = f"""
        backend = "{virtiofsd}"
        [[listen]]
        socket = "{socket}"
        [[export]]
        name = "files"
        path = "{ground.export}"
    """
    if idle_time is not None:
        configuration += f"idle_time = {idle_time}\n"
    path = ground.export.parent / f"{name}.toml"
    path.write_text(configuration)
    return RunningDaemon({}, socket, None, "--config", str(path), configured=True)


def call_everything(served: Served) -> None:
    """Make calls of all kinds, and leave listings unfinished."""
    client = served.client
    for way in WAYS:
        way(served, "folder/file-1")
        way(served, "submount/folder/file-2")
    client.fetch("files", "large").close()
    with tempfile.TemporaryFile() as copy:
        client.download("files", "large", copy.fileno())
    client.statfs("files")
    for folder in ("folder", "submount/folder"):
        for attrs in (False, True):
            list(client.iterdir("files", folder, attrs=attrs))
            assert client.readdir("files", folder, attrs=attrs, limit=50).next is not None
        assert client.walk("files", folder, attrs=True, limit=50).next is not None
    list(client.iterwalk("files", "/", attrs=True))
    with client.attach(size=1 << 20) as memory:
        memory.load("files", "submount/folder/file-3", 0)


def wakeups(processes: list[int]) -> int:
    """Return how often the threads of processes have given up a processor."""
    return sum(
        int(line.split()[1])
        for process in processes
        for status in Path(f"/proc/{process}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if "ctxt_switches" in line
    )


def open_files(processes: list[int]) -> Counter[str]:
    """Count what processes have open, by its name without the numbers of sockets and pipes.

    What images are counted with is left out: it stays open from the first one on.
    """
    names = (
        f"{index}: {re.sub(r'[0-9]+', 'N', os.readlink(entry))}"
        for index, process in enumerate(processes)
        for entry in Path(f"/proc/{process}/fd").iterdir()
    )
    return Counter(name for name in names if name != "0: anon_inode:inotify")


def is_free(ground: Ground) -> bool:
    """Return whether the deleted file's space is there again."""
    status = os.statvfs(ground.export)
    return status.f_bavail * status.f_frsize > _DISK - (8 << 20)


def check_nothing_is_held(client: Client, processes: list[int], before: Counter[str]) -> None:
    """Expect no file to be open and no node to be known, nor a backend to be lost."""
    wait_until(lambda: open_files(processes) == before)
    export = client.status()["exports"][0]
    assert (export["nodes"], export["restarts"]) == (0, 0)
    assert client.read("files", "folder/file-9", 0, 10) == b"9"  # and it goes on


def mounting(device: str, processes: Iterable[int]) -> list[int]:
    """Return the processes in whose mount namespace a device is mounted."""
    number = os.stat(device).st_rdev
    wanted = b" %d:%d " % (os.major(number), os.minor(number))
    found = []
    for process in processes:
        with suppress(OSError):  # it has ended
            if wanted in Path(f"/proc/{process}/mountinfo").read_bytes():
                found.append(process)
    return found


def check_nothing_is_busy(ground: Ground, processes: list[int]) -> None:
    """Expect the deleted file's space to be free, and a mount not to be busy."""
    wait_until(lambda: is_free(ground))
    run("umount", ground.submount)
    assert mounting(ground.device, processes) == []
    # A process outside that has made a mount namespace meanwhile has copied this mount, too.
    everybody = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    if not mounting(ground.device, everybody):
        os.close(os.open(ground.device, os.O_RDONLY | os.O_EXCL))


def test_nothing_is_held_after_the_time_that_is_configured(ground: Ground, virtiofsd: str) -> None:
    with (
        serving(ground, virtiofsd, "s", idle_time=1) as daemon,
        Client.connect(daemon.socket) as client,
    ):
        client.stat("files", "/")
        processes = list(family(daemon.process.pid))
        before = open_files(processes)
        call_everything(Served(client, daemon.socket))
        (ground.export / "large").unlink()
        assert client.status()["exports"][0]["nodes"]  # something is there to be given up
        time.sleep(_SHORT)
        check_nothing_is_held(client, processes, before)
        check_nothing_is_busy(ground, processes)


@pytest.mark.slow
def test_nothing_happens_after_ten_seconds(ground: Ground, backends: list[str]) -> None:
    """By default, in daemons and in their backends: all of them at a time, for the waiting."""
    with ExitStack() as stack:
        watched = []
        for number, backend in enumerate(backends):
            daemon = stack.enter_context(serving(ground, backend, f"s{number}", idle_time=None))
            client = stack.enter_context(Client.connect(daemon.socket))
            client.stat("files", "/")
            processes = list(family(daemon.process.pid))
            assert len(processes) > 1
            watched.append((client, daemon.socket, processes, open_files(processes)))
        for client, socket, _, _ in watched:
            call_everything(Served(client, socket))
        last = time.monotonic()
        (ground.export / "large").unlink()
        everybody = [process for _, _, processes, _ in watched for process in processes]
        awake = earlier = 0
        for moment in _WATCH:
            time.sleep(max(0.0, last + moment - time.monotonic()))
            awake, earlier = wakeups(everybody), awake
        assert awake == earlier
        for client, _, processes, before in watched:
            check_nothing_is_held(client, processes, before)
        check_nothing_is_busy(ground, everybody)
