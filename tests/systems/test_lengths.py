"""Files whose size attribute is not their length: of procfs, sysfs and FUSE.

Nothing about them changes, so every way of taking them gives what reads give on the host.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.ways import WAYS, FailedCommandError, Served, by_cat, by_get_r
from tests.running import RunningDaemon
from tests.systems.mounting import mounted, run, shared_folder
from tests.systems.oddtree import Node, directory, odd_file_system
from vuserd.client import Client
from vuserd.client.errors import RemoteError

#: Of procfs and sysfs: of size 0 and 4,096; that of a process is added to them.
_KERNELS: Final = (
    "proc/version",
    "proc/sys/kernel/hostname",
    "proc/filesystems",
    "sys/devices/system/cpu/online",
    "sys/class/net/lo/address",
    "sys/kernel/mm/transparent_hugepage/enabled",
)
_CONTENT: Final = os.urandom((2 << 20) + 77)
_SHORT: Final = b"some bytes\n"
#: How a file may be told to be: with direct I/O the kernel reads on until a read gives nothing.
_ODD: Final = {
    f"{length}-of-{size}{'-direct' * direct}": Node(content=content, size=size, direct=direct)
    for length, content in (("short", _SHORT), ("long", _CONTENT))
    for size in (0, 1, 4096, 1 << 20, (1 << 20) + 1, 3 << 20)
    for direct in (False, True)
    if direct or size  # without, the kernel itself gives nothing of a file of size 0
}


@pytest.fixture(scope="module")
def files(_root: None) -> Iterator[Path]:
    with shared_folder("lengths") as base, ExitStack() as stack:
        for name in ("proc", "sys"):
            (base / name).mkdir()
            stack.enter_context(mounted("--bind", f"/{name}", base / name))
            run("mount", "-o", "remount,bind,ro", base / name)
        # One in each directory, for the way that takes all that is in one.
        tree = {name.encode(): directory({b"file": node}) for name, node in _ODD.items()}
        stack.enter_context(odd_file_system(base / "odd", directory(tree)))
        yield base


@pytest.fixture(scope="module")
def served(files: Path, virtiofsd: str) -> Iterator[Served]:
    socket = files / "socket"
    with RunningDaemon({"files": files}, socket, virtiofsd), Client.connect(str(socket)) as client:
        yield Served(client, str(socket), sized=False)


def host_reads(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return b"".join(iter(lambda: os.read(descriptor, 1 << 20), b""))
    finally:
        os.close(descriptor)


@pytest.fixture(scope="module")
def long_file() -> Iterator[str]:
    """Yield a file of procfs with many pages, that stays the same: the arguments of a process."""
    script = "import sys; print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, *(f"argument {n}" for n in range(20_000))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield f"proc/{process.pid}/cmdline"


def wrong_files(
    served: Served, files: Path, way: Callable[[Served, str], bytes], paths: Iterable[str]
) -> list[str]:
    """Take each file; return what came wrong, and how."""
    wrong = []
    for path in paths:
        host = host_reads(files / path)
        try:
            found = way(served, path)
        except (RemoteError, FailedCommandError) as error:
            wrong.append(f"{path}: {error}")
            continue
        if found != host:
            wrong.append(f"{path}: {len(found)} bytes of {len(host)}")
    return wrong


@pytest.mark.parametrize(
    "way",
    [way for way in WAYS if way is not by_get_r],  # in their directories not all can be read
    ids=lambda way: way.__name__,
)
def test_files_of_the_kernels_own(
    served: Served, files: Path, long_file: str, way: Callable[[Served, str], bytes]
) -> None:
    there = [path for path in (*_KERNELS, long_file) if (files / path).exists()]
    assert len(there) > 4
    assert wrong_files(served, files, way, there) == []


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_files_of_fuse(served: Served, files: Path, way: Callable[[Served, str], bytes]) -> None:
    names = list(_ODD)[::5] if way is by_cat else _ODD  # each in a process of its own
    assert wrong_files(served, files, way, [f"odd/{name}/file" for name in names]) == []


def test_the_size_is_told_as_it_is(served: Served, files: Path) -> None:
    for path in ("proc/version", "sys/devices/system/cpu/online", "odd/long-of-4096-direct/file"):
        assert served.client.stat("files", path).size == os.stat(files / path).st_size
