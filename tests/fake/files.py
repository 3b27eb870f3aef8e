"""The FUSE half of the fake backend: requests, answers, and a small file system that is honest.

:class:`tests.fake.backend.FakeBackend` serves it unless it is told to do something else, and what
it is told mostly begins with one of these answers and spoils it.
"""

import errno
import json
import math
import stat
import struct
import time
from collections import Counter
from collections.abc import Mapping
from typing import Final, NamedTuple

from protocol.fuse import Opcode, Whence
from tests.fake.ring_device import Chain

ROOT: Final = 1
MAX_PAGES: Final = 1 << 22
SUBMOUNTS: Final = 1 << 27
_FIRST_HANDLE: Final = 100
#: The content of a file, for tests that need any.
IMAGE: Final = bytes(range(256)) * 16


class FuseRequest(NamedTuple):
    """A request as it was taken off a ring."""

    queue: int
    chain: Chain
    opcode: Opcode
    unique: int
    node: int
    body: bytes


class Answer(NamedTuple):
    """What goes into the reply: an errno, or a body; the rest is only for lying."""

    body: bytes = b""
    error: int = 0
    unique: int | None = None  #: instead of the request's
    length: int | None = None  #: in the out-header, instead of the true one
    used: int | None = None  #: in the used ring, instead of the true one


class File(NamedTuple):
    """A node of the default file system."""

    content: bytes = b""
    mode: int = stat.S_IFREG | 0o644
    mtime: int = 1_000_000_000
    ctime: int = 1_000_000_000
    #: As in procfs: its size is said to be 0, and a READ brings at most so many bytes.
    most: int | None = None
    #: What its size is said to be, where that is not its length.
    size: int | None = None
    #: What its inode number is said to be; else a number of its own.
    ino: int | None = None
    #: The nanoseconds of both of its times.
    nanoseconds: int = 0
    #: Flags of its attributes: 1 for the root of a mount.
    flags: int = 0
    #: Begins and ends of its parts that are no holes; None for a file without holes.
    data: tuple[tuple[int, int], ...] | None = None


def coarse_now() -> int:
    """Return an even second that is at most two ahead: as a timestamp it is not settled for two."""
    return 2 * math.ceil(time.time() / 2)


class FakeFiles:
    """A root directory full of ``files``, each found by its name in any directory.

    Args:
        files: the root's entries; bytes stand for a regular file with this content.

    """

    def __init__(self, files: Mapping[bytes, File | bytes] | None = None) -> None:
        self.files = {
            name: file if isinstance(file, File) else File(file)
            for name, file in (files or {}).items()
        }
        self.max_pages = 256
        #: What is said to INIT.
        self.flags = MAX_PAGES | SUBMOUNTS
        #: As overlay and many a file system in user space: each opening of a directory has an order
        #: and offsets of its own, which mean nothing in another one.
        self.orders_differ = False
        #: Lookup counts that were given and not given back, by node.
        self.lookups: Counter[int] = Counter()
        self.open_handles: set[int] = set()
        self._handles = _FIRST_HANDLE
        #: How many openings came before, in all sessions, by handle.
        self._openings: dict[int, int] = {}
        self._opened = 0

    def forget_everything(self) -> None:
        """Begin anew, as a new process does: without nodes, and with the same numbers again."""
        self.lookups.clear()
        self.open_handles.clear()
        self._handles = _FIRST_HANDLE

    def saved(self) -> bytes:
        """Return what is known of nodes and handles, for another one to go on with."""
        state = [dict(self.lookups), sorted(self.open_handles), self._handles]
        return json.dumps(state).encode()

    def load(self, state: bytes) -> None:
        """Go on with what another one knew."""
        lookups, handles, self._handles = json.loads(state)
        self.lookups = Counter({int(node): count for node, count in lookups.items()})
        self.open_handles = set(handles)

    def serve_files(self, request: FuseRequest) -> Answer | None:
        """Answer a request from ``files``; node n is the file of index n - 2."""
        names = list(self.files)
        match request.opcode:
            case Opcode.INIT:
                return Answer(self.init_reply())
            case Opcode.LOOKUP:
                name = request.body.rstrip(b"\0")
                if name not in self.files:
                    return Answer(error=errno.ENOENT)
                node = names.index(name) + 2
                self.lookups[node] += 1
                return Answer(self.entry(node))
            case Opcode.GETATTR:
                return Answer(struct.pack("=QII", 1, 0, 0) + self.attributes(request.node))
            case Opcode.OPEN | Opcode.OPENDIR:
                self._handles += 1
                self.open_handles.add(self._handles)
                self._openings[self._handles] = self._opened
                self._opened += 1
                return Answer(struct.pack("=QII", self._handles, 0, 0))
            case Opcode.READ:
                _, offset, size = struct.unpack_from("=QQI", request.body)
                file = self.files[names[request.node - 2]]
                size = min(size, file.most or size)
                return Answer(file.content[offset : offset + size])
            case Opcode.READLINK:
                return Answer(self.files[names[request.node - 2]].content)
            case Opcode.READDIR | Opcode.READDIRPLUS:
                return Answer(self._directory(request, plus=request.opcode is Opcode.READDIRPLUS))
            case Opcode.LSEEK:
                return self._seek(request)
            case Opcode.RELEASE | Opcode.RELEASEDIR:
                self.open_handles.discard(struct.unpack_from("=Q", request.body)[0])
                return Answer()
            case Opcode.STATFS:
                return Answer(struct.pack("=QQQQQIII28x", 100, 50, 40, 30, 20, 4096, 255, 4096))
            case Opcode.FORGET:
                self.forget(request.node, struct.unpack("=Q", request.body)[0])
            case Opcode.BATCH_FORGET:
                for node, count in struct.iter_unpack("=QQ", request.body[8:]):
                    self.forget(node, count)
            case Opcode.INTERRUPT:
                pass
            case _:
                return Answer(error=errno.ENOSYS)
        return None

    def init_reply(
        self, major: int = 7, minor: int = 38, flags: int | None = None, max_write: int = 1 << 20
    ) -> bytes:
        """Return ``struct fuse_init_out``."""
        flags = self.flags if flags is None else flags
        return struct.pack(
            "=IIIIHHIIHHI28x", major, minor, 0, flags, 0, 0, max_write, 1, self.max_pages, 0, 0
        )

    def forget(self, node: int, count: int) -> None:
        """Take lookup counts back, as strictly as the C backend, which aborts on one too many."""
        assert node != ROOT, "the root was forgotten"
        self.lookups[node] -= count
        assert self.lookups[node] >= 0, f"node {node} was forgotten too often"

    def attributes(self, node: int) -> bytes:
        """Return ``struct fuse_attr`` of a node."""
        file = File(mode=stat.S_IFDIR | 0o755)
        if node != ROOT:
            file = list(self.files.values())[node - 2]
        times = struct.pack("=qqq", file.mtime, file.mtime, file.ctime)
        fractions = struct.pack("=III", *[file.nanoseconds] * 3)
        length = len(file.content) if file.most is None else 0
        length = length if file.size is None else file.size
        taken = length if file.data is None else sum(end - begin for begin, end in file.data)
        size = struct.pack("=QQQ", self.ino(node), length, -(-taken // 512))
        others = struct.pack("=IIIIIII", file.mode, 1, 0, 0, 0, 4096, file.flags)
        return size + times + fractions + others

    def ino(self, node: int) -> int:
        """Return the inode number that a node is said to have."""
        ino = None if node == ROOT else list(self.files.values())[node - 2].ino
        return node + 1000 if ino is None else ino

    def entry(self, node: int) -> bytes:
        """Return ``struct fuse_entry_out`` of a node."""
        return struct.pack("=QQQQII", node, 0, 1, 1, 0, 0) + self.attributes(node)

    def _seek(self, request: FuseRequest) -> Answer:
        """Answer as lseek(2) does with SEEK_DATA and SEEK_HOLE."""
        _, offset, whence = struct.unpack_from("=QQI", request.body)
        file = list(self.files.values())[request.node - 2]
        length = len(file.content)
        if offset >= length:
            return Answer(error=errno.ENXIO)
        parts = ((0, length),) if file.data is None else file.data
        for begin, end in parts:
            if offset < end and whence == Whence.DATA:
                return Answer(struct.pack("=Q", max(begin, offset)))
            if begin <= offset < end:
                return Answer(struct.pack("=Q", end))
        if whence == Whence.DATA:
            return Answer(error=errno.ENXIO)
        return Answer(struct.pack("=Q", offset))

    def _directory(self, request: FuseRequest, *, plus: bool) -> bytes:
        handle, offset, size = struct.unpack_from("=QQI", request.body)
        order = list(enumerate(self.files))
        first = 0
        if self.orders_differ:
            turn = self._openings[handle] % max(len(order), 1)
            order = order[turn:] + order[:turn]
            first = handle << 32
            assert offset == 0 or offset >> 32 == handle, "an offset of another opening"
        listing = b""
        for position, (index, name) in enumerate(order, 1):
            if position <= offset - first and offset:
                continue
            node = index + 2
            record = directory_record(name, first + position, ino=self.ino(node))
            if plus:
                record = self.entry(node) + record
            if len(listing) + len(record) > size:
                break
            listing += record
            self.lookups[node] += plus
        return listing


def directory_record(
    name: bytes, offset: int, *, ino: int = 1, kind: int = 8, length: int | None = None
) -> bytes:
    """Return ``struct fuse_dirent`` with its name, padded; ``length`` lies about the name's."""
    record = struct.pack("=QQII", ino, offset, len(name) if length is None else length, kind) + name
    return record + bytes(-len(record) % 8)
