"""The front-end without a daemon: as fast as a client of virtiofsd in Python can be."""

import functools
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Final

from benchmarks.contender import Contender, Servers, WrongBytesError
from benchmarks.contenders.ring_session import (
    Exchange,
    Job,
    Reply,
    RingSession,
    kind_of,
    list_directory,
    look_up,
    opened,
    read_parts,
    read_small,
)
from benchmarks.corpus import PAGE, SLOT, SMALL_READ, BigFile, SmallFiles
from memory.region import Region
from protocol.dirent import DirectoryEntry
from protocol.fuse import ROOT_ID, NodeId

_READS: Final = 8  #: of a large file, in flight
_SMALL: Final = 32  #: small files, or directories, in flight


class Ring(Contender):
    """A session of its own with a virtiofsd of its own."""

    def __init__(self, program: str, directory: str, *, laid_once: bool = True) -> None:
        super().__init__()
        self._laid_once = laid_once
        self.backend = str(kind_of(program))
        self._program, self._directory = program, directory

    def open(self) -> None:
        """Start the virtiofsd and the session."""
        self.session = RingSession(self._program, self._directory, laid_once=self._laid_once)
        self.undo.callback(self.session.close)

    def servers(self) -> Servers:
        """Name the virtiofsd: there is no daemon."""
        return Servers(backend=(self.session.process.pid,))

    def attach(self, size: int) -> memoryview:
        """Add a region."""
        region = Region(size + -size % PAGE, "vuserd-ring-only")
        self.undo.callback(region.close)
        self._base = self.session.add_region(region).guest_address(0, size)
        return region.view[:size]

    def load(self, file: BigFile, _: memoryview) -> None:
        """LOOKUP, OPEN, READs into the region, RELEASE."""
        session, size = self.session, file.size
        node = session.finish(opened(ROOT_ID, file.name.encode()))
        offsets = iter(range(0, size, session.max_read))
        jobs = [read_parts(session, node, offsets, self._base, size) for _ in range(_READS)]
        session.run(jobs, _READS)
        session.close_file(node)

    def read_path(self, path: str) -> bytes:
        """LOOKUPs, OPEN, READ, RELEASE of one small file."""
        *folders, name = path.encode().split(b"/")
        got: list[bytes] = []

        def read() -> Generator[Exchange, Reply, None]:
            node = ROOT_ID
            for folder in folders:
                node = (yield from look_up(node, folder)).node
                self.session.forget(node)
            yield from read_small(
                self.session, node, name, SMALL_READ, lambda view: got.append(bytes(view))
            )

        self.session.finish(read())
        return got[0]

    def read_many(self, files: SmallFiles, slots: memoryview) -> list[memoryview]:
        """LOOKUP each directory once, then all files, 32 in flight."""
        folders: dict[str, NodeId] = {}
        for file in files.files:
            folder = file.path.partition("/")[0]
            if folder not in folders:
                folders[folder] = self.session.finish(look_up(ROOT_ID, folder.encode())).node
        parts = [memoryview(b"")] * len(files.files)

        def take(index: int, view: memoryview) -> None:
            parts[index] = slots[index * SLOT :][: len(view)]
            parts[index][:] = view

        def jobs() -> Iterator[Job]:
            for index, file in enumerate(files.files):
                folder, _, name = file.path.partition("/")
                taker = functools.partial(take, index)
                yield read_small(self.session, folders[folder], name.encode(), SMALL_READ, taker)

        self.session.run(jobs(), _SMALL)
        for node in folders.values():
            self.session.forget(node)
        return parts

    def names(self) -> list[DirectoryEntry]:
        """READDIR of the root."""
        found: list[DirectoryEntry] = []
        self.session.run([list_directory(self.session, ROOT_ID, found.extend, plus=False)], 1)
        return found

    def attributes(self) -> list[DirectoryEntry]:
        """READDIRPLUS of the root."""
        found: list[DirectoryEntry] = []

        def take(entries: list[DirectoryEntry]) -> None:
            found.extend(entries)
            for entry in entries:
                if entry.entry is not None:
                    self.session.forget(entry.entry.node)

        self.session.run([list_directory(self.session, ROOT_ID, take, plus=True)], 1)
        return found

    def walk(self) -> list[DirectoryEntry]:
        """READDIRPLUS of each directory that is found, 32 in flight."""
        found: list[DirectoryEntry] = []
        waiting = deque([ROOT_ID])

        def take(entries: list[DirectoryEntry]) -> None:
            found.extend(entries)
            for name, _, _, _, entry in entries:
                if entry is None:
                    raise WrongBytesError(f"no attributes of {name!r}")
                if stat.S_ISDIR(entry.attributes.mode):
                    waiting.append(entry.node)
                else:
                    self.session.forget(entry.node)

        def job(node: NodeId) -> Job:
            yield from list_directory(self.session, node, take, plus=True)
            if node != ROOT_ID:
                self.session.forget(node)

        self.session.run(_Drain(waiting, job), _SMALL)
        return found


class _Drain(Iterator[Job]):
    """A job for each node in a queue; it can have more after it had none."""

    def __init__(self, queue: deque[NodeId], make: Callable[[NodeId], Job]) -> None:
        self._queue, self._make = queue, make

    def __next__(self) -> Job:
        if not self._queue:
            raise StopIteration
        return self._make(self._queue.popleft())


def tally_names(entries: list[DirectoryEntry]) -> tuple[int, None]:
    """Count the names."""
    return len({entry.name for entry in entries}), None


def tally(entries: list[DirectoryEntry]) -> tuple[int, int]:
    """Count the entries and add up the sizes of files."""
    found = [entry.entry.attributes for entry in entries if entry.entry is not None]
    return len(found), sum(one.size for one in found if stat.S_ISREG(one.mode))
