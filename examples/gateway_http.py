"""Serve exports over HTTP, read-only, to boards that boot from a network.

``gateway_http.py --listen ADDRESS:PORT``, and then ``GET /EXPORT/PATH``: what U-Boot's wget,
barebox, iPXE, UEFI's HTTP boot and curl ask for. Each answer is of one version of a file, sent from
its sealed image; Range and ETag let a board go on with that version. It is a process of its own,
and asks the daemon as the user that it runs as: whoever reaches the address reads what that user
may.
"""

import argparse
import contextlib
import email.utils
import re
import socket
import sys
import threading
from collections import Counter
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from vuserd.client import Client, ClientError, Image, RemoteError

#: What the daemon's errors are here; all others are of a moment.
STATUSES: Final = {
    **dict.fromkeys(("ENOENT", "ENOTDIR", "ELOOP", "ENAMETOOLONG", "UNKNOWN_EXPORT"), 404),
    **dict.fromkeys(("EACCES", "EPERM", "EISDIR", "EINVAL", "BAD_REQUEST", "DENIED"), 403),
}
#: Connections at once: of one address, and of all; each has a thread and three descriptors.
MOST_OF_ONE: Final = 32
MOST: Final = 256
RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class Part(NamedTuple):
    """Bytes of a file that are asked for: from ``begin`` up to ``end``."""

    begin: int
    end: int


def part_of(size: int, asked: str) -> Part | None:
    """Return the part that a Range asks for, all for what is none; None where nothing is there."""
    match = RANGE.fullmatch(asked)
    if match is None or match[0] == "bytes=-":
        return Part(0, size)
    first, last = match.groups()
    if not first:
        found = Part(max(0, size - int(last)), size)
    else:
        found = Part(int(first), min(size, int(last) + 1) if last else size)
    return found if found.begin < found.end else None


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds without a byte

    def __init__(self, daemon: str | None, *arguments: object) -> None:
        self._daemon = daemon
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Send a file, or a part of it."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Say what GET would."""
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        name = unquote_to_bytes(self.path.partition("?")[0]).lstrip(b"/")
        export, _, path = name.partition(b"/")
        try:
            with (
                Client.connect(self._daemon) as client,
                client.fetch(export.decode("utf-8", "replace"), b"/" + path) as image,
            ):
                self._send(image, with_body=with_body)
        except RemoteError as error:
            self.send_error(STATUSES.get(error.code, HTTPStatus.SERVICE_UNAVAILABLE))
        except ClientError:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
        except OSError:  # the board is gone
            self.close_connection = True

    def _send(self, image: Image, *, with_body: bool) -> None:
        tag = f'"{image.ino:x}-{image.size:x}-{image.mtime_ns:x}"'
        if tag in re.findall('"[^"]*"', self.headers.get("If-None-Match", "")):
            self.send_response(HTTPStatus.NOT_MODIFIED)
            self.send_header("ETag", tag)
            self.end_headers()
            return
        asked = self.headers.get("Range", "")
        if self.headers.get("If-Range", tag) != tag:
            asked = ""  # of a version that is no more
        part = part_of(image.size, asked)
        if part is None and image.size:
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{image.size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        part = part or Part(0, 0)
        is_whole = part == Part(0, image.size)
        self.send_response(HTTPStatus.OK if is_whole else HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(part.end - part.begin))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", tag)
        modified = email.utils.formatdate(image.mtime_ns / 1e9, usegmt=True)
        self.send_header("Last-Modified", modified)
        if not is_whole:
            self.send_header("Content-Range", f"bytes {part.begin}-{part.end - 1}/{image.size}")
        self.end_headers()
        if with_body and part.end > part.begin:
            with open(image.fileno(), "rb", closefd=False) as file:
                self.connection.sendfile(file, part.begin, part.end - part.begin)


class Server(ThreadingHTTPServer):
    """A thread for each connection, up to a number: boards that dawdle leave others theirs."""

    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._lock = threading.Lock()
        self._connected: dict[socket.socket, str] = {}
        self._counts = Counter[str]()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Return whether there is room for one more of this address."""
        host = client_address[0]
        with self._lock:
            if len(self._connected) >= MOST or self._counts[host] >= MOST_OF_ONE:
                return False
            self._connected[request] = host
            self._counts[host] += 1
        return True

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        with self._lock:
            host = self._connected.pop(request, None)
            if host is not None:
                self._counts -= Counter([host])
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell of a fault, and not of a board that is gone."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def address(text: str) -> tuple[str, int]:
    """Read ADDRESS:PORT."""
    host, colon, port = text.rpartition(":")
    if not host or not colon or not port.isdecimal() or int(port) > 0xFFFF:
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDRESS:PORT")
    return host, int(port)


def main() -> int:
    """Serve until it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--listen", type=address, required=True, metavar="ADDRESS:PORT")
    parser.add_argument("--socket", help="the daemon's socket")
    options = parser.parse_args()
    try:
        server = Server(options.listen, partial(Handler, options.socket))
    except OSError as error:
        print(f"gateway_http.py: {error}", file=sys.stderr)
        return 1
    with server:
        host, port = server.server_address[:2]
        print(f"serving on http://{host!s}:{port}/", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
