"""The FUSE half of the fake backend: requests, answers, and a small file system that is honest.

:class:`tests.fake.backend.FakeBackend` serves it unless it is told to do something else, and what
it is told mostly begins with one of these answers and spoils it.
"""

import errno
import json
import stat
import struct
from collections import Counter
from collections.abc import Mapping
from typing import Final, NamedTuple

from protocol.fuse import Opcode
from tests.fake.ring_device import Chain

ROOT: Final = 1
MAX_PAGES: Final = 1 << 22
_FIRST_HANDLE: Final = 100


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
        #: Lookup counts that were given and not given back, by node.
        self.lookups: Counter[int] = Counter()
        self.open_handles: set[int] = set()
        self._handles = _FIRST_HANDLE

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
        self, major: int = 7, minor: int = 38, flags: int = MAX_PAGES, max_write: int = 1 << 20
    ) -> bytes:
        """Return ``struct fuse_init_out``."""
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
        times = struct.pack("=QQQ", file.mtime, file.mtime, file.ctime)
        length = len(file.content) if file.most is None else 0
        size = struct.pack("=QQQ", node + 1000, length, 8)
        return size + times + struct.pack("=IIIIIIIIII", 0, 0, 0, file.mode, 1, 0, 0, 0, 4096, 0)

    def entry(self, node: int) -> bytes:
        """Return ``struct fuse_entry_out`` of a node."""
        return struct.pack("=QQQQII", node, 0, 1, 1, 0, 0) + self.attributes(node)

    def _directory(self, request: FuseRequest, *, plus: bool) -> bytes:
        _, offset, size = struct.unpack_from("=QQI", request.body)
        listing = b""
        for index, name in list(enumerate(self.files))[offset:]:
            node = index + 2
            record = directory_record(name, index + 1, ino=node + 1000)
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
