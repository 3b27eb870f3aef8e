"""Descriptors that a system call hangs at: a socket that lingers, and a file of a dead server."""

import contextlib
import ctypes
import os
import signal
import socket
import struct
from pathlib import Path
from typing import Final, NamedTuple, Self

from tests.systems.conftest import without

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH: Final = 2

_HEADER: Final = struct.Struct("<IIQQ")
_HEADER_BYTES: Final = 40
_LOOKUP, _GETATTR, _OPEN, _INIT = 1, 3, 14, 26
_LENGTH: Final = 1 << 20


class Lingering(NamedTuple):
    """A TCP socket whose last close() takes long, and its peer, which reads nothing."""

    socket: socket.socket
    peer: socket.socket


def lingering(seconds: int) -> Lingering:
    """Return a socket that waits so long for what it has sent to be read."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        client = socket.socket()
        client.connect(server.getsockname())
        peer, _ = server.accept()
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            client.send(bytes(65536))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
    return Lingering(client, peer)


class UnansweredFile:
    """A file in a mount of its own at which read() and close() hang, until :meth:`end`."""

    def __init__(self, place: Path) -> None:
        self.path = place / "file"
        self._place = place
        self._server = 0

    def __enter__(self) -> Self:
        self._place.mkdir()
        fuse = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other"
        if _LIBC.mount(b"hanging", bytes(self._place), b"fuse", 0, options.encode()):
            os.close(fuse)
            self._place.rmdir()
            without("no FUSE file system can be mounted here")
        self._waits, telling = os.pipe()
        self._server = os.fork()
        if not self._server:
            with contextlib.suppress(BaseException):
                while True:
                    if not _answered(fuse, os.read(fuse, 1 << 21)):
                        os.write(telling, b"!")
            os._exit(1)
        os.close(fuse)
        os.close(telling)
        return self

    def wait(self) -> None:
        """Wait until somebody hangs at it."""
        assert os.read(self._waits, 1)

    def end(self) -> None:
        """Have all fail that hangs."""
        if self._server:
            os.kill(self._server, signal.SIGKILL)
            os.waitpid(self._server, 0)
            self._server = 0

    def __exit__(self, *_: object) -> None:
        self.end()
        os.close(self._waits)
        _LIBC.umount2(bytes(self._place), _MNT_DETACH)
        self._place.rmdir()


def _answered(fuse: int, request: bytes) -> bool:
    """Answer a request; False for one that gets no answer."""
    _, operation, unique, node = _HEADER.unpack_from(request)
    mode, size = (0o40755, 0) if node == 1 else (0o100666, _LENGTH)
    if operation == _LOOKUP:
        node, mode, size = 2, 0o100666, _LENGTH
    attributes = struct.pack("<6Q10I", node, size, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
    if operation == _INIT:
        body = struct.pack("<IIIIHHIIHHI7I", 7, 31, 4096, 0, 8, 8, 65536, 1, 1, 0, *[0] * 8)
    elif operation == _LOOKUP:
        body = struct.pack("<QQQQII", node, 0, 1, 1, 0, 0) + attributes
    elif operation == _GETATTR:
        body = struct.pack("<QII", 1, 0, 0) + attributes
    elif operation == _OPEN:
        body = struct.pack("<QII", 1, 0, 0)
    else:
        return False
    os.write(fuse, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)
    return True
