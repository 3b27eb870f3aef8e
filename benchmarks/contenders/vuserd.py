"""vuserd, through its own synchronous client."""

import os
import stat
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

from benchmarks.contender import Contender, Servers, WrongBytesError
from benchmarks.contenders.host import ToTmpfs
from benchmarks.corpus import PAGE, SLOT, SMALL_READ, BigFile, SmallFiles
from benchmarks.daemon import EXPORT, Served
from vuserd.client import Client
from vuserd.client.calls import read_into
from vuserd.client.files.transfer import CHUNK_BYTES, WINDOW
from vuserd.client.records import Entry, WalkEntry

_SMALL_IN_FLIGHT: Final = 32


class GetTree(ToTmpfs):
    """``vuserctl get -r`` of the export to tmpfs."""

    def __init__(self, served: Served, tmpfs: str) -> None:
        command = os.path.join(os.path.dirname(sys.executable), "vuserctl")
        super().__init__(tmpfs, [command, "--socket", served.socket, "get", "-r"], "vuserd")
        self.backend = served.kind
        self._served = served

    def servers(self) -> Servers:
        """Name the daemon and its virtiofsd."""
        return self._served.servers

    def _run(self, _: str, target: str) -> None:
        super()._run(f"{EXPORT}:/", target)


class Vuserd(Contender):
    """A connection of its own to a daemon that others use too."""

    client: Client

    def __init__(self, served: Served) -> None:
        super().__init__()
        self.backend = served.kind
        self._served = served

    def open(self) -> None:
        """Connect."""
        self.client = self.undo.enter_context(Client.connect(self._served.socket))
        self._buffer = memoryview(bytearray(SMALL_READ))

    def servers(self) -> Servers:
        """Name the daemon and its virtiofsd."""
        return self._served.servers

    def attach(self, size: int) -> memoryview:
        """Make memory and attach it."""
        self._memory = self.client.attach(size=size + -size % PAGE)
        self.undo.callback(self._memory.detach)
        return memoryview(self._memory.buffer)[:size]

    def load(self, file: BigFile, _: memoryview) -> None:
        """Load a file into the attached memory."""
        length = self._memory.load(EXPORT, file.name, 0)
        if length != file.size:
            raise WrongBytesError(f"{length} bytes")

    def fetch(self, file: BigFile, undo: ExitStack) -> memoryview:
        """Fetch a sealed image and map it."""
        image = self.client.fetch(EXPORT, file.name)
        undo.callback(image.close)
        return image.buffer()

    def stream(self, file: BigFile, view: memoryview) -> None:
        """Read in parts, pipelined as the client library's own downloads are."""
        in_flight = deque[Any]()
        total = 0
        for offset in range(0, file.size, CHUNK_BYTES):
            if len(in_flight) == WINDOW:
                total += self.client.finish(in_flight.popleft())
            part = view[offset : offset + CHUNK_BYTES]
            in_flight.append(self.client.begin(read_into(EXPORT, file.name, offset, part)))
        total += sum(map(self.client.finish, in_flight))
        if total != file.size:
            raise WrongBytesError(f"{total} bytes")

    def read_path(self, path: str) -> memoryview:
        """Read one small file."""
        return self._buffer[: self.client.read_into(EXPORT, path, 0, self._buffer)]

    def read_many(self, files: SmallFiles, slots: memoryview) -> list[memoryview]:
        """Read them all, 32 in flight."""
        lengths: list[int] = []
        in_flight = deque[Any]()
        for index, file in enumerate(files.files):
            if len(in_flight) == _SMALL_IN_FLIGHT:
                lengths.append(self.client.finish(in_flight.popleft()))
            slot = slots[index * SLOT : (index + 1) * SLOT]
            in_flight.append(self.client.begin(read_into(EXPORT, file.path, 0, slot)))
        lengths += map(self.client.finish, in_flight)
        return [slots[index * SLOT :][:length] for index, length in enumerate(lengths)]

    def tree_many(self, files: SmallFiles, slots: memoryview) -> list[memoryview]:
        """Take them all by pages of their tree."""
        found: dict[str, memoryview] = {}
        for index, entry in enumerate(
            entry for entry in self.client.tree(EXPORT, "/") if entry.content is not None
        ):
            content = entry.content
            assert content is not None
            begin = index * SLOT
            slots[begin : begin + len(content)] = content
            found[entry.path] = slots[begin : begin + len(content)]
        return [found[file.path] for file in files.files]

    def archive_many(self, _: SmallFiles, slots: memoryview) -> Iterator[memoryview]:
        """Write an archive of them all; its files are separated when they are asked for."""
        end = 0

        def put(part: memoryview) -> None:
            nonlocal end
            slots[end : end + len(part)] = part
            end += len(part)

        self.client.archive(EXPORT, "/", put)
        return _files_of_newc(slots[:end])

    def names(self) -> list[Entry]:
        """List the export's root."""
        return [*self.client.iterdir(EXPORT, "/")]

    def attributes(self) -> list[Entry]:
        """List the export's root with attributes."""
        return [*self.client.iterdir(EXPORT, "/", attrs=True)]

    def walk(self) -> list[WalkEntry]:
        """Walk the export with attributes."""
        return [*self.client.iterwalk(EXPORT, "/", attrs=True)]


def tally_entries(entries: list[Entry]) -> tuple[int, int | None]:
    """Count names, and add up sizes where there are any."""
    sizes = [entry.stat.size for entry in entries if entry.stat is not None]
    return len({entry.name for entry in entries}), sum(sizes) if sizes else None


def tally_walk(entries: list[WalkEntry]) -> tuple[int, int | None]:
    """Count paths and add up the sizes of files."""
    stats = [entry.stat for entry in entries if entry.stat is not None]
    total = sum(stat.size for stat in stats if stat.type == "file")
    return len({entry.path for entry in entries}), total


def _files_of_newc(archive: memoryview) -> Iterator[memoryview]:
    at = 0
    while at < len(archive) and archive[at]:
        mode, size, length = (int(bytes(archive[at + 6 + 8 * n :][:8]), 16) for n in (1, 6, 11))
        at += 110 + length
        at += -at % 4
        if stat.S_ISREG(mode):
            yield archive[at : at + size]
        at += size
        at += -at % 4
