"""Every way of fetching a whole file, each as a function that returns its bytes."""

import io
import os
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from typing import Final, NamedTuple

from tests.e2e.started_once import shared
from tests.loops import LOOPS, Loop
from vuserd.client import Client
from vuserd.client.records import Stat
from vuserd.ctl import main

#: The most that one ``read`` of the RPC gives.
READ_MAX: Final = 8 << 20
#: Where files are loaded: neither the page nor the word is whole.
ADDRESS: Final = 12_345
_PAGE: Final = 4096
_GROWTH: Final = 4 << 20  # room for what a file may become until it is loaded
_MOST_ROOM: Final = 1 << 30  # some files only say that they are larger


class Served(NamedTuple):
    """A daemon's client, and its socket for those that connect themselves."""

    client: Client
    socket: str
    export: str = "files"
    #: Whether a file's size attribute is its length: it is not on procfs, and on some of FUSE.
    sized: bool = True

    def check(self, stat: Stat, content: bytes | bytearray) -> None:
        """Expect the size that came with a file to be that of its bytes."""
        assert len(content) == stat.size or not self.sized


class FailedCommandError(Exception):
    """A ``vuserctl`` ended with another status than 0; the message is what it said."""


def by_read(served: Served, path: str) -> bytes:
    content = b""
    while True:
        part = served.client.read(served.export, path, len(content), READ_MAX)
        content += part
        if len(part) < READ_MAX:
            return content


def by_read_into(served: Served, path: str) -> bytes:
    content = bytearray()
    buffer = memoryview(bytearray(READ_MAX))
    while count := served.client.read_into(served.export, path, len(content), buffer):
        content += buffer[:count]
    return bytes(content)


def by_download(served: Served, path: str) -> bytes:
    with tempfile.TemporaryFile() as file:
        stat = served.client.download(served.export, path, file.fileno())
        content = file.read()
        served.check(stat, content)
        return content


def by_stream(served: Served, path: str) -> bytes:
    content = bytearray()
    served.check(served.client.stream(served.export, path, content.extend), content)
    return bytes(content)


def _downloaded(loop: Loop, served: Served, path: str) -> bytes:
    async def download() -> Stat:
        async with loop.client.connect(served.socket) as client:
            return await client.download(served.export, path, file.fileno())

    with tempfile.TemporaryFile() as file:
        stat = loop.run(download)
        content = file.read()
        served.check(stat, content)
        return content


def _streamed(loop: Loop, served: Served, path: str) -> bytes:
    content = bytearray()

    async def write(payload: memoryview) -> None:
        content.extend(payload)

    async def stream() -> Stat:
        async with loop.client.connect(served.socket) as client:
            return await client.stream(served.export, path, write)

    served.check(loop.run(stream), content)
    return bytes(content)


def by_trio_download(served: Served, path: str) -> bytes:
    return _downloaded(LOOPS["trio"], served, path)


def by_trio_stream(served: Served, path: str) -> bytes:
    return _streamed(LOOPS["trio"], served, path)


def by_asyncio_download(served: Served, path: str) -> bytes:
    return _downloaded(LOOPS["asyncio"], served, path)


def by_asyncio_stream(served: Served, path: str) -> bytes:
    return _streamed(LOOPS["asyncio"], served, path)


def by_fetch(served: Served, path: str) -> bytes:
    with served.client.fetch(served.export, path) as image, image.buffer() as buffer:
        assert len(buffer) == image.size
        return bytes(buffer)


def by_load(served: Served, path: str) -> bytes:
    room = _room(served, path)
    with served.client.attach(size=room + -room % _PAGE) as memory:
        length = memory.load(served.export, path, ADDRESS)
        return memory.buffer[ADDRESS : ADDRESS + length]


def _room(served: Served, path: str) -> int:
    """Return how much memory to load a file into."""
    return ADDRESS + min(served.client.stat(served.export, path).size, _MOST_ROOM) + _GROWTH


def by_vuserctl_get(served: Served, path: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "copy")
        _vuserctl(served, "get", f"{served.export}:{path}", copy)
        with open(copy, "rb") as file:
            return file.read()


def by_get_r(served: Served, path: str) -> bytes:
    """Take the file with all that is in its directory."""
    parent, name = os.path.split(path)
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "copy")
        _vuserctl(served, "get", "-r", f"{served.export}:{parent}", copy)
        with open(os.path.join(copy, name), "rb") as file:
            return file.read()


def by_cat(served: Served, path: str) -> bytes:
    """Take it from the command's standard output, so in a process of its own."""
    command = ("--socket", served.socket, "cat", f"{served.export}:{path}")
    done = shared("vuserd.ctl.main", "vuserd.ctl.commands").run(*command)
    if done.status:
        raise FailedCommandError(done.err)
    return done.out


def by_vuserctl_load(served: Served, path: str) -> bytes:
    room = _room(served, path)
    memfd = os.memfd_create("rig", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memfd, room + -room % _PAGE)
        options = ["--memory", f"/proc/{os.getpid()}/fd/{memfd}", "--address", hex(ADDRESS)]
        said = _vuserctl(served, "load", f"{served.export}:{path}", *options)
        return os.pread(memfd, int(said.split()[0]), ADDRESS)
    finally:
        os.close(memfd)


def _vuserctl(served: Served, *arguments: str) -> str:
    """Run a command in this process, since starting Python for each would take most of the time."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        status = main.run(["--socket", served.socket, *arguments])
    if status:
        raise FailedCommandError(said.getvalue())
    return said.getvalue()


WAYS: Final = (
    by_read,
    by_read_into,
    by_download,
    by_stream,
    by_trio_download,
    by_trio_stream,
    by_asyncio_download,
    by_asyncio_stream,
    by_fetch,
    by_load,
    by_vuserctl_get,
    by_get_r,
    by_cat,
    by_vuserctl_load,
)
#: Those that take a file while it grows.
GROWING: Final = (by_stream, by_trio_stream, by_asyncio_stream, by_cat)
