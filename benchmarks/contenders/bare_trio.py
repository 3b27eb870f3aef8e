"""A bare trio server that only sends: what a stream through trio can be at best."""

import mmap
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import trio

from benchmarks.contender import Contender, Servers
from benchmarks.contenders.sockets import connect, receive, wait_until_listening
from benchmarks.corpus import BigFile
from benchmarks.processes import running

_PIECE: Final = 1 << 20


async def _serve(path: str, view: memoryview) -> None:
    """Send everything for each byte that comes."""
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(path)
        listener.listen()
        while True:
            connection, _ = await listener.accept()
            async with trio.SocketStream(connection) as stream:
                while await stream.receive_some(1):
                    for offset in range(0, len(view), _PIECE):
                        await stream.send_all(view[offset : offset + _PIECE])


def main() -> None:
    """Read a file into warm memory and serve it on a socket: ``bare_trio SOCKET FILE``."""
    path, name = sys.argv[1:]
    size = os.path.getsize(name)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    with open(name, "rb", buffering=0) as file, mmap.mmap(-1, size, flags=flags) as mapping:
        view = memoryview(mapping)
        offset = 0
        while offset < size:
            offset += file.readinto(view[offset:]) or 0
        trio.run(_serve, path, view)


class Sender(NamedTuple):
    """A running server."""

    socket: str
    process: int


@contextmanager
def bare_trio(file: BigFile) -> Iterator[Sender]:
    """Serve a file for the block's time."""
    with tempfile.TemporaryDirectory(prefix="vuserd-bench-") as folder:
        path = os.path.join(folder, "s")
        command = [sys.executable, "-m", "benchmarks.contenders.bare_trio", path, file.path]
        with running(command) as process:
            wait_until_listening(path, process)
            yield Sender(path, process.pid)


class BareTrio(Contender):
    """A connection; the server takes one at a time."""

    def __init__(self, sender: Sender) -> None:
        super().__init__()
        self._sender = sender

    def open(self) -> None:
        """Connect."""
        self._socket = self.undo.enter_context(connect(self._sender.socket))

    def servers(self) -> Servers:
        """Name the server."""
        return Servers((self._sender.process,))

    def receive(self, _: BigFile, view: memoryview) -> None:
        """Ask and receive."""
        self._socket.sendall(b"!")
        receive(self._socket, view)


if __name__ == "__main__":
    main()
