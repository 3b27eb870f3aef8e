"""Unix sockets, as the peers' clients use them."""

import contextlib
import io
import socket
import subprocess
import time
from typing import Final

_READY_WITHIN: Final = 60.0
_LOOK_EVERY: Final = 0.005  #: seconds
_BUFFER: Final = 256 << 10


def connect(path: str) -> socket.socket:
    """Return a connected stream socket."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def wait_until_listening(path: str, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a process that was started listens on a socket.

    Raises:
        TimeoutError: it does not; or it has ended.

    """
    deadline = time.monotonic() + _READY_WITHIN
    while True:
        with contextlib.suppress(OSError):
            connect(path).close()
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise TimeoutError("it does not start")
        time.sleep(_LOOK_EVERY)


def buffered(sock: socket.socket) -> io.BufferedReader:
    """Return a stream to read messages from."""
    return io.BufferedReader(sock.makefile("rb", buffering=0), _BUFFER)


def read_exactly(stream: io.BufferedReader, count: int) -> bytes:
    """Read so many bytes.

    Raises:
        EOFError: the stream ended before.

    """
    received = stream.read(count)
    if len(received) != count:
        raise EOFError("the server is gone")
    return received


def fill(stream: io.BufferedReader, view: memoryview) -> None:
    """Read until the view is full.

    Raises:
        EOFError: the stream ended before.

    """
    if stream.readinto(view) != len(view):
        raise EOFError("the server is gone")


def receive(sock: socket.socket, view: memoryview) -> None:
    """Receive until the view is full, without a buffer in between.

    Raises:
        EOFError: the stream ended before.

    """
    got = 0
    while got < len(view):
        count = sock.recv_into(view[got:], 0, socket.MSG_WAITALL)
        if not count:
            raise EOFError(f"{got} of {len(view)} bytes came")
        got += count
