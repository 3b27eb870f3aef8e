"""What a machine on the network can do to the gateways of the examples, and to other boards."""

import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from examples import gateway_http
from tests.attacks.threats import Who, threat
from tests.running import REPOSITORY, RunningDaemon

_PATIENCE: Final = 30
_ASKED: Final = b"GET /files/hello HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture
def daemon(ground: Path, rust_virtiofsd: str) -> Iterator[RunningDaemon]:
    with RunningDaemon({"files": ground / "export"}, ground / "s", rust_virtiofsd) as daemon:
        yield daemon


@contextmanager
def _gateway(name: str, daemon: RunningDaemon, port: int, complaints: Path) -> Iterator[int]:
    """Run a gateway that listens on any address of this machine; yield its port."""
    command = [sys.executable, str(REPOSITORY / "examples" / name), "--socket", daemon.socket]
    command += ["--listen", f"127.0.0.1:{port}"]
    with (
        complaints.open("wb") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as running,
    ):
        assert running.stdout is not None
        try:
            yield int(running.stdout.readline().strip("/\n").rpartition(":")[2])
            assert running.poll() is None
        finally:
            running.terminate()


def _odd_datagrams() -> Iterator[bytes]:
    yield from (b"", b"\0", b"\0\1", b"\0\1\xff\0octet\0", b"\0\1" + b"A" * 60_000)
    for name in (b"", b".", b"..", b"../../etc/passwd", b"/etc/passwd", b"files/\x1b]0;x\x07"):
        yield b"\0\1" + name + b"\0octet\0"
    for option in (b"blksize\0x", b"blksize\0-5", b"blksize\x0099999", b"tsize\0x", b"\xff\0x"):
        yield b"\0\1files/hello\0octet\0" + option + b"\0"
    for opcode in range(2, 9):
        yield struct.pack(">HH", opcode, 1) + b"x" * 600


@threat(
    "odd datagrams",
    who=Who.BOARD,
    against="other boards that load by TFTP, and the terminal that the gateway runs on",
    does="sends datagrams that are no TFTP, paths that lead out, and names with escapes",
    promise="its own transfer ends, nothing outside of the export is sent, and no escape is shown",
)
def test_odd_datagrams_end_no_gateway(ground: Path, daemon: RunningDaemon) -> None:
    pytest.importorskip("tftpy")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    complaints = ground / "complaints"
    with _gateway("gateway_tftp.py", daemon, port, complaints):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as board:
            board.settimeout(0.2)
            while not _answers(board, port):  # it says that it serves before it does
                pass
        for datagram in _odd_datagrams():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
                attacker.sendto(datagram, ("127.0.0.1", port))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as board:
            board.settimeout(_PATIENCE)
            assert _answers(board, port)
    assert b"\x1b" not in complaints.read_bytes()


def _answers(board: socket.socket, port: int) -> bool:
    board.sendto(b"\0\1files/hello\0octet\0", ("127.0.0.1", port))
    try:
        return board.recvfrom(1024)[0] == b"\0\3\0\1hello\n"
    except TimeoutError:
        return False


@threat(
    "slow requests",
    who=Who.BOARD,
    against="other boards that load by HTTP",
    does="begins a request on many connections and ends none, or goes without a word",
    promise="an address has so many connections; others are served, and the log has no word of it",
)
def test_slow_requests_leave_others_theirs(ground: Path, daemon: RunningDaemon) -> None:
    complaints = ground / "complaints"
    with _gateway("gateway_http.py", daemon, 0, complaints) as port:
        slow = [socket.create_connection(("127.0.0.1", port), _PATIENCE) for _ in range(100)]
        for sock in slow:
            try:
                sock.sendall(_ASKED)
            except ConnectionError:
                break  # the rest has no room
        for _ in range(2):
            with socket.create_connection(
                ("127.0.0.1", port), _PATIENCE, ("127.0.0.2", 0)
            ) as board:
                board.sendall(_ASKED + b"\r\n")
                assert board.recv(4096).startswith(b"HTTP/1.1 200 ")
        for sock in slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()  # with RST
        with socket.create_connection(("127.0.0.1", port), _PATIENCE, ("127.0.0.3", 0)) as board:
            board.sendall(_ASKED + b"\r\n")
            assert board.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert b"Traceback" not in complaints.read_bytes()


def test_connections_are_counted() -> None:
    server = gateway_http.Server(("127.0.0.1", 0), gateway_http.Handler)
    with server:
        kept = [socket.socket() for _ in range(gateway_http.MOST)]
        admitted = [sock for sock in kept if server.verify_request(sock, ("192.0.2.1", 1))]
        assert len(admitted) == gateway_http.MOST_OF_ONE
        assert server.verify_request(kept[-1], ("192.0.2.2", 1))
        server.shutdown_request(admitted[0])
        assert server.verify_request(kept[-2], ("192.0.2.1", 1))
        assert not server.verify_request(kept[-3], ("192.0.2.1", 1))
        for sock in kept:
            server.shutdown_request(sock)
        assert all(server.verify_request(sock, (str(at), 1)) for at, sock in enumerate(kept))
        assert not server.verify_request(object(), ("192.0.2.3", 1))
