"""The trees of the odd file system as plain values, and a handle on the process that shows them.

A :class:`Node` says of a file all that a FUSE server can say, right or wrong. By default it is an
ordinary file.
"""

import contextlib
import os
import pickle
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple

from tests.running import REPOSITORY
from tests.systems.mounting import MountFailedError, run

#: The length of a message to the server.
LENGTH: Final = struct.Struct("<I")


class Time(NamedTuple):
    """A timestamp as FUSE has it: neither has to be in any range."""

    seconds: int = 1_700_000_000
    nanoseconds: int = 123_456_789


class Backing(NamedTuple):
    """A file of the host's that stands behind a node, and how fine its timestamps are."""

    path: bytes
    grain_ns: int


@dataclass(frozen=True)
class Node:
    """A file as the server shows it."""

    mode: int = stat.S_IFREG | 0o644
    content: bytes = b""  #: of a file; of a symlink its target
    entries: tuple["Entry", ...] = ()
    size: int | None = None  #: as attributes have it; None for the length of the content
    ino: int | None = None  #: None for the server's own number of the node
    times: tuple[Time, Time, Time] = (Time(), Time(), Time())  #: atime, mtime, ctime
    nlink: int = 1
    owner: tuple[int, int] = (0, 0)
    blocks: int = 8
    blksize: int = 4096
    dots: bool = True  #: whether a listing has "." and ".."
    direct: bool = False  #: FOPEN_DIRECT_IO: reads go on until one gives nothing
    #: The offset that a listing has after each entry, in turn. With these the server goes on from
    #: where its last reply ended, whatever offset it is asked for; None for the entries' numbers.
    offsets: tuple[int, ...] | None = None
    errors: Mapping[str, int] = field(default_factory=dict)  #: by operation, such as "OPEN"
    #: What the mode is after the first, second... look-up, and then the first again.
    later_modes: tuple[int, ...] = ()
    backing: Backing | None = None

    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


class Entry(NamedTuple):
    """A name in a directory, and what a listing says of it where that is not the node's own."""

    name: bytes
    node: Node
    type: int | None = None  #: DT_*
    ino: int | None = None


def directory(entries: Mapping[bytes, Node], **fields: object) -> Node:
    """Return a directory with these files."""
    listed = tuple(Entry(name, node) for name, node in entries.items())
    made = Node(mode=stat.S_IFDIR | 0o755, entries=listed)
    return replace(made, **fields)  # type: ignore[arg-type]


def backed_directory(path: Path, grain_ns: int) -> Node:
    """Return a directory of the host's, with timestamps that are multiples of ``grain_ns``."""
    return Node(mode=stat.S_IFDIR | 0o755, backing=Backing(os.fsencode(path), grain_ns))


def copied(path: bytes) -> Node:
    """Return what stands at a path of the host's, with all below it."""
    status = os.lstat(path)
    times = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
    node = Node(
        mode=status.st_mode,
        ino=status.st_ino,
        times=tuple(Time(*divmod(time, 10**9)) for time in times),  # type: ignore[arg-type]
        nlink=status.st_nlink,
        owner=(status.st_uid, status.st_gid),
        blocks=status.st_blocks,
    )
    if node.is_directory():
        names = sorted(os.listdir(path))
        entries = tuple(Entry(name, copied(os.path.join(path, name))) for name in names)
        return replace(node, entries=entries)
    if stat.S_ISLNK(node.mode):
        return replace(node, content=os.readlink(path))
    if node.is_file():
        with open(path, "rb") as file:
            return replace(node, content=file.read())
    return node


class OddFileSystem:
    """A mounted server, from the side that tells it what to show."""

    def __init__(self, process: "subprocess.Popen[bytes]", place: Path) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.place = place
        self._process = process
        self._orders = process.stdin
        self._answers = process.stdout

    def show(self, root: Node) -> None:
        """Show another tree from now on; files of the one before are stale."""
        message = pickle.dumps(root)
        with contextlib.suppress(BrokenPipeError):
            self._orders.write(LENGTH.pack(len(message)) + message)
            self._orders.flush()
        if self._answers.readline() != b"shown\n":
            status = self._process.wait()
            raise MountFailedError(f"the odd file system's server ended with status {status}")


@contextmanager
def odd_file_system(
    place: Path, root: Node | None = None, user: int = 0
) -> Iterator[OddFileSystem]:
    """Mount the server at a place, as a user's, with an empty directory or what is given."""
    place.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.systems.oddfs", str(place), str(user)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY
    ) as process:
        try:
            system = OddFileSystem(process, place)
            system.show(directory({}) if root is None else root)
            yield system
        finally:
            # Its end fails the processes that wait for a file of the mount; then the mount goes.
            process.kill()
            process.wait()
            for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n")[:-1]:
                if line.split(b" ")[4] == os.fsencode(place):
                    run("umount", "--lazy", place)
