"""Every way of taking a whole file, each as a function that gives its bytes."""

import io
import os
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from typing import Final, NamedTuple

from vuserd.client import Client, vuserctl

#: The most that one ``read`` of the RPC gives.
READ_MAX: Final = 8 << 20
#: Where files are loaded: neither the page nor the word is whole.
ADDRESS: Final = 12_345
_PAGE: Final = 4096
_GROWTH: Final = 4 << 20  # room for what a file may become until it is loaded


class Served(NamedTuple):
    """A daemon's client, and its socket for those that connect themselves."""

    client: Client
    socket: str


class FailedCommandError(Exception):
    """A ``vuserctl`` ended with another status than 0; the message is what it said."""


def by_read(served: Served, path: str) -> bytes:
    content = b""
    while True:
        part = served.client.read("files", path, len(content), READ_MAX)
        content += part
        if len(part) < READ_MAX:
            return content


def by_read_into(served: Served, path: str) -> bytes:
    buffer = memoryview(bytearray(served.client.stat("files", path).size + 1))
    end = 0
    while count := served.client.read_into("files", path, end, buffer[end:][:READ_MAX]):
        end += count
    return bytes(buffer[:end])


def by_download(served: Served, path: str) -> bytes:
    with tempfile.TemporaryFile() as file:
        stat = served.client.download("files", path, file.fileno())
        content = file.read()
        assert len(content) == stat.size
        return content


def by_stream(served: Served, path: str) -> bytes:
    content = bytearray()
    stat = served.client.stream("files", path, content.extend)
    assert len(content) == stat.size
    return bytes(content)


def by_fetch(served: Served, path: str) -> bytes:
    with served.client.fetch("files", path) as image, image.buffer() as buffer:
        assert len(buffer) == image.size
        return bytes(buffer)


def by_load(served: Served, path: str) -> bytes:
    room = ADDRESS + served.client.stat("files", path).size + _GROWTH
    with served.client.attach(size=room + -room % _PAGE) as memory:
        length = memory.load("files", path, ADDRESS)
        return memory.buffer[ADDRESS : ADDRESS + length]


def by_vuserctl_get(served: Served, path: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "copy")
        _vuserctl(served, "get", f"files:{path}", copy)
        with open(copy, "rb") as file:
            return file.read()


def by_vuserctl_load(served: Served, path: str) -> bytes:
    size = served.client.stat("files", path).size
    room = ADDRESS + size
    memfd = os.memfd_create("rig", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memfd, room + -room % _PAGE)
        options = ["--memory", f"/proc/{os.getpid()}/fd/{memfd}", "--address", hex(ADDRESS)]
        _vuserctl(served, "load", f"files:{path}", *options)
        return os.pread(memfd, size, ADDRESS)
    finally:
        os.close(memfd)


def _vuserctl(served: Served, *arguments: str) -> None:
    """Do a command in this process: starting Python for each would take most of the time."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        status = vuserctl.run(["--socket", served.socket, *arguments])
    if status:
        raise FailedCommandError(said.getvalue())


WAYS: Final = (
    by_read,
    by_read_into,
    by_download,
    by_stream,
    by_fetch,
    by_load,
    by_vuserctl_get,
    by_vuserctl_load,
)
