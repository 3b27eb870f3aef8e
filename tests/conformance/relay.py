"""A relay between a vhost-user front-end and its backend, which can look at the FUSE requests.

User-mode Linux (6.1 and 6.12) sends SET_MEM_TABLE with room for two regions whatever their number,
which a Rust virtiofsd refuses; the relay cuts it to what it says. To look at requests it puts
eventfds of its own between the two for kicks, and reads the rings when one comes.
"""

import array
import mmap
import os
import select
import socket
import struct
import threading
from contextlib import ExitStack, suppress
from enum import IntEnum
from types import TracebackType
from typing import Final, NamedTuple, Self

_HEADER: Final = struct.Struct("<III")
_REGION: Final = struct.Struct("<QQQQ")
_ADDRESSES: Final = struct.Struct("<IIQQQQ")
_DESCRIPTOR: Final = struct.Struct("<QIHH")
_NEXT: Final = 1
_INDIRECT: Final = 4
_IN_HEADER: Final = struct.Struct("<IIQQ")
_DESCRIPTORS_MAX: Final = 32


class _Message(IntEnum):
    """The requests of vhost-user that the relay reads."""

    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    SET_VRING_KICK = 12
    ADD_MEM_REG = 37


class Request(NamedTuple):
    """A FUSE request as it was put on a ring."""

    queue: int
    opcode: int
    node: int
    body: bytes  #: without the header


class _Ring:
    """A queue, as the front-end has set it up."""

    size = 0
    descriptors = available = 0  #: addresses in the front-end
    seen = 0  #: entries of the available ring that were looked at
    kick = -1  #: the front-end's
    forward = -1  #: the backend's


class Relay:
    """Carries one connection, in a thread, for the block's time.

    Args:
        path: where to listen.
        backend: where the backend listens.
        taps: whether to look at requests, which are in ``requests`` then.

    """

    def __init__(self, path: str, backend: str, *, taps: bool = False) -> None:
        self._backend_path, self._taps = backend, taps
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(1)
        self.requests: list[Request] = []
        self._memory: list[tuple[int, int, mmap.mmap]] = []
        self._rings: dict[int, _Ring] = {}
        self._end = os.eventfd(0)
        self._thread = threading.Thread(target=self._run)
        self._owned = ExitStack()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.eventfd_write(self._end, 1)
        self._thread.join()
        self._owned.close()
        self._listener.close()
        os.close(self._end)

    def _run(self) -> None:
        if self._listener not in _ready(self._listener, self._end):
            return
        front, _ = self._listener.accept()
        backend = socket.socket(socket.AF_UNIX)
        with front, backend:
            backend.connect(self._backend_path)
            while True:
                kicks = {ring.kick: ring for ring in self._rings.values() if ring.kick >= 0}
                ready = _ready(front, backend, self._end, *kicks)
                if self._end in ready:
                    break
                for kick in [kick for kick in kicks if kick in ready]:
                    os.read(kick, 8)
                    self._look(kicks[kick])
                    os.eventfd_write(kicks[kick].forward, 1)
                if front in ready and not self._carry(front, backend, from_front=True):
                    break
                if backend in ready and not self._carry(backend, front, from_front=False):
                    break

    # -- messages ----------------------------------------------------------------------------------

    def _carry(self, source: socket.socket, to: socket.socket, *, from_front: bool) -> bool:
        """Pass one message on; False at the end of the stream."""
        descriptors: list[int] = []
        try:
            header = _receive(source, _HEADER.size, descriptors)
            number, flags, size = _HEADER.unpack(header)
            body = _receive(source, size, descriptors)
        except (EOFError, ConnectionResetError):
            return False
        try:
            sent = descriptors
            if from_front:
                body, sent = self._read(number, body, descriptors)
            message = _HEADER.pack(number, flags, len(body)) + body
            with suppress(BrokenPipeError):
                socket.send_fds(to, [message], sent)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _read(self, number: int, body: bytes, descriptors: list[int]) -> tuple[bytes, list[int]]:
        """Take from a message what the rings are; return it as it goes on."""
        if number == _Message.SET_MEM_TABLE:
            (count,) = struct.unpack_from("<I", body)
            body = body[: 8 + count * _REGION.size]
        if not self._taps:
            return body, descriptors
        if number == _Message.SET_MEM_TABLE:
            for at, descriptor in enumerate(descriptors):
                self._map(_REGION.unpack_from(body, 8 + at * _REGION.size), descriptor)
        elif number == _Message.ADD_MEM_REG:
            self._map(_REGION.unpack_from(body, 8), descriptors[0])
        elif number in (_Message.SET_VRING_NUM, _Message.SET_VRING_BASE):
            index, value = struct.unpack("<II", body)
            name = "size" if number == _Message.SET_VRING_NUM else "seen"
            setattr(self._ring(index), name, value)
        elif number == _Message.SET_VRING_ADDR:
            index, _, table, _, available, _ = _ADDRESSES.unpack(body)
            ring = self._ring(index)
            ring.descriptors, ring.available = table, available
        elif number == _Message.SET_VRING_KICK and descriptors:
            ring = self._ring(body[0])
            ring.kick, ring.forward = os.dup(descriptors[0]), os.eventfd(0)
            self._owned.callback(os.close, ring.kick)
            self._owned.callback(os.close, ring.forward)
            return body, [ring.forward]
        return body, descriptors

    def _ring(self, index: int) -> _Ring:
        return self._rings.setdefault(index, _Ring())

    # -- rings -------------------------------------------------------------------------------------

    def _map(self, region: tuple[int, ...], descriptor: int) -> None:
        guest, size, user, offset = region
        if os.fstat(descriptor).st_size < offset + size:
            return  # nothing that rings are in
        memory = mmap.mmap(descriptor, size, prot=mmap.PROT_READ, offset=offset)
        self._owned.callback(memory.close)
        self._memory += [(user, size, memory), (guest, size, memory)]

    def _bytes(self, address: int, length: int, *, user: bool) -> bytes:
        """Return what stands at an address of the front-end, or of its guest."""
        for begin, size, memory in reversed(self._memory[not user :: 2]):
            if begin <= address < begin + size:
                return memory[address - begin : address - begin + length]
        raise AssertionError(f"nothing is at {address:#x}")

    def _look(self, ring: _Ring) -> None:
        """Look at the requests that were made available since the last time."""
        queue = next(index for index, each in self._rings.items() if each is ring)
        (index,) = struct.unpack("<H", self._bytes(ring.available + 2, 2, user=True))
        while ring.seen != index:
            at = ring.available + 4 + ring.seen % ring.size * 2
            (head,) = struct.unpack("<H", self._bytes(at, 2, user=True))
            table = self._bytes(ring.descriptors, ring.size * _DESCRIPTOR.size, user=True)
            request = self._readable(table, head)
            _, opcode, _, node = _IN_HEADER.unpack_from(request)
            self.requests.append(Request(queue, opcode, node, request[40:]))
            ring.seen = ring.seen + 1 & 0xFFFF

    def _readable(self, table: bytes, at: int) -> bytes:
        """Return the bytes of a chain that the backend reads."""
        found = b""
        while True:
            address, length, flags, following = _DESCRIPTOR.unpack_from(
                table, at * _DESCRIPTOR.size
            )
            if flags & _INDIRECT:
                table, at = self._bytes(address, length, user=False), 0
                continue
            if flags & 2:
                return found
            found += self._bytes(address, length, user=False)
            if not flags & _NEXT:
                return found
            at = following


def _ready(*waited: socket.socket | int) -> list[socket.socket | int]:
    """Wait until some can be read; return these."""
    return select.select(waited, [], [])[0]


def _receive(source: socket.socket, count: int, descriptors: list[int]) -> bytes:
    """Return so many bytes, and add the descriptors that come with them."""
    found = b""
    while len(found) < count:
        part, ancillary, _, _ = source.recvmsg(
            count - len(found), socket.CMSG_SPACE(_DESCRIPTORS_MAX * 4), socket.MSG_CMSG_CLOEXEC
        )
        if not part:
            raise EOFError
        found += part
        for _, _, payload in ancillary:
            numbers = array.array("i")
            numbers.frombytes(payload)
            descriptors += numbers
    return found
