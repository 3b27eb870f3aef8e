"""What a user without rights does to the service until standard input ends.

The argument says what: linger, frames or descriptors. A line says when it is under way.  It is run
in the machine, by the Python that vuserd is installed with.
"""

import fcntl
import os
import resource
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import msgpack

_SOCKET: Final = "/run/vuserd/vuserd.sock"
_LINGER: Final = 20  #: seconds
_CONNECTIONS: Final = 400
_FRAME: Final = 1 << 20


def connected() -> socket.socket:
    """Return a connection to the service that nothing is waited for on."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5)
    sock.connect(_SOCKET)
    return sock


def lingering() -> socket.socket:
    """Return a TCP socket whose last descriptor takes long to close: its peer does not read."""
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    server.bind(("127.0.0.1", 0))
    server.listen(1)
    sock = socket.create_connection(server.getsockname())
    _KEPT.extend([server, server.accept()[0]])
    sock.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            sock.send(bytes(65536))
    sock.setblocking(True)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, _LINGER))
    return sock


def leased() -> int:
    """Return a file with a lease, for which a process that opens the file has to wait."""
    descriptor = os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    return descriptor


def foreign() -> Iterator[Any]:
    """Yield a descriptor of each kind."""
    yield lingering()
    yield leased()
    yield from os.pipe()
    yield os.open("/", os.O_PATH)
    yield os.open("/", os.O_DIRECTORY)
    yield os.open("/dev/zero", os.O_RDONLY)
    yield os.eventfd(0)
    yield os.pidfd_open(os.getpid())
    yield from socket.socketpair()
    memfd = os.memfd_create("unsized")
    yield memfd
    sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
    yield sealed


def send(method: str, arguments: list[Any], descriptors: list[Any]) -> None:
    """Send a request with descriptors, and wait for no answer."""
    sock = connected()
    numbers = [each if isinstance(each, int) else each.fileno() for each in descriptors]
    socket.send_fds(sock, [msgpack.packb([0, 1, method, arguments])], numbers)
    _KEPT.append(sock)


def linger() -> None:
    """Hand the service what it takes long to close, and have no other descriptor of it."""
    for method, arguments in (("api_info", []), ("attach", [4096]), ("nonsense", [])):
        with lingering() as sock:
            send(method, arguments, [sock])


def frames() -> None:
    """Begin as many large frames as there may be connections."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (_CONNECTIONS + 100,) * 2)
    head = b"\x94\x00\x01\xa4read\x91\xc6" + struct.pack(">I", _FRAME - 100)
    for _ in range(_CONNECTIONS):
        with suppress(OSError):
            sock = connected()
            _KEPT.append(sock)
            sock.sendall(head + bytes(_FRAME - 200))


def descriptors() -> None:
    """Hand the service everything that can be handed to it, alone and together."""
    for one in foreign():
        send("attach", [4096], [one])
        send("stat", ["kernels", "/"], [one])
    for _ in range(5):
        with suppress(OSError):
            send("attach", [4096], list(foreign()))


_KEPT: list[Any] = []


if __name__ == "__main__":
    {each.__name__: each for each in (linger, frames, descriptors)}[sys.argv[1]]()
    print("under way", flush=True)
    sys.stdin.read()
