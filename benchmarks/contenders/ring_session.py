"""A front-end without a daemon: the same rings and the same FUSE, no trio and no RPC.

It is the denominator of the daemon's own overhead: one process, one loop, a blocking handshake on
a virtiofsd of its own that is started just as the daemon starts one. Work is written as generators
that yield a request and are resumed with its reply; :meth:`RingOnly.run` keeps as many of them in
flight as it is told.
"""

import contextlib
import os
import socket
import subprocess
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias, TypeVar

from benchmarks.contenders.chains import ChainedSlots
from benchmarks.contenders.laid import LaidSlots
from benchmarks.processes import stop
from memory.arena import Buffer
from memory.guest import GuestRegion, Shareable
from protocol import fuse
from protocol.dirent import DirectoryEntry, decode_directory
from protocol.fuse import FileHandle, NodeId
from protocol.vhost_user import (
    HEADER_SIZE,
    ProtocolFeature,
    Request,
    VringState,
    decode_reply_header,
    decode_u64,
    encode_memory_region,
    encode_memory_table,
    encode_message,
    encode_u64,
    encode_vring_descriptor,
)
from protocol.virtio_fs import HIPRIO_QUEUE, QUEUES, REQUEST_QUEUE
from protocol.virtio_ring import Feature
from vuserd.backend.find import BackendKind, Program, parse_version
from vuserd.backend.process import BackendOptions, command_line, connected_listener, sandboxes
from vuserd.device.layout import PAYLOAD_SIZE, SharedLayout
from vuserd.wire.descriptors import ancillary_with

_FEATURES: Final = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES
_PROTOCOL_FEATURES: Final = (
    ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIGURE_MEM_SLOTS
)
_INIT_FLAGS: Final = (
    fuse.InitFlag.ASYNC_READ
    | fuse.InitFlag.DO_READDIRPLUS
    | fuse.InitFlag.PARALLEL_DIROPS
    | fuse.InitFlag.MAX_PAGES
)
_HEADER: Final = fuse.OUT_HEADER_SIZE
_FORGETS: Final = 64
_PAYLOADS: Final = 64

Decoded = TypeVar("Decoded")
Result = TypeVar("Result")


class Exchange(NamedTuple):
    """A request, and where the body of its reply goes: an address, or with the reply's header."""

    request: fuse.Request
    target: int | None = None


#: The body of a reply, or how many bytes of it went to the target.
Reply: TypeAlias = bytes | int
Job: TypeAlias = Generator[Exchange, Reply, None]


class _InFlight(NamedTuple):
    job: Job | None
    unique: int
    target: int | None


class RingSession:
    """A session with a virtiofsd that serves ``directory``; ``process`` is that virtiofsd.

    ``laid_once`` is whether its chains are.
    """

    def __init__(self, program: str, directory: str, *, laid_once: bool = True) -> None:
        self._laid_once = laid_once
        self._undo = contextlib.ExitStack()
        try:
            self._socket, self.process = self._start(_identify(program), directory)
            self._socket.setblocking(True)  # noqa: FBT003 - the name is the standard library's
            self._layout = SharedLayout(_PAYLOADS)
            self._undo.callback(self._layout.close)
            self._rings: dict[int, LaidSlots[_InFlight] | ChainedSlots[_InFlight]] = {}
            self._kicks: dict[int, int] = {}
            self._calls: dict[int, int] = {}
            self._who = fuse.Credentials(os.geteuid(), os.getegid(), os.getpid())
            self._unique = 0
            self._forgets: list[fuse.Forget] = []
            self._handshake()
            self.max_read = PAYLOAD_SIZE
            self.finish(self._mount())
        except BaseException:
            self._undo.close()
            raise

    def close(self) -> None:
        """End the session and the virtiofsd."""
        self._undo.close()

    def take_buffer(self) -> Buffer:
        """Take a payload buffer of the arena, warm after its first use."""
        return self._layout.payloads.take()

    # --- the session ------------------------------------------------------------------------------

    def _start(
        self, program: Program, directory: str
    ) -> tuple[socket.socket, "subprocess.Popen[bytes]"]:
        listener, connection = connected_listener()
        self._undo.enter_context(connection)
        with listener:
            options = BackendOptions().within_limits()
            sandbox = sandboxes(program.kind, os.geteuid())[0]
            process = subprocess.Popen(
                command_line(program, directory, listener.fileno(), sandbox, options),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
        self._undo.callback(stop, process)
        return connection, process

    def _send(
        self, request: Request, payload: bytes, descriptors: Sequence[int], *, need_reply: bool
    ) -> None:
        message = encode_message(request, payload, need_reply=need_reply)
        self._socket.sendmsg([message], ancillary_with(descriptors))

    def _ask(self, request: Request, payload: bytes = b"") -> bytes:
        self._send(request, payload, (), need_reply=False)
        return self._reply(request)

    def _tell(
        self, request: Request, payload: bytes = b"", descriptors: Sequence[int] = ()
    ) -> None:
        self._send(request, payload, descriptors, need_reply=True)
        if decode_u64(self._reply(request)):
            raise RuntimeError(f"virtiofsd refused {request.name}")

    def _reply(self, request: Request) -> bytes:
        header = self._socket.recv(HEADER_SIZE, socket.MSG_WAITALL)
        return self._socket.recv(decode_reply_header(header, request), socket.MSG_WAITALL)

    def _handshake(self) -> None:
        self._ask(Request.GET_FEATURES)
        offered = decode_u64(self._ask(Request.GET_PROTOCOL_FEATURES))
        taken = encode_u64(offered & _PROTOCOL_FEATURES)
        self._send(Request.SET_PROTOCOL_FEATURES, taken, (), need_reply=False)
        self._ask(Request.GET_QUEUE_NUM)
        self._tell(Request.SET_OWNER)
        self._tell(Request.SET_FEATURES, encode_u64(_FEATURES))
        [own] = self._layout.memory
        self._tell(Request.SET_MEM_TABLE, encode_memory_table([own.wire()]), [own.region.fileno()])
        for queue in QUEUES:
            self._start_ring(queue)

    def _start_ring(self, queue: int) -> None:
        layout = self._layout.rings[queue].layout
        make = LaidSlots[_InFlight] if self._laid_once else ChainedSlots[_InFlight]
        self._rings[queue] = make(self._layout, queue)
        self._undo.callback(self._rings[queue].close)
        kick = self._kicks[queue] = os.eventfd(0, os.EFD_CLOEXEC)
        self._undo.callback(os.close, kick)
        call = self._calls[queue] = os.eventfd(0, os.EFD_CLOEXEC)
        self._undo.callback(os.close, call)
        index = encode_vring_descriptor(queue)
        self._tell(Request.SET_VRING_NUM, VringState(queue, layout.num).encode())
        self._tell(Request.SET_VRING_BASE, VringState(queue, 0).encode())
        self._tell(Request.SET_VRING_ADDR, self._layout.ring_address(queue).encode())
        self._tell(Request.SET_VRING_KICK, index, [kick])
        self._tell(Request.SET_VRING_CALL, index, [call])
        self._tell(Request.SET_VRING_ENABLE, VringState(queue, 1).encode())

    def _mount(self) -> Job:
        reply = yield Exchange(fuse.init(_INIT_FLAGS, max_readahead=PAYLOAD_SIZE))
        self.max_read = min(_decoded(fuse.decode_init, reply).max_read, PAYLOAD_SIZE)

    def add_region(self, region: Shareable) -> GuestRegion:
        """Make virtiofsd map one more region."""
        placed = self._layout.memory.add(region)
        payload = encode_memory_region(placed.wire())
        self._tell(Request.ADD_MEM_REG, payload, [region.fileno()])
        return placed

    # --- the loop ---------------------------------------------------------------------------------

    def run(self, jobs: Iterable[Job], in_flight: int) -> None:
        """Run all jobs to their ends, ``in_flight`` at a time; and what they posted.

        ``jobs`` may be an iterator that has more once others have gone on: it is asked again.
        """
        waiting = iter(jobs)
        ring = self._rings[REQUEST_QUEUE]
        active = 0
        while True:
            while active < in_flight and (job := next(waiting, None)) is not None:
                active += self._resume(job, None)
            if not ring.outstanding:
                break
            if ring.publish():
                os.eventfd_write(self._kicks[REQUEST_QUEUE], 1)
            os.eventfd_read(self._calls[REQUEST_QUEUE])
            for entry, used, answer in ring.reap():
                reply = self._reply_of(entry, used, answer)
                if entry.job is not None and not self._resume(entry.job, reply):
                    active -= 1
        self._flush_forgets()

    def finish(self, work: Generator[Exchange, Reply, Result]) -> Result:
        """Run one piece of work alone; return what it returns."""
        results: list[Result] = []

        def job() -> Job:
            results.append((yield from work))

        self.run([job()], 1)
        return results[0]

    def post(self, request: fuse.Request) -> None:
        """Send a request without waiting for its reply."""
        self._submit(None, Exchange(request))

    def close_file(self, file: "Opened") -> None:
        """RELEASE and FORGET, and see to it that the backend has taken note."""
        self.post(fuse.release(file.node, file.handle))
        self.forget(file.node)
        self.run([], 0)

    def forget(self, node: NodeId) -> None:
        """Give one lookup count back, with others, on the hiprio queue."""
        self._forgets.append(fuse.Forget(node, 1))
        if len(self._forgets) == _FORGETS:
            self._flush_forgets()

    def _flush_forgets(self) -> None:
        """Give back what was forgotten."""
        if not self._forgets:
            return
        ring = self._rings[HIPRIO_QUEUE]
        deque(ring.reap(), 0)
        while not ring.free:
            os.eventfd_read(self._calls[HIPRIO_QUEUE])
            deque(ring.reap(), 0)
        request = fuse.batch_forget(self._forgets)
        self._forgets.clear()
        message = self._encode(request)
        ring.add(message, 0, 0, 0, _InFlight(None, self._unique, None))
        ring.publish()
        os.eventfd_write(self._kicks[HIPRIO_QUEUE], 1)

    def _resume(self, job: Job, reply: Reply | None) -> bool:
        """Hand a job its reply and submit what it asks for next; False when it has ended."""
        try:
            exchange = next(job) if reply is None else job.send(reply)
        except StopIteration:
            return False
        self._submit(job, exchange)
        return True

    def _encode(self, request: fuse.Request) -> bytes:
        self._unique += 2
        return request.encode(self._unique, self._who)

    def _submit(self, job: Job | None, exchange: Exchange) -> None:
        request, target = exchange
        if request.reply_size is None:
            raise ValueError(f"{request.opcode.name} has no reply")
        message = self._encode(request)
        entry = _InFlight(job, self._unique, target)
        ring, size = self._rings[REQUEST_QUEUE], request.reply_size
        if target is None:
            ring.add(message, _HEADER + size, 0, 0, entry)
        else:
            ring.add(message, _HEADER, target, size, entry)

    @staticmethod
    def _reply_of(entry: _InFlight, used: int, answer: bytes) -> Reply:
        error = fuse.decode_reply_header(answer, entry.unique, used)
        if error:
            raise OSError(error, os.strerror(error))
        return answer[_HEADER:] if entry.target is None else used - _HEADER


def _identify(program: str) -> Program:
    answer = subprocess.run(
        [program, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return parse_version(program, answer.stdout.decode(errors="replace"))


def kind_of(program: str) -> BackendKind:
    """Return which of the two virtiofsd a program is."""
    return _identify(program).kind


def version_of(program: str) -> str:
    """Return a virtiofsd's own version."""
    return _identify(program).version


def _decoded(decode: Callable[[bytes], Decoded], reply: Reply) -> Decoded:
    assert isinstance(reply, bytes)
    return decode(reply)


# --- jobs -----------------------------------------------------------------------------------------


class Opened(NamedTuple):
    """An open file."""

    node: NodeId
    handle: FileHandle


def look_up(parent: NodeId, name: bytes) -> Generator[Exchange, Reply, fuse.Entry]:
    """Look one name up."""
    entry = _decoded(fuse.decode_lookup, (yield Exchange(fuse.lookup(parent, name))))
    if entry is None:
        raise FileNotFoundError(name)
    return entry


def opened(parent: NodeId, name: bytes) -> Generator[Exchange, Reply, Opened]:
    """Look a file up and open it."""
    entry = yield from look_up(parent, name)
    handle = _decoded(fuse.decode_open, (yield Exchange(fuse.open(entry.node))))
    return Opened(entry.node, handle)


def read_small(
    ring: RingSession, parent: NodeId, name: bytes, size: int, deliver: Callable[[memoryview], None]
) -> Job:
    """LOOKUP, OPEN, READ, RELEASE, FORGET of one small file."""
    file = yield from opened(parent, name)
    buffer = ring.take_buffer()
    length = yield Exchange(fuse.read(file.node, file.handle, 0, size), buffer.address)
    assert isinstance(length, int)
    ring.post(fuse.release(file.node, file.handle))
    ring.forget(file.node)
    deliver(buffer.view[:length])
    buffer.give_back()


def read_parts(
    ring: RingSession, file: Opened, offsets: Iterable[int], base: int, size: int
) -> Job:
    """READ the parts that no other task has taken, each to its place from address ``base``."""
    for offset in offsets:
        length = min(ring.max_read, size - offset)
        got = yield Exchange(fuse.read(file.node, file.handle, offset, length), base + offset)
        if got != length:
            raise EOFError(f"{got!r} bytes at {offset}")


def list_directory(
    ring: RingSession,
    node: NodeId,
    deliver: Callable[[list[DirectoryEntry]], None],
    *,
    plus: bool,
) -> Job:
    """OPENDIR, READDIR or READDIRPLUS to the end, RELEASEDIR; nodes that came are forgotten."""
    handle = _decoded(fuse.decode_open, (yield Exchange(fuse.opendir(node))))
    buffer = ring.take_buffer()
    make = fuse.readdirplus if plus else fuse.readdir
    position: int | None = 0
    while position is not None:
        request = make(node, handle, position, ring.max_read)
        length = yield Exchange(request, buffer.address)
        assert isinstance(length, int)
        page = bytes(buffer.view[:length])
        entries, position = decode_directory(page, plus=plus)
        deliver(entries)
    buffer.give_back()
    ring.post(fuse.releasedir(node, handle))
