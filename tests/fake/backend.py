"""A virtio-fs backend in this process that does what a test tells it to.

It speaks the back-end's side of vhost-user, maps the memory that it is given, and takes FUSE
requests off the rings through :mod:`tests.fake.ring_device`, which is strict: what no correct
front-end does is an ``AssertionError`` or a ``DriverError`` in the test. By itself it is an honest
backend with a small read-only file system (:mod:`tests.fake.files`)::

    backend = FakeBackend({b"Image": b"kernel"})
    async with backend.session() as session:          # vuserd's own front-end, connected
        ...

Another front-end can be tested with it in the same way: it connects to a socket, and may do so
again after its session was lost, as to a backend that was started again::

    backend = FakeBackend({b"Image": b"kernel"})
    backend.answer_to(Opcode.READ, Answer(b"kernel", unique=1))    # somebody else's reply
    async with backend.listening("/tmp/backend.sock"):
        await run_front_end("/tmp/backend.sock")
    assert backend.named(Opcode.READ)
    assert not +backend.lookups, "lookup references were not given back"

It is told to misbehave in five places, each before the session or during it:

==========================  ========================================================================
``answer``                  is called with each :class:`FuseRequest`. It returns an :class:`Answer`,
                            which can lie about every field of the reply; or None, and the request
                            stays unanswered until :meth:`FakeBackend.reply` ends it.
                            :meth:`FakeBackend.answer_to` sets it for one opcode; the others are
                            served from the files.
``rings[queue]``            writes used elements and indices that no device may write:
                            :meth:`FakeBackend.use_anything` and ``rings[queue].set_used_index``,
                            then :meth:`FakeBackend.call`.
``altered[request]``        changes the :class:`Reply` to one vhost-user request: its number, flags,
                            size, payload, descriptors, how it is cut into pieces, what follows it;
                            None sends nothing.
``features`` and its kin    what is offered: ``features``, ``protocol_features``, ``queues``,
                            ``memory_slots``, ``max_pages``; ``refused`` has the status that a
                            request is acknowledged with, ``ignored`` what is never answered,
                            ``delays`` what is answered some seconds later.
:meth:`FakeBackend.die`     ends the connection at once, as a process that is killed does;
                            ``dies_at`` does so when a vhost-user request of that kind has come.
==========================  ========================================================================

With ``DEVICE_STATE`` among its protocol features it gives what it knows of nodes and handles to
another one, or takes it.

What it saw is in ``messages`` (vhost-user), ``requests`` (FUSE), ``kicks``, ``regions``; what it
is owed is in ``lookups`` and ``open_handles``. ``sessions`` counts connections; ``on_connect`` is
called at each, so that a backend can come back with other features than it had.
"""

import array
import contextlib
import mmap
import os
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import trio
import trio.testing

from protocol.fuse import Opcode
from protocol.vhost_user import Request
from tests.fake.files import MAX_PAGES, ROOT, SUBMOUNTS, Answer, FakeFiles, File, FuseRequest
from tests.fake.ring_device import Chain, DeviceMemory, RingAddresses, RingDevice
from vuserd.device.observer import Observer
from vuserd.device.session import Session, SessionOptions, open_session

__all__ = [
    "CONFIGURE_MEM_SLOTS",
    "DEVICE_STATE",
    "MAX_PAGES",
    "MQ",
    "PROTOCOL_FEATURES",
    "REPLY_ACK",
    "ROOT",
    "SUBMOUNTS",
    "VERSION_1",
    "Answer",
    "FakeBackend",
    "File",
    "FuseRequest",
    "Reply",
]

VERSION_1: Final = 1 << 32
PROTOCOL_FEATURES: Final = 1 << 30
MQ: Final = 1 << 0
REPLY_ACK: Final = 1 << 3
CONFIGURE_MEM_SLOTS: Final = 1 << 15
DEVICE_STATE: Final = 1 << 19
#: In the reply to SET_DEVICE_STATE_FD: the descriptor that came is the one to use.
_NO_OTHER_DESCRIPTOR: Final = 1 << 8

_SILENT: Final = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})


class Reply(NamedTuple):
    """A vhost-user reply as it goes over the socket; every field can be a lie."""

    number: int
    payload: bytes
    flags: int = 5  #: version 1 and REPLY
    size: int | None = None  #: in the header, instead of the payload's
    descriptors: Sequence[int] = ()  #: to send beside the first piece
    piece: int | None = None  #: bytes in each piece that is sent, in place of all at once
    followed_by: bytes = b""  #: what is sent right after it

    def encode(self) -> bytes:
        """Return all bytes of it."""
        size = len(self.payload) if self.size is None else self.size
        return struct.pack("=III", self.number, self.flags, size) + self.payload + self.followed_by


class FakeBackend(FakeFiles):
    """See the module. All attributes may be changed before the session, most during it.

    Args:
        files: the root's entries; bytes stand for a regular file with this content.

    """

    def __init__(self, files: Mapping[bytes, File | bytes] | None = None) -> None:
        super().__init__(files)
        self.features = VERSION_1 | PROTOCOL_FEATURES
        self.protocol_features = MQ | REPLY_ACK
        self.queues = 2
        self.memory_slots = 8
        #: The status that each vhost-user request is acknowledged with, 0 by default. What is
        #: refused is not done.
        self.refused: dict[Request, int] = {}
        #: Vhost-user requests that are never answered.
        self.ignored: set[Request] = set()
        #: Seconds that it takes to answer requests.
        self.delays: dict[Request, float] = {}
        #: Makes another reply of the honest one, by the vhost-user request; None sends none.
        self.altered: dict[Request, Callable[[Reply], Reply | None]] = {}
        #: Vhost-user requests at which the connection is closed, before any answer.
        self.dies_at: set[Request] = set()
        self.answer: Callable[[FuseRequest], Answer | None] = self.serve_files
        #: Queues whose chains are taken and never used, whatever ``answer`` says.
        self.stuck: set[int] = set()
        #: Called at each connection, before anything is read from it.
        self.on_connect: Callable[[], None] = lambda: None

        #: What has come so far.
        self.sessions = 0
        self.messages: list[Request] = []
        self.requests: list[FuseRequest] = []
        self.kicks: Counter[int] = Counter()

        self.rings: dict[int, RingDevice] = {}
        self._memory = DeviceMemory()
        self._rings: dict[int, dict[Request, tuple[int, ...]]] = {}
        self._kick: dict[int, int] = {}
        self._call: dict[int, int] = {}
        #: Bytes of its state that nobody needs; and what is set once all of it was saved.
        self.more_state = b""
        self._saving: trio.Event | None = None
        #: What another one's state is loaded from.
        self._state: int | None = None
        self._scope = trio.CancelScope()
        self._connection: trio.socket.SocketType | None = None

    @asynccontextmanager
    async def session(
        self, options: SessionOptions | None = None, observer: Observer | None = None
    ) -> AsyncIterator[Session]:
        """Run the front-end's session on this backend for the block's time."""
        failure: Exception | None = None
        async with self.connection() as stream:
            try:
                async with open_session(stream, options or SessionOptions(), observer) as session:
                    yield session
            except Exception as error:
                failure = error
        if failure is not None:
            raise failure

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[trio.SocketStream]:
        """Serve one connection for the block's time, and give the front-end's end of it."""
        ours, theirs = socket.socketpair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve, trio.socket.from_stdlib_socket(ours))
            yield trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def listening(self, path: str) -> AsyncIterator[None]:
        """Serve one connection after the other on a unix socket for the block's time."""
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            await listener.bind(path)
            listener.listen(1)
            async with trio.open_nursery() as nursery:

                async def serve_all() -> None:
                    while True:
                        connection, _ = await listener.accept()
                        await self._serve(connection)

                nursery.start_soon(serve_all)
                yield
                nursery.cancel_scope.cancel()

    def die(self) -> None:
        """Close the vhost-user socket, as a process that ends does."""
        self._scope.cancel()

    def named(self, opcode: Opcode) -> list[FuseRequest]:
        """Return the requests of one kind that have come so far."""
        return [request for request in self.requests if request.opcode is opcode]

    def answer_to(
        self, opcode: Opcode, answer: Answer | Callable[[FuseRequest], Answer | None] | None
    ) -> None:
        """Answer requests of one kind so (None: never), all others from the files."""

        def answer_one(request: FuseRequest) -> Answer | None:
            if request.opcode is not opcode:
                return self.serve_files(request)
            return answer(request) if callable(answer) else answer

        self.answer = answer_one

    def hold(self, is_held: Callable[[FuseRequest], bool]) -> list[FuseRequest]:
        """Keep requests in the list that is returned, until :meth:`let_go`; answer all others."""
        held: list[FuseRequest] = []

        def answer(request: FuseRequest) -> Answer | None:
            if not is_held(request):
                return self.serve_files(request)
            held.append(request)
            return None

        self.answer = answer
        return held

    def let_go(self, held: Iterable[FuseRequest]) -> None:
        """Answer what was held, and all that comes, from the files."""
        self.answer = self.serve_files
        for request in held:
            answer = self.serve_files(request)
            assert answer is not None
            self.reply(request, answer)

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
        self.call(request.queue)

    def use_anything(self, queue: int, *elements: tuple[int, int]) -> None:
        """Put elements (head, length) into the used ring, whatever they say, and call."""
        ring = self.rings[queue]
        for head, length in elements:
            ring.place(head, length)
        ring.publish()
        self.call(queue)

    def call(self, queue: int) -> None:
        """Call the driver, whether anything was used or not."""
        os.write(self._call[queue], struct.pack("=Q", 1))

    def say(self, message: bytes) -> None:
        """Send bytes on the vhost-user socket that nobody asked for."""
        assert self._connection is not None
        with socket.socket(fileno=os.dup(self._connection.fileno())) as raw:
            raw.send(message)

    @property
    def regions(self) -> int:
        """Memory regions that are mapped."""
        return len(self._memory)

    # --- vhost-user -------------------------------------------------------------------------------

    async def _serve(self, connection: trio.socket.SocketType) -> None:
        self.sessions += 1
        self._scope = trio.CancelScope()
        self._connection = connection
        self._rings.clear()
        self.rings.clear()
        self.forget_everything()
        self.on_connect()
        try:
            with self._scope, connection:
                async with trio.open_nursery() as rings:
                    await self._serve_messages(connection, rings)
                    rings.cancel_scope.cancel()
        finally:
            self._connection = None
            state, self._state = self._state, None
            loaded = [] if state is None else [state]
            for descriptor in [*self._kick.values(), *self._call.values(), *loaded]:
                os.close(descriptor)
            self._kick.clear()
            self._call.clear()
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
            try:
                payload, _ = await self._receive(connection, size)
            except trio.Cancelled:
                for descriptor in descriptors:
                    os.close(descriptor)
                raise
            request = Request(number)
            self.messages.append(request)
            if request in self.dies_at:
                for descriptor in descriptors:
                    os.close(descriptor)
                return
            if request is Request.CHECK_DEVICE_STATE and self._saving is not None:
                await self._saving.wait()
            answered = self._handle(request, payload, descriptors, rings)
            if answered is None and flags & 8:
                answered = struct.pack("=Q", self.refused.get(request, 0))
            if request in self.delays:
                await trio.sleep(self.delays[request])
            if answered is None or request in self.ignored:
                continue
            alter = self.altered.get(request)
            reply: Reply | None = Reply(number, answered)
            if alter is not None and reply is not None:
                reply = alter(reply)
            if reply is not None:
                await self._send(connection, reply)

    @staticmethod
    async def _send(connection: trio.socket.SocketType, reply: Reply) -> None:
        message = reply.encode()
        piece = reply.piece or len(message)
        beside = list(reply.descriptors)
        with contextlib.suppress(OSError):  # who is lied to may have gone
            for at in range(0, len(message), piece):
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", beside))]
                await connection.sendmsg([message[at : at + piece]], rights if beside else [])
                beside.clear()
                if piece < len(message):
                    await trio.testing.wait_all_tasks_blocked()  # so that it is read by itself

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
            case Request.GET_MAX_MEM_SLOTS:
                return struct.pack("=Q", self.memory_slots)
            case Request.SET_MEM_TABLE:
                for index, descriptor in enumerate(descriptors):
                    self._map(payload[8 + 32 * index :], descriptor)
            case Request.ADD_MEM_REG:
                if self.refused.get(request):
                    os.close(descriptors[0])
                else:
                    self._map(payload[8:], descriptors[0])
            case Request.REM_MEM_REG:
                if not self.refused.get(request):
                    self._memory.remove(struct.unpack_from("=Q", payload, 8)[0])
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
                return struct.pack("=II", queue, self._stop_ring(queue))
            case Request.SET_DEVICE_STATE_FD:
                if struct.unpack("=II", payload)[0]:
                    self._state = descriptors[0]
                else:
                    self._saving = trio.Event()
                    rings.start_soon(self._save, descriptors[0], self._saving)
                return struct.pack("=Q", _NO_OTHER_DESCRIPTOR)
            case Request.CHECK_DEVICE_STATE:
                return struct.pack("=Q", self._load_status())
            case _:
                pass
        return None

    async def _save(self, descriptor: int, saved: trio.Event) -> None:
        """Save its state, as fast as another one loads it."""
        try:
            async with trio.lowlevel.FdStream(descriptor) as stream:
                await stream.send_all(self.saved() + self.more_state)
        except trio.BrokenResourceError:
            pass  # nobody loads it any more
        finally:
            saved.set()

    def _load_status(self) -> int:
        """Load what another one saved, if that was begun; return the status of it, or of a save."""
        if self._state is None:
            return 0
        with open(self._state, "rb") as state:
            self._state = None
            saved = state.read()
        if not saved:
            return 1
        self.load(saved)
        return 0

    def _stop_ring(self, queue: int) -> int:
        """Let go of a ring; return the index at which another device goes on."""
        ring = self.rings.pop(queue)
        trio.lowlevel.notify_closing(self._kick[queue])
        os.close(self._kick.pop(queue))
        os.close(self._call.pop(queue))
        ring.close()
        return ring.base

    def _map(self, region: bytes, descriptor: int) -> None:
        guest, size, user, _ = struct.unpack_from("=QQQQ", region)
        self._memory.add(guest, user, memoryview(mmap.mmap(descriptor, size)))
        os.close(descriptor)

    async def _serve_ring(self, queue: int) -> None:
        known = self._rings[queue]
        ring = self.rings[queue] = RingDevice(
            self._memory,
            known[Request.SET_VRING_NUM][0],
            RingAddresses(*known[Request.SET_VRING_ADDR]),
            known[Request.SET_VRING_BASE][0],
        )
        while True:
            try:
                await trio.lowlevel.wait_readable(self._kick[queue])
            except trio.ClosedResourceError:
                return
            self.kicks[queue] += struct.unpack("=Q", os.read(self._kick[queue], 8))[0]
            while (chain := ring.pop()) is not None:
                self._take(queue, chain)

    def _take(self, queue: int, chain: Chain) -> None:
        readable = chain.read()
        length, opcode, unique, node = struct.unpack_from("=IIQQ", readable)
        assert length == len(readable), "in_header.len is not what is readable"
        request = FuseRequest(queue, chain, Opcode(opcode), unique, node, readable[40:])
        self.requests.append(request)
        silent = request.opcode in _SILENT
        assert (queue == 0) == silent, f"{request.opcode.name} on queue {queue}"
        if queue in self.stuck:
            return
        answer = self.answer(request)
        if silent:
            self.use(request, 0)
        elif answer is not None:
            self.reply(request, answer)


async def cancelled_when(
    met: Callable[[], bool], operation: Callable[[], Awaitable[object]]
) -> None:
    """Begin an operation, and cancel it once something is so that the backend has brought about."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(operation)
        with trio.fail_after(60):
            while not met():  # noqa: ASYNC110 - nothing tells
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
