"""Memory that clients make the daemon hold: counted against their user, and not for ever."""

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest

from tests.attacks.daemons import FOR_THE_VICTIM, call, connected, serving
from tests.attacks.people import MALLORY, VICTIM, As, run_as
from tests.attacks.threats import Who, threat
from tests.e2e.attacks import messages_until_end

_FRAME: Final = 1 << 20
#: Half a request, nearly a frame of it.
_HALF: Final = (
    b"\x94\x00\x01\xa4read\x91\xc6" + struct.pack(">I", _FRAME - 100) + bytes(_FRAME - 200)
)


@contextlib.contextmanager
def attacking(attack: Callable[[], object], user: int = MALLORY) -> Iterator[None]:
    """Have Mallory attack, and what it leaves open stay so for the block's time."""
    reading, writing = os.pipe()

    def run() -> None:
        kept = attack()
        os.write(writing, b"!")
        threading.Event().wait()
        del kept

    with open(reading, "rb") as told, As(user, run):
        os.close(writing)
        assert told.read(1)
        yield


def resident(process: int) -> int:
    """Return the bytes of its own that a process has in memory."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)["RssAnon"].split()[0]) << 10


unfinished = threat(
    "unfinished-requests",
    who=Who.STRANGER,
    against="the daemon's memory",
    does="sends half a request on hundreds of connections, and no more",
    promise="its user may have so much of them together, and each has so long to be finished",
)


@unfinished
def test_unfinished_requests_are_bounded_for_a_user(ground: Path, rust_virtiofsd: str) -> None:
    def attack() -> object:
        socks = []
        for _ in range(200):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(ground / "s"))  # waits while the daemon's queue is full
            sock.settimeout(5)
            with contextlib.suppress(OSError):  # it is ended already
                sock.sendall(_HALF)
            socks.append(sock)
        ends = [sock for sock in socks if is_refused(sock)]
        assert len(ends) > 100
        assert call(ground / "s", "api_info")[0] is None
        return socks

    def victim() -> None:
        with connected(ground / "s", 5) as sock:
            sock.sendall(msgpack.packb([0, 1, "stat", ["files", "x" * 900_000]]))
            assert msgpack.unpackb(sock.recv(4096))[2]["code"] == "ENAMETOOLONG"
        assert call(ground / "s", "stat", "files", "hello")[0] is None

    with serving(ground, rust_virtiofsd) as daemon:
        before = resident(daemon.process.pid)
        with attacking(attack):
            assert resident(daemon.process.pid) - before < 128 << 20
            assert run_as(VICTIM, victim) == 0


def is_refused(sock: socket.socket) -> bool:
    """Tell whether a connection was ended for what its user has; others stay as they are."""
    sock.settimeout(0.01)
    try:
        told = msgpack.Unpacker()
        while received := sock.recv(4096):
            told.feed(received)
    except TimeoutError:
        return False
    except ConnectionResetError:  # with bytes of ours unread
        return True
    [(_, _, [error])] = told
    return bool(error["code"] == "BUSY")


@unfinished
@pytest.mark.parametrize("trickle", [False, True])
def test_an_unfinished_request_has_its_time(
    ground: Path, rust_virtiofsd: str, trickle: bool
) -> None:
    def attack() -> None:
        with connected(ground / "s") as sock:
            sock.sendall(_HALF)
            ended = threading.Event()
            if trickle:
                sender = threading.Thread(target=send_on, args=(sock, ended))
                sender.start()
            [(_, _, [error])] = messages_until_end(sock)
            ended.set()
            assert error["code"] == "TIMEOUT"

    def send_on(sock: socket.socket, ended: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while not ended.wait(0.01):
                sock.send(b"x")

    text = "[limits]\nstall = 0.3\n" + FOR_THE_VICTIM
    with serving(ground, rust_virtiofsd, text):
        assert run_as(MALLORY, attack) == 0


kept = threat(
    "kept-between-calls",
    who=Who.CLIENT,
    against="the daemon's memory, and what backends have open",
    does="opens files, begins listings and walks and attaches memory on many connections",
    promise="its user may have so many of all of them together, until the connections are closed",
)


@kept
def test_what_stays_between_calls_is_bounded_for_a_user(ground: Path, rust_virtiofsd: str) -> None:
    def attack() -> object:
        socks, codes = [], []
        for _ in range(10):
            socks.append(connected(ground / "s"))
            for request in (["open", ["files", "hello"]], ["walk", ["files", "", {"limit": 1}]]):
                for _ in range(4):
                    error, _ = asked(socks[-1], *request)
                    codes.append(error and error["code"])
        assert codes[:16] == [None] * 16
        assert codes[16:] == ["TOO_LARGE"] * 64
        return socks

    def victim() -> None:
        assert call(ground / "s", "open", "files", "hello")[0] is None

    def afterwards() -> None:
        deadline = time.monotonic() + 10
        while call(ground / "s", "open", "files", "hello")[0] is not None:
            assert time.monotonic() < deadline  # it takes a moment to see who is gone
            time.sleep(0.01)

    (ground / "export" / "another").write_text("another\n")
    text = "[limits]\nuser_kept = 16\n" + FOR_THE_VICTIM.replace("1001", "1000, 1001")
    with serving(ground, rust_virtiofsd, text):
        with attacking(attack):
            assert run_as(VICTIM, victim) == 0
        assert run_as(MALLORY, afterwards) == 0


@kept
def test_what_walks_remember_is_bounded_for_a_user(ground: Path, rust_virtiofsd: str) -> None:
    def attack() -> object:
        socks = [connected(ground / "s") for _ in range(6)]
        answers = [asked(sock, "walk", ["files", "", {"limit": 1}])[0] for sock in socks]
        assert answers[0] is None
        assert [error["code"] for error in answers[4:]] == ["TOO_LARGE"] * 2
        return socks

    def victim() -> None:
        assert call(ground / "s", "walk", "files", "", {"limit": 1})[0] is None

    for number in range(300):
        (ground / "export" / f"{number}").touch()
    text = '[limits]\nuser_remembered = "1M"\n' + FOR_THE_VICTIM.replace("1001", "1000, 1001")
    with serving(ground, rust_virtiofsd, text), attacking(attack):
        assert run_as(VICTIM, victim) == 0


@kept
def test_what_trees_remember_is_bounded_for_a_user(ground: Path, rust_virtiofsd: str) -> None:
    page: list[object] = ["files", "", {"limit": 1, "size": 128 << 10}]

    def attack() -> object:
        socks = [connected(ground / "s") for _ in range(12)]
        answers = [asked(sock, "tree", page)[0] for sock in socks]
        assert answers[0] is None
        assert [error["code"] for error in answers[8:]] == ["TOO_LARGE"] * 4
        return socks

    def victim() -> None:
        assert call(ground / "s", "tree", *page)[0] is None

    for number in range(300):
        (ground / "export" / f"{number}").write_bytes(bytes(1000))
    text = '[limits]\nuser_remembered = "1M"\n' + FOR_THE_VICTIM.replace("1001", "1000, 1001")
    with serving(ground, rust_virtiofsd, text), attacking(attack):
        assert run_as(VICTIM, victim) == 0


def asked(sock: socket.socket, method: str, arguments: list[object]) -> tuple[Any, Any]:
    """Do one call on a connection that stays; return its error and its result."""
    with contextlib.suppress(BrokenPipeError):  # refused before that
        sock.sendall(msgpack.packb([0, 1, method, arguments]))
    return answered(sock)


def answered(sock: socket.socket) -> tuple[Any, Any]:
    """Receive an answer, or what ends the connection; return its error and its result."""
    unpacker = msgpack.Unpacker()
    while received := sock.recv(65536):
        unpacker.feed(received)
        for message in unpacker:
            return (message[2], message[3]) if message[0] == 1 else (message[2][0], None)
    return "closed", None
