"""diod: 9P2000.L over a unix socket, with a small pipelining client of ours.

Source: diod's protocol.md and the kernel's ``include/net/9p/9p.h``; numbers are little-endian::

    message  | size u32 | type u8 | tag u16 | ... |
    string   | length u16 | bytes |
"""

import os
import socket
import struct
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from enum import IntEnum
from typing import Final, NamedTuple

from benchmarks.contender import Contender, Servers, Unavailable, WrongBytesError
from benchmarks.contenders.host import require
from benchmarks.contenders.sockets import (
    buffered,
    connect,
    fill,
    read_exactly,
    wait_until_listening,
)
from benchmarks.corpus import SLOT, SMALL_READ, BigFile, SmallFiles
from benchmarks.processes import running

_MESSAGE_MOST: Final = 1 << 20  #: asked for; the server may allow less
_READ_OVERHEAD: Final = 24
_READS: Final = 16  #: of a large file, in flight
_SMALL: Final = 64  #: small files in flight
_ENDED: Final = object()


class _Kind(IntEnum):
    """Requests; a reply's type is one more."""

    LOPEN = 12
    READDIR = 40
    VERSION = 100
    ATTACH = 104
    WALK = 110
    READ = 116
    CLUNK = 120


_LERROR: Final = 7
_NO_TAG: Final = 0xFFFF
_NO_FID: Final = 0xFFFFFFFF
_ROOT: Final = 0
_HEAD: Final = struct.Struct("<IBH")
_READ: Final = struct.Struct("<IQI")
_DIRENT: Final = struct.Struct("<13xQBH")


class DiodServer(NamedTuple):
    """A server for one folder; ``reason`` says why there is none."""

    root: str
    socket: str = ""
    process: int = 0
    reason: str = ""


@contextmanager
def diod(root: str) -> Iterator[DiodServer]:
    """Serve a folder for the block's time."""
    try:
        program = require("diod", "diod")
    except Unavailable as error:
        yield DiodServer(root, reason=str(error))
        return
    with tempfile.TemporaryDirectory(prefix="vuserd-bench-") as folder:
        path = os.path.join(folder, "s")
        options = ["-f", "-n", "-N", "-c", "/dev/null", "-l", path, "-e", root, "-L", "stderr"]
        with running([program, *options]) as process:
            try:
                wait_until_listening(path, process)
            except TimeoutError:
                yield DiodServer(root, reason="diod does not start")
                return
            yield DiodServer(root, path, process.pid)


def _string(value: bytes) -> bytes:
    return struct.pack("<H", len(value)) + value


class _Reply(NamedTuple):
    """A reply: its tag, and its body; of a READ that was placed only how many bytes came."""

    tag: int
    body: bytes
    length: int


class _NinepClient:
    """9P over a stream socket; the tag tells replies apart."""

    def __init__(self, sock: socket.socket, root: str) -> None:
        self._socket = sock
        self._stream = buffered(sock)
        self._outgoing = bytearray()
        self.begin(_Kind.VERSION, _NO_TAG, struct.pack("<I", _MESSAGE_MOST), _string(b"9P2000.L"))
        (size,) = struct.unpack_from("<I", self.receive().body)
        self.payload: int = size - _READ_OVERHEAD  #: bytes of one READ
        who = struct.pack("<I", os.geteuid())
        fids = struct.pack("<II", _ROOT, _NO_FID)
        self.begin(_Kind.ATTACH, 0, fids, _string(b""), _string(root.encode()), who)
        self.receive()

    def close(self) -> None:
        """Disconnect."""
        self._stream.close()
        self._socket.close()

    def begin(self, kind: _Kind, tag: int, *parts: bytes) -> None:
        """Queue a request."""
        body = b"".join(parts)
        self._outgoing += _HEAD.pack(len(body) + _HEAD.size, kind, tag) + body

    def begin_walk(self, tag: int, fid: int, path: str) -> None:
        """Queue a WALK from the root to a path; ``fid`` is its name from then on."""
        names = [_string(name.encode()) for name in path.split("/") if name]
        self.begin(_Kind.WALK, tag, struct.pack("<IIH", _ROOT, fid, len(names)), *names)

    def begin_open(self, tag: int, fid: int) -> None:
        """Queue an LOPEN for reading."""
        self.begin(_Kind.LOPEN, tag, struct.pack("<II", fid, os.O_RDONLY))

    def begin_read(self, tag: int, fid: int, offset: int, length: int) -> None:
        """Queue a READ."""
        self.begin(_Kind.READ, tag, _READ.pack(fid, offset, length))

    def begin_clunk(self, tag: int, fid: int) -> None:
        """Queue a CLUNK: the server forgets the fid."""
        self.begin(_Kind.CLUNK, tag, struct.pack("<I", fid))

    def open(self, fid: int, path: str) -> None:
        """Walk, then open: diod serves requests in any order, so one waits for the other."""
        self.begin_walk(0, fid, path)
        self.receive()
        self.begin_open(0, fid)
        self.receive()

    def clunk(self, fid: int) -> None:
        """Clunk, and wait for it."""
        self.begin_clunk(0, fid)
        self.receive()

    def receive(self, place: Callable[[int], memoryview] | None = None) -> _Reply:
        """Receive the next reply; what READ brings goes to what ``place`` gives for its tag.

        Raises:
            OSError: the server's errno.

        """
        if self._outgoing:
            self._socket.sendall(self._outgoing)
            self._outgoing.clear()
        size, kind, tag = _HEAD.unpack(read_exactly(self._stream, _HEAD.size))
        if kind == _LERROR:
            (number,) = struct.unpack("<I", read_exactly(self._stream, 4))
            raise OSError(number, os.strerror(number))
        if kind == _Kind.READ + 1 and place is not None:
            (count,) = struct.unpack("<I", read_exactly(self._stream, 4))
            fill(self._stream, place(tag)[:count])
            return _Reply(tag, b"", count)
        return _Reply(tag, read_exactly(self._stream, size - _HEAD.size), size)


class Diod(Contender):
    """A connection of its own."""

    def __init__(self, server: DiodServer) -> None:
        super().__init__()
        self._server = server

    def open(self) -> None:
        """Connect and attach."""
        if self._server.reason:
            raise Unavailable(self._server.reason)
        self._client = _NinepClient(connect(self._server.socket), self._server.root)
        self.undo.callback(self._client.close)
        self._buffer = memoryview(bytearray(SMALL_READ))

    def servers(self) -> Servers:
        """Name diod."""
        return Servers((self._server.process,))

    def read_file(self, file: BigFile, view: memoryview) -> None:
        """WALK, LOPEN, READs, CLUNK of a large file."""
        client = self._client
        client.open(1, file.name)
        places: dict[int, memoryview] = {}
        free = deque(range(_READS))
        offsets = iter(range(0, file.size, client.payload))
        left = file.size
        while left:
            while free and (offset := next(offsets, None)) is not None:
                places[free[0]] = view[offset : offset + client.payload]
                client.begin_read(free[0], 1, offset, len(places[free.popleft()]))
            reply = client.receive(places.__getitem__)
            if reply.length != len(places[reply.tag]):
                raise WrongBytesError(f"a short READ of {reply.length} bytes")
            left -= reply.length
            free.append(reply.tag)
        client.clunk(1)

    def read_path(self, path: str, undo: ExitStack) -> memoryview:
        """WALK, LOPEN, READ of one small file; CLUNK is outside the clock."""
        client = self._client
        client.open(1, path)
        client.begin_read(0, 1, 0, min(SMALL_READ, client.payload))
        undo.callback(client.clunk, 1)
        return self._buffer[: client.receive(lambda _: self._buffer).length]

    def read_many(self, files: SmallFiles, slots: memoryview) -> list[memoryview]:
        """WALK, LOPEN, READ, CLUNK of each, 64 files in flight, each with a tag and fid of its."""
        client = self._client
        parts = [memoryview(b"")] * len(files.files)
        following = iter(range(len(files.files)))
        steps: dict[int, Iterator[None]] = {}
        indices: dict[int, int] = {}
        reply = _Reply(0, b"", 0)

        def read_one(tag: int, index: int) -> Iterator[None]:
            client.begin_walk(tag, tag, files.files[index].path)
            yield
            client.begin_open(tag, tag)
            yield
            client.begin_read(tag, tag, 0, SLOT)
            yield
            parts[index] = slots[index * SLOT :][: reply.length]
            client.begin_clunk(tag, tag)
            yield

        def go_on(tag: int) -> None:
            if tag in steps and next(steps[tag], _ENDED) is not _ENDED:
                return
            index = next(following, None)
            if index is None:
                del steps[tag]
            else:
                indices[tag] = index
                steps[tag] = read_one(tag, index)
                next(steps[tag])

        for tag in range(1, min(_SMALL, len(files.files)) + 1):
            go_on(tag)
        while steps:
            reply = client.receive(lambda tag: slots[indices[tag] * SLOT :][:SLOT])
            go_on(reply.tag)
        return parts

    def names(self) -> list[bytes]:
        """WALK, LOPEN, READDIRs one after the other, CLUNK of the root."""
        client = self._client
        names: list[bytes] = []
        client.open(1, "")
        position = 0
        while True:
            client.begin(_Kind.READDIR, 0, _READ.pack(1, position, client.payload))
            body = client.receive().body
            at, end = 4, len(body)
            if at == end:
                break
            while at < end:
                position, _, length = _DIRENT.unpack_from(body, at)
                at += _DIRENT.size
                names.append(body[at : at + length])
                at += length
        client.clunk(1)
        return names


def tally(names: list[bytes]) -> tuple[int, None]:
    """Count the names."""
    return len(set(names) - {b".", b".."}), None
