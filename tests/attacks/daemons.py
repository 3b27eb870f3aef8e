"""A daemon of root's for everybody who may connect, and plain calls to it."""

import socket
from pathlib import Path
from typing import Any, Final

import msgpack

from tests.running import RunningDaemon

#: One export, for uid 1001 alone.
FOR_THE_VICTIM: Final = """
[[listen]]
socket = "{ground}/s"
mode = "0666"
[[export]]
name = "files"
path = "{ground}/export"
backend = "{backend}"
users = [1001]
"""


def serving(ground: Path, backend: str, text: str = FOR_THE_VICTIM) -> RunningDaemon:
    """Return a daemon whose configuration is ``text``, and whose socket is ``ground / "s"``."""
    configuration = ground / "vuserd.toml"
    configuration.write_text(text.format(ground=ground, backend=backend))
    return RunningDaemon({}, ground / "s", None, "--config", str(configuration), configured=True)


def connected(path: str | Path, seconds: float = 20.0) -> socket.socket:
    """Return a socket that is connected to a daemon; what is done with it may take so long."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(seconds)
    sock.connect(str(path))
    return sock


def call(
    path: str | Path, method: str, *arguments: Any, descriptors: tuple[int, ...] = ()
) -> tuple[Any, Any]:
    """Do one call on a connection of its own; return its error and its result."""
    with connected(path) as sock:
        request = msgpack.packb([0, 1, method, arguments])
        socket.send_fds(sock, [request], descriptors)
        unpacker = msgpack.Unpacker()
        while received := sock.recv(65536):
            unpacker.feed(received)
            for message in unpacker:
                return (message[2], message[3]) if message[0] == 1 else (message[2], None)
    return "closed", None
