"""A user who has as much of a daemon as one may have, of everything at once, and asks for more.

What is refused to it at the end is told by its code: so it is known that each limit was reached.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgpack

from tests.attacks.hanging import UnansweredFile
from tests.attacks.people import MALLORY, VICTIM, As, run_as
from tests.e2e.attacks import PATIENCE
from tests.e2e.good_clients import Times
from vuserd.client import Client
from vuserd.client.errors import RemoteError

#: What the export has to hold: images of so many bytes, and ``page``.
IMAGES: Final = 24
IMAGE: Final = 4 << 20
#: Seconds between two times that it asks for one more of everything.
_PAUSE: Final = 0.02
#: More requests than are in flight for one user, of which the first fill its payload.
_READERS: Final = 80
_REQUESTS_EACH: Final = 64
#: More descriptors that are not closed than the user may send.
_DESCRIPTORS: Final = 80
#: Half a request, of which the daemon keeps all.
_HALF: Final = b"\x94\x00\x01\xa4read\x91\xc6\x00\x0f\x00\x00" + bytes(900_000)

#: Of what it has all that it may have.
KINDS: Final = ("images", "memories", "files", "walks", "descriptors", "frames", "connections")


class Greedy:
    """Its connections, and what it was told; in a process of its user's.

    Args:
        path: the daemon's socket.
        stuck: a file whose last close does not end.

    """

    def __init__(self, path: str, stuck: int) -> None:
        self._path = path
        self._stuck = stuck
        self._kept: list[object] = []
        self.told = dict.fromkeys(KINDS, "")

    def take_all(self) -> None:
        """Go on with each kind until it is refused; connections are the last."""
        self._fetch()
        takers = {kind: self._one_more(kind) for kind in ("memories", "files", "walks")}
        deadline = time.monotonic() + 2 * PATIENCE
        while not all(self.told[kind] for kind in takers) and time.monotonic() < deadline:
            for kind, take in takers.items():
                self.told[kind] = self.told[kind] or take()
        for _ in range(_DESCRIPTORS):
            socket.send_fds(self._connected(), [_packed("attach", [4096])], [self._stuck])
        error = _tried(self._connected(), "memories")
        self.told["descriptors"] = error["code"] if error["message"].count("descriptors") else ""
        self._until_refused("frames", self._begin_a_frame)
        readers = [self._connected() for _ in range(_READERS)]
        self._until_refused("connections", self._connect)
        for reader in readers:  # from here on no request of its user's is begun
            for _ in range(_REQUESTS_EACH):
                reader.sendall(_packed("read", ["files", "image-0", 0, 1 << 20]))

    def go_on(self) -> None:
        """Connect again and again, each time in vain."""
        while self._connect():
            time.sleep(_PAUSE)

    def _fetch(self) -> None:
        client = Client.connect(self._path)
        self._kept.append(client)
        for number in range(IMAGES):
            try:
                self._kept.append(client.fetch("files", f"image-{number}"))
            except RemoteError as error:
                self.told["images"] = error.code
                return

    def _until_refused(self, kind: str, take: Callable[[], str]) -> None:
        deadline = time.monotonic() + 2 * PATIENCE
        while not self.told[kind] and time.monotonic() < deadline:
            self.told[kind] = take()

    def _one_more(self, kind: str) -> Callable[[], str]:
        """Return what takes one of a kind; a connection may have some, a user has more."""
        sock = self._connected()

        def take() -> str:
            nonlocal sock
            error = _tried(sock, kind)
            if error is not None or kind == "walks":  # a connection's own would give way
                sock = self._connected()
                error = _tried(sock, kind)
            return error["code"] if error else ""

        return take

    def _begin_a_frame(self) -> str:
        sock = self._connected()
        with contextlib.suppress(OSError):  # refused
            sock.sendall(_HALF)
        sock.settimeout(0.02)
        try:
            error, _ = _answered(sock)
        except TimeoutError:
            return ""
        return error["code"] if isinstance(error, dict) else "BUSY"

    def _connect(self) -> str:
        sock = self._connected()
        error, _ = _asked(sock, "api_info", [])
        if not error:
            return ""
        self._kept.remove(sock)
        sock.close()
        return error["code"] if isinstance(error, dict) else "BUSY"

    def _connected(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self._path)  # which waits while the daemon's queue is full
        sock.settimeout(PATIENCE)
        self._kept.append(sock)
        return sock


_REQUESTS: Final[dict[str, tuple[str, list[object]]]] = {
    "files": ("open", ["files", "image-0"]),
    "walks": ("walk", ["files", "", {"limit": 1}]),
}


def _tried(sock: socket.socket, kind: str) -> Any:
    """Take one of a kind; return the error where that is refused."""
    if kind != "memories":
        return _asked(sock, *_REQUESTS[kind])[0]
    memfd = os.memfd_create("memory", os.MFD_ALLOW_SEALING)
    try:
        os.truncate(memfd, 4096)
        socket.send_fds(sock, [_packed("attach", [4096])], [memfd])
    finally:
        os.close(memfd)
    return _answered(sock)[0]


def _packed(method: str, arguments: Sequence[object]) -> bytes:
    frame: bytes = msgpack.packb([0, 1, method, arguments])
    return frame


def _asked(sock: socket.socket, method: str, arguments: Sequence[object]) -> tuple[Any, Any]:
    with contextlib.suppress(BrokenPipeError):  # refused before that
        sock.sendall(_packed(method, arguments))
    return _answered(sock)


def _answered(sock: socket.socket) -> tuple[Any, Any]:
    """Receive an answer, or what ends the connection; return its error and its result."""
    unpacker = msgpack.Unpacker()
    with contextlib.suppress(ConnectionResetError):  # with bytes of ours unread
        while received := sock.recv(65536):
            unpacker.feed(received)
            for message in unpacker:
                return (message[2], message[3]) if message[0] == 1 else (message[2][0], None)
    return "closed", None


@contextmanager
def at_all_limits(path: str, place: Path) -> Iterator[dict[str, str]]:
    """Have a user at all its limits for the block's time, as root; give what it was told."""
    reading, writing = os.pipe()
    with UnansweredFile(place) as file, open(reading) as told:

        def attack() -> None:
            greedy = Greedy(path, os.open(file.path, os.O_RDONLY))
            greedy.take_all()
            os.write(writing, json.dumps(greedy.told).encode() + b"\n")
            greedy.go_on()

        with As(MALLORY, attack) as process:
            os.close(writing)
            try:
                codes: dict[str, str] = json.loads(told.readline())
                yield codes
                assert os.waitpid(process.pid, os.WNOHANG) == (0, 0), "the attacker gave up"
            finally:
                file.end()  # which the attacker would wait for when it is killed


def times_of_others(path: str, calls: int) -> Times:
    """Return how long a user's small calls take that follow each other: stats and reads of 4 KiB.

    Each answer is checked.
    """
    reading, writing = os.pipe()

    def measure() -> None:
        seconds = []
        with Client.connect(path, timeout=PATIENCE) as client:
            for number in range(calls):
                begun = time.perf_counter()
                if number % 2:
                    assert client.stat("files", "page").size == 4096
                else:
                    assert client.read("files", "page", 0, 4096) == b"p" * 4096
                seconds.append(time.perf_counter() - begun)
        os.write(writing, json.dumps(Times.of(seconds)).encode())

    assert run_as(VICTIM, measure) == 0
    os.close(writing)
    with open(reading) as file:
        return Times(*json.load(file))
