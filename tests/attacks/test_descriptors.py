"""Descriptors at which a system call of the daemon's would hang: others are served meanwhile."""

import array
import contextlib
import mmap
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgpack
import pytest
import trio

from tests.attacks.daemons import FOR_THE_VICTIM, call, connected, serving
from tests.attacks.hanging import UnansweredFile, lingering
from tests.attacks.people import MALLORY, VICTIM, As, run_as
from tests.attacks.threats import Who, threat
from tests.running import RunningDaemon
from vuserd.device.connection import VhostUserConnection
from vuserd.errors import BackendError

#: Seconds that each descriptor hangs a system call for, and within which everybody is served.
_LINGER: Final = 40
_PATIENCE: Final = 5.0
_SIZE: Final = 1 << 20

_LIMITED: Final = "[limits]\nuser_connections = 4\nuser_descriptors = 6\n" + FOR_THE_VICTIM

blocks_nobody = threat(
    "hanging-descriptors",
    who=Who.STRANGER,
    against="the daemon's thread",
    does="sends TCP sockets that linger, in every way in which a descriptor can come",
    promise="they are closed elsewhere: others are served meanwhile, and the daemon can end",
)


def request(method: str, *arguments: object) -> bytes:
    frame: bytes = msgpack.packb([0, 1, method, arguments])
    return frame


def send(sock: socket.socket, sent: bytes, descriptors: list[int], flags: int = 0) -> None:
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
    sock.sendmsg([sent], [rights], flags)


def ignored(path: str, descriptor: int) -> socket.socket:
    sock = connected(path)
    send(sock, request("api_info"), [descriptor])
    return sock


def refused(path: str, descriptor: int) -> socket.socket:
    sock = connected(path)
    send(sock, request("attach", _SIZE), [descriptor])
    return sock


def in_hundreds(path: str, descriptor: int) -> socket.socket:
    sock = connected(path)
    send(sock, request("attach", _SIZE), [descriptor] * 253)
    return sock


def of_one_that_goes(path: str, descriptor: int) -> None:
    with connected(path) as sock:
        send(sock, request("attach", _SIZE)[:-1], [descriptor])


def never_received(path: str, descriptor: int) -> socket.socket:
    sock = connected(path)
    sock.setblocking(True)
    sock.send(b"\xc1" + bytes(70_000))  # no message: nothing after its beginning is read
    send(sock, request("api_info"), [descriptor])
    return sock


def beside_urgent_data(path: str, descriptor: int) -> socket.socket:
    sock = connected(path)
    send(sock, b"\x00", [descriptor], socket.MSG_OOB)
    sock.send(request("api_info"))
    return sock


def of_one_too_many(path: str, descriptor: int) -> list[socket.socket]:
    return [*(connected(path) for _ in range(4)), ignored(path, descriptor)]


@contextlib.contextmanager
def attacking(daemon: RunningDaemon, attack: Callable[[], object]) -> Iterator[None]:
    """Have Mallory attack, and what it leaves open stay so for the block's time.

    The daemon stands still until then, so that what it is sent has no other holder when it goes on.
    """
    reading, writing = os.pipe()

    def run() -> None:
        kept = attack()
        os.write(writing, b"!")
        threading.Event().wait()
        del kept

    daemon.process.send_signal(signal.SIGSTOP)
    try:
        with As(MALLORY, run):
            os.close(writing)
            assert os.read(reading, 1)
            daemon.process.send_signal(signal.SIGCONT)
            yield
    finally:
        daemon.process.send_signal(signal.SIGCONT)
        os.close(reading)


def slowest_of_the_victim(path: str) -> float:
    """Return how long the slowest of some calls took that follow each other."""
    reading, writing = os.pipe()

    def measure() -> None:
        worst = 0.0
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            began = time.monotonic()
            assert call(path, "stat", "files", "hello")[0] is None
            worst = max(worst, time.monotonic() - began)
        os.write(writing, str(worst).encode())

    assert run_as(VICTIM, measure) == 0
    os.close(writing)
    with open(reading) as file:
        return float(file.read())


@blocks_nobody
@pytest.mark.parametrize(
    "way",
    [
        ignored,
        refused,
        in_hundreds,
        of_one_that_goes,
        never_received,
        beside_urgent_data,
        of_one_too_many,
    ],
)
def test_a_socket_that_lingers_holds_up_nobody(
    ground: Path, rust_virtiofsd: str, way: Callable[[str, int], object]
) -> None:
    def attack() -> object:
        linger, peer = lingering(_LINGER)
        kept = way(str(ground / "s"), linger.fileno())
        linger.close()
        return kept, peer

    with serving(ground, rust_virtiofsd, _LIMITED) as daemon, attacking(daemon, attack):
        assert slowest_of_the_victim(daemon.socket) < _PATIENCE
        began = time.monotonic()
        daemon.process.terminate()
        daemon.process.wait()
        assert time.monotonic() - began < _LINGER / 2


@blocks_nobody
def test_connections_that_cannot_be_closed_are_bounded(ground: Path, rust_virtiofsd: str) -> None:
    def attack() -> object:
        kept = []
        for _ in range(60):
            linger, peer = lingering(_LINGER)
            with linger:
                never_received(str(ground / "s"), linger.fileno()).close()
            kept.append(peer)
        return kept

    with serving(ground, rust_virtiofsd, _LIMITED) as daemon:
        before = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
        with attacking(daemon, attack):
            assert slowest_of_the_victim(daemon.socket) < _PATIENCE
            assert len(os.listdir(f"/proc/{daemon.process.pid}/fd")) <= before + 50  # of 100


@threat(
    "closings-that-hang",
    who=Who.STRANGER,
    against="the daemon's threads and descriptors",
    does="sends files of a FUSE server that never answers a close",
    promise="its user may send no more of them, and is told; its other calls are answered, and"
    " others are served everything",
)
def test_who_sends_what_cannot_be_closed_sends_no_more(ground: Path, rust_virtiofsd: str) -> None:
    text = _LIMITED.replace("user_connections = 4\n", "")
    with serving(ground, rust_virtiofsd, text) as daemon, UnansweredFile(ground / "m") as file:

        def attack() -> object:
            descriptor = os.open(file.path, os.O_RDONLY)
            socks = [connected(daemon.socket) for _ in range(9)]
            for sock in socks:
                send(sock, request("attach", _SIZE), [descriptor])
            return descriptor, socks

        def ask_on() -> None:
            memory = os.memfd_create("mallory", os.MFD_ALLOW_SEALING)
            assert (
                call(daemon.socket, "attach", _SIZE, descriptors=(memory,))[0][0]["code"] == "BUSY"
            )
            assert call(daemon.socket, "api_info")[0] is None

        def victim() -> None:
            memory = os.memfd_create("victim", os.MFD_ALLOW_SEALING)
            os.ftruncate(memory, _SIZE)
            assert call(daemon.socket, "attach", _SIZE, descriptors=(memory,)) == (None, 1)

        with attacking(daemon, attack):
            try:
                assert slowest_of_the_victim(daemon.socket) < _PATIENCE
                assert run_as(VICTIM, victim) == 0
                assert run_as(MALLORY, ask_on) == 0
            finally:
                file.end()  # which the attacker would wait for when it is killed


@threat(
    "memory-that-others-fill",
    who=Who.STRANGER,
    against="the daemon's thread",
    does="attaches a memfd whose inode another thread of its own keeps locked for ever",
    promise="it has TIMEOUT; others are served meanwhile",
)
def test_a_memfd_that_stays_locked_holds_up_nobody(ground: Path, rust_virtiofsd: str) -> None:
    with (
        serving(ground, rust_virtiofsd) as daemon,
        UnansweredFile(ground / "m") as file,
    ):

        def attack() -> object:
            memory = os.memfd_create("locked", os.MFD_ALLOW_SEALING)
            os.ftruncate(memory, _SIZE)
            descriptor = os.open(file.path, os.O_RDONLY)
            content = mmap.mmap(descriptor, 4096, prot=mmap.PROT_READ)
            threading.Thread(target=os.writev, args=(memory, [content]), daemon=True).start()
            file.wait()
            sock = refused(daemon.socket, memory)
            return memory, content, sock

        with attacking(daemon, attack):
            try:
                assert slowest_of_the_victim(daemon.socket) < _PATIENCE
            finally:
                file.end()


@threat(
    "descriptors-of-a-backend",
    who=Who.BACKEND,
    against="the daemon's thread",
    does="sends sockets that linger beside its replies",
    promise="none is received, its session ends, and nobody waits for their end",
)
async def test_a_backend_s_socket_that_lingers_holds_up_nobody() -> None:
    ours, theirs = socket.socketpair()
    connection = VhostUserConnection(
        trio.SocketStream(trio.socket.from_stdlib_socket(ours)), timeout=_LINGER
    )
    linger, peer = lingering(_LINGER)
    with linger, theirs:
        send(theirs, bytes(12), [linger.fileno()])
    began = time.monotonic()
    with pytest.raises(BackendError, match="descriptors with the reply"):
        await connection.run()
    assert time.monotonic() - began < _PATIENCE
    peer.close()
