"""What the kernel shows of a running daemon and of its backends."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path


def family(process: int) -> Iterator[int]:
    """Yield a process and all that descend from it."""
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from family(int(child))


def stop_group(leader: int) -> None:
    """Stop a process group; all that descends from its leader stands still when this returns."""
    os.killpg(leader, signal.SIGSTOP)
    while any(_state(process) not in "TZ" for process in family(leader)):
        time.sleep(0.001)


def _state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def mappings_of(process: int, descriptor: int) -> Iterator[str]:
    """Yield the permissions (``rw-s``) of each mapping that a process has of a file."""
    status = os.fstat(descriptor)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        _, permissions, _, on, inode, *_ = line.split()
        if (on, int(inode)) == (device, status.st_ino):
            yield permissions


def memfd_mappings(process: int) -> int:
    """Count the mappings of shared memory that a process has."""
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    return sum("/memfd:" in line for line in lines)
