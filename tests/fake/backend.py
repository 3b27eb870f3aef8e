"""A virtio-fs backend in this process that does what a test tells it to.

It speaks the back-end's side of vhost-user on one end of a socket pair, maps the memory that it is
given, and takes FUSE requests off the rings through :mod:`tests.fake.ring_device`, which is strict.
Every request goes to ``answer``, which replies at once, or returns None and keeps it: then
:meth:`FakeBackend.reply` ends it later. The default is a small read-only file system::

    backend = FakeBackend({b"Image": b"kernel"})
    async with backend.session() as session:
        ...
"""

import array
import contextlib
import errno
import mmap
import os
import socket
import stat
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import trio

from protocol.fuse import Opcode
from protocol.vhost_user import Request
from tests.fake.ring_device import Chain, DeviceMemory, RingAddresses, RingDevice
from vuserd.device.session import Session, SessionOptions, open_session

ROOT: Final = 1
VERSION_1: Final = 1 << 32
PROTOCOL_FEATURES: Final = 1 << 30
MQ: Final = 1 << 0
REPLY_ACK: Final = 1 << 3
MAX_PAGES: Final = 1 << 22


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


class FakeBackend:
    """See the module. All attributes may be changed before the session, most during it.

    Args:
        files: the root's entries; bytes stand for a regular file with this content.

    """

    def __init__(self, files: Mapping[bytes, File | bytes] | None = None) -> None:
        self.files = {
            name: file if isinstance(file, File) else File(file)
            for name, file in (files or {}).items()
        }
        self.features = VERSION_1 | PROTOCOL_FEATURES
        self.protocol_features = MQ | REPLY_ACK
        self.queues = 2
        #: The status that each vhost-user request is acknowledged with, 0 by default.
        self.refused: dict[Request, int] = {}
        #: Vhost-user requests that are never answered.
        self.ignored: set[Request] = set()
        self.max_pages = 256
        self.answer: Callable[[FuseRequest], Answer | None] = self.serve_files

        #: What has come so far.
        self.messages: list[Request] = []
        self.requests: list[FuseRequest] = []
        self.kicks: Counter[int] = Counter()
        #: Lookup counts that were given and not given back, by node.
        self.lookups: Counter[int] = Counter()
        self.open_handles: set[int] = set()

        self.rings: dict[int, RingDevice] = {}
        self._memory = DeviceMemory()
        self._rings: dict[int, dict[Request, tuple[int, ...]]] = {}
        self._kick: dict[int, int] = {}
        self._call: dict[int, int] = {}
        self._handles = 100
        self._scope = trio.CancelScope()

    @asynccontextmanager
    async def session(self, options: SessionOptions | None = None) -> AsyncIterator[Session]:
        """Run the front-end's session on this backend for the block's time."""
        ours, theirs = socket.socketpair()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve, trio.socket.from_stdlib_socket(ours))
            try:
                async with open_session(stream, options or SessionOptions()) as session:
                    yield session
            except Exception as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def die(self) -> None:
        """Close the vhost-user socket, as a process that ends does."""
        self._scope.cancel()

    def named(self, opcode: Opcode) -> list[FuseRequest]:
        """Return the requests of one kind that have come so far."""
        return [request for request in self.requests if request.opcode is opcode]

    def reply(self, request: FuseRequest, answer: Answer) -> None:
        """End a request."""
        length = 16 + len(answer.body)
        header = struct.pack(
            "=IiQ",
            length if answer.length is None else answer.length,
            -answer.error,
            request.unique if answer.unique is None else answer.unique,
        )
        request.chain.write(header + answer.body)
        self.use(request, length if answer.used is None else answer.used)

    def use(self, request: FuseRequest, length: int) -> None:
        """Put a request's chain into the used ring and call the driver."""
        self.rings[request.queue].push(request.chain, length)
        os.eventfd_write(self._call[request.queue], 1)

    # --- the default file system ------------------------------------------------------------------

    def serve_files(self, request: FuseRequest) -> Answer | None:
        """Answer a request from ``files``; node n is the file of index n - 2."""
        names = list(self.files)
        match request.opcode:
            case Opcode.INIT:
                flags = MAX_PAGES
                return Answer(
                    struct.pack(
                        "=IIIIHHIIHHI28x", 7, 38, 0, flags, 0, 0, 1 << 20, 1, self.max_pages, 0, 0
                    )
                )
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
                content = self.files[names[request.node - 2]].content
                return Answer(content[offset : offset + size])
            case Opcode.READDIR | Opcode.READDIRPLUS:
                return Answer(self._directory(request, plus=request.opcode is Opcode.READDIRPLUS))
            case Opcode.RELEASE | Opcode.RELEASEDIR:
                self.open_handles.discard(struct.unpack_from("=Q", request.body)[0])
                return Answer()
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
        size = struct.pack("=QQQ", node + 1000, len(file.content), 8)
        return size + times + struct.pack("=IIIIIIIIII", 0, 0, 0, file.mode, 1, 0, 0, 0, 4096, 0)

    def entry(self, node: int) -> bytes:
        """Return ``struct fuse_entry_out`` of a node."""
        return struct.pack("=QQQQII", node, 0, 1, 1, 0, 0) + self.attributes(node)

    def _directory(self, request: FuseRequest, *, plus: bool) -> bytes:
        _, offset, size = struct.unpack_from("=QQI", request.body)
        listing = b""
        for index, name in list(enumerate(self.files))[offset:]:
            node = index + 2
            record = struct.pack("=QQII", node + 1000, index + 1, len(name), 8) + name
            record += bytes(-len(record) % 8)
            if plus:
                record = self.entry(node) + record
            if len(listing) + len(record) > size:
                break
            listing += record
            self.lookups[node] += plus
        return listing

    # --- vhost-user -------------------------------------------------------------------------------

    async def _serve(self, connection: trio.socket.SocketType) -> None:
        try:
            with self._scope, connection:
                async with trio.open_nursery() as rings:
                    await self._serve_messages(connection, rings)
                    rings.cancel_scope.cancel()
        finally:
            for descriptor in [*self._kick.values(), *self._call.values()]:
                os.close(descriptor)
            for ring in self.rings.values():
                ring.close()
            self._memory.close()
            for request in self.requests:  # their bytes go with the memory, not with the test
                request.chain.readable.clear()
                request.chain.writable.clear()

    async def _serve_messages(
        self, connection: trio.socket.SocketType, rings: trio.Nursery
    ) -> None:
        while True:
            header, descriptors = await self._receive(connection, 12)
            if not header:
                return
            number, flags, size = struct.unpack("=III", header)
            payload, _ = await self._receive(connection, size)
            request = Request(number)
            self.messages.append(request)
            reply = self._handle(request, payload, descriptors, rings)
            if reply is None and flags & 8:
                reply = struct.pack("=Q", self.refused.get(request, 0))
            if reply is not None and request not in self.ignored:
                await connection.send(struct.pack("=III", number, 5, len(reply)) + reply)

    @staticmethod
    async def _receive(connection: trio.socket.SocketType, size: int) -> tuple[bytes, list[int]]:
        if not size:
            return b"", []
        with contextlib.suppress(ConnectionError):
            content, ancillary, _, _ = await connection.recvmsg(size, socket.CMSG_SPACE(32))
            descriptors = array.array("i")
            for _, _, rights in ancillary:
                descriptors.frombytes(rights)
            return content, list(descriptors)
        return b"", []

    def _handle(
        self, request: Request, payload: bytes, descriptors: list[int], rings: trio.Nursery
    ) -> bytes | None:
        match request:
            case Request.GET_FEATURES:
                return struct.pack("=Q", self.features)
            case Request.GET_PROTOCOL_FEATURES:
                return struct.pack("=Q", self.protocol_features)
            case Request.GET_QUEUE_NUM:
                return struct.pack("=Q", self.queues)
            case Request.SET_MEM_TABLE:
                for index, descriptor in enumerate(descriptors):
                    guest, size, user, _ = struct.unpack_from("=QQQQ", payload, 8 + 32 * index)
                    self._memory.add(guest, user, memoryview(mmap.mmap(descriptor, size)))
                    os.close(descriptor)
            case Request.SET_VRING_NUM | Request.SET_VRING_BASE:
                queue, number = struct.unpack("=II", payload)
                self._rings.setdefault(queue, {})[request] = (number,)
            case Request.SET_VRING_ADDR:
                queue, _, table, used, available, _ = struct.unpack("=IIQQQQ", payload)
                self._rings[queue][request] = (table, available, used)
            case Request.SET_VRING_KICK:
                self._kick[struct.unpack("=Q", payload)[0]] = descriptors[0]
            case Request.SET_VRING_CALL:
                self._call[struct.unpack("=Q", payload)[0]] = descriptors[0]
            case Request.SET_VRING_ENABLE:
                rings.start_soon(self._serve_ring, struct.unpack("=II", payload)[0])
            case Request.GET_VRING_BASE:
                queue = struct.unpack("=II", payload)[0]
                return struct.pack("=II", queue, self.rings[queue].base)
            case _:
                pass
        return None

    async def _serve_ring(self, queue: int) -> None:
        known = self._rings[queue]
        ring = self.rings[queue] = RingDevice(
            self._memory,
            known[Request.SET_VRING_NUM][0],
            RingAddresses(*known[Request.SET_VRING_ADDR]),
            known[Request.SET_VRING_BASE][0],
        )
        while True:
            await trio.lowlevel.wait_readable(self._kick[queue])
            self.kicks[queue] += os.eventfd_read(self._kick[queue])
            while (chain := ring.pop()) is not None:
                self._take(queue, chain)

    def _take(self, queue: int, chain: Chain) -> None:
        readable = chain.read()
        length, opcode, unique, node = struct.unpack_from("=IIQQ", readable)
        assert length == len(readable), "in_header.len is not what is readable"
        request = FuseRequest(queue, chain, Opcode(opcode), unique, node, readable[40:])
        self.requests.append(request)
        silent = request.opcode in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT)
        assert (queue == 0) == silent, f"{request.opcode.name} on queue {queue}"
        answer = self.answer(request)
        if silent:
            self.use(request, 0)
        elif answer is not None:
            self.reply(request, answer)
