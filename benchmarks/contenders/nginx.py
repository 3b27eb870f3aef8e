"""nginx over a unix socket: HTTP/1.1 GET with keep-alive, one worker, sendfile on."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from benchmarks.contender import Contender, Servers, Unavailable, WrongBytesError
from benchmarks.contenders.host import require
from benchmarks.contenders.sockets import (
    buffered,
    connect,
    fill,
    read_exactly,
    receive,
    wait_until_listening,
)
from benchmarks.corpus import SLOT, BigFile, SmallFiles
from benchmarks.processes import running

_HEADER_MOST: Final = 4096
_IN_FLIGHT: Final = 32

_CONFIGURATION: Final = """
daemon off;
{user}
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 64; multi_accept on; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 100000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{ listen unix:{folder}/http; root {root}; }}
}}
"""


class NginxServer(NamedTuple):
    """A server for one folder; ``reason`` says why there is none."""

    socket: str = ""
    process: int = 0
    reason: str = ""


@contextmanager
def nginx(root: str) -> Iterator[NginxServer]:
    """Serve a folder for the block's time."""
    try:
        program = require("nginx", "nginx-light")
    except Unavailable as error:
        yield NginxServer(reason=str(error))
        return
    with tempfile.TemporaryDirectory(prefix="vuserd-bench-") as folder:
        configuration, path = os.path.join(folder, "nginx.conf"), os.path.join(folder, "http")
        user = "" if os.geteuid() else "user root;"
        with open(configuration, "w") as file:
            file.write(_CONFIGURATION.format(folder=folder, root=root, user=user))
        log = os.path.join(folder, "error.log")
        with running([program, "-e", log, "-p", folder, "-c", configuration]) as process:
            try:
                wait_until_listening(path, process)
            except TimeoutError:
                with open(log) as words:
                    yield NginxServer(reason=f"nginx does not start: {words.read().strip()}")
                return
            yield NginxServer(path, process.pid)


class Nginx(Contender):
    """A connection of its own."""

    def __init__(self, server: NginxServer) -> None:
        super().__init__()
        self._server = server

    def open(self) -> None:
        """Connect."""
        if self._server.reason:
            raise Unavailable(self._server.reason)
        self._socket = self.undo.enter_context(connect(self._server.socket))
        self._stream = self.undo.enter_context(buffered(self._socket))
        self._header = memoryview(bytearray(_HEADER_MOST))

    def servers(self) -> Servers:
        """Name nginx."""
        return Servers((self._server.process,))

    def get_file(self, file: BigFile, view: memoryview) -> None:
        """GET a large file."""
        self._ask(file.name)
        count = 0
        while (end := bytes(self._header[:count]).find(b"\r\n\r\n")) < 0:
            count += self._socket.recv_into(self._header[count:])
        length = _content_length(bytes(self._header[:end]))
        if length != file.size:
            raise WrongBytesError(f"{length} bytes")
        begun = self._header[end + 4 : count]
        view[: len(begun)] = begun
        receive(self._socket, view[len(begun) :])

    def get_path(self, path: str) -> bytes:
        """GET one small file."""
        self._ask(path)
        return read_exactly(self._stream, self._read_header())

    def get_many(self, files: SmallFiles, slots: memoryview) -> list[memoryview]:
        """GET them all, 32 of them pipelined."""
        parts: list[memoryview] = []

        def take() -> None:
            part = slots[len(parts) * SLOT :][: self._read_header()]
            fill(self._stream, part)
            parts.append(part)

        for index, file in enumerate(files.files):
            if index >= _IN_FLIGHT:
                take()
            self._ask(file.path)
        while len(parts) < len(files.files):
            take()
        return parts

    def _ask(self, path: str) -> None:
        self._socket.sendall(f"GET /{path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())

    def _read_header(self) -> int:
        """Read a response's header; return the length of what follows it."""
        header = b""
        while (line := self._stream.readline()) not in (b"\r\n", b""):
            header += line
        return _content_length(header)


def _content_length(header: bytes) -> int:
    if not header.startswith(b"HTTP/1.1 200"):
        raise WrongBytesError(header.decode(errors="replace"))
    _, _, rest = header.partition(b"Content-Length: ")
    return int(rest.partition(b"\r\n")[0])
