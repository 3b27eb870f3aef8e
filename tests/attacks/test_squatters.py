"""Who holds a name that clients look for, and is not the daemon."""

import asyncio
import ctypes
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.attacks.false_daemons import PATIENCE, reply, requests
from tests.attacks.people import MALLORY, VICTIM, As, run_as
from tests.attacks.threats import Who, threat
from vuserd.client import AsyncioClient, Client, TrioClient
from vuserd.client.core import reconnect
from vuserd.client.errors import CannotConnect, NotTaken
from vuserd.ctl import main, show

assert show  # before a user who cannot read this interpreter has vuserctl load it

_CLONE_NEWNET: Final = 0x40000000


def find_synchronously(address: str | None = None) -> None:
    with Client.connect(address, timeout=10, reconnect=0) as client:
        assert client.exports() == []


def find_with_trio(address: str | None = None) -> None:
    async def main() -> None:
        async with TrioClient.connect(address, reconnect=0) as client:
            assert await client.exports() == []

    trio.run(main)


def find_with_asyncio(address: str | None = None) -> None:
    async def main() -> None:
        async with AsyncioClient.connect(address, reconnect=0) as client:
            assert await client.exports() == []

    asyncio.run(main())


def find_with_vuserctl(address: str | None = None) -> None:
    assert main.run([*(["--socket", address] if address else []), "exports"]) == 0


Find = Callable[..., None]
all_clients = pytest.mark.parametrize(
    "find", [find_synchronously, find_with_trio, find_with_asyncio]
)


def alone(function: Callable[[], None]) -> None:
    """Run a function in a network namespace of its own, where nobody else has a name."""

    def stage() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(_CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        function()

    assert run_as(0, stage, group=0) == 0


#: Does something with a listener, and calls the other function once it is as it should be.
Serve = Callable[[socket.socket, Callable[[], object]], object]


@contextmanager
def held(user: int, address: str, serve: Serve, backlog: int = 8) -> Iterator[None]:
    """Have a user listen at an address, and serve there, for the block's time."""
    reader, writer = os.pipe()

    def hold() -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("\0" + address[1:] if address.startswith("@") else address)
        if not address.startswith("@"):
            os.chmod(address, 0o666)
        listener.listen(backlog)
        serve(listener, lambda: os.write(writer, b"x"))

    with As(user, hold):
        os.read(reader, 1)
        yield
    os.close(reader)
    os.close(writer)


def be_full(listener: socket.socket, ready: Callable[[], object]) -> None:
    others = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    for other in others:
        other.setblocking(False)
        with suppress(BlockingIOError):
            other.connect(listener.getsockname())
    ready()
    signal.pause()


def be_silent(_: socket.socket, ready: Callable[[], object]) -> None:
    ready()
    signal.pause()


def babble(listener: socket.socket, ready: Callable[[], object]) -> None:
    """Send a byte now and then of an answer that does not end."""
    ready()
    while True:
        connection, _ = listener.accept()
        with suppress(ConnectionError):
            connection.sendall(b"\x94\x01\x01\xc0\xc6\x01\x00\x00\x00")
            while True:
                connection.sendall(b"x")
                trio.run(trio.sleep, 0.1)


def be_the_daemon(listener: socket.socket, ready: Callable[[], object]) -> None:
    """Have no exports, for one client after the other."""
    ready()
    while True:
        connection, _ = listener.accept()
        with suppress(ConnectionError), connection:
            for number, method in requests(connection):
                reply(connection, number, {} if method == "origin" else [])


def spy(told: int, listener: socket.socket, ready: Callable[[], object]) -> None:
    """Tell with '!' that a client has sent something, with '.' that it went without."""
    ready()
    connection, _ = listener.accept()
    received = b""
    with suppress(ConnectionError):
        received = connection.recv(65536)
    os.write(told, b"!" if received else b".")
    signal.pause()


def limited() -> None:
    """Have this process end if it hangs."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(PATIENCE)


def folder_of(user: int, path: Path) -> Path:
    path.mkdir()
    os.chown(path, user, user)
    return path


@threat(
    "squatted guess",
    who=Who.NEIGHBOUR,
    against="all clients of the machine",
    does="takes @vuserd, and accepts nobody, answers nobody or does not end its answer",
    promise="an abstract name that was guessed has a second, then clients try the next",
)
@pytest.mark.parametrize(
    ("find", "squat", "user"),
    [
        (find_synchronously, be_full, MALLORY),
        (find_with_trio, be_full, MALLORY),
        (find_with_vuserctl, be_full, MALLORY),
        (find_with_vuserctl, be_silent, MALLORY),
        (find_synchronously, be_silent, 0),
        (find_with_trio, be_silent, 0),
        (find_synchronously, babble, 0),
        (find_with_trio, babble, 0),
    ],
)
def test_the_next_address_is_tried(ground: Path, find: Find, squat: Serve, user: int) -> None:
    folder = folder_of(VICTIM, ground / "run")

    def victim() -> None:
        limited()
        os.environ["XDG_RUNTIME_DIR"] = str(folder)
        find()

    def stage() -> None:
        with (
            held(user, "@vuserd", squat, backlog=0),
            held(VICTIM, str(folder / "vuserd.sock"), be_the_daemon),
        ):
            assert run_as(VICTIM, victim) == 0

    alone(stage)


@threat(
    "guesses all squatted",
    who=Who.NEIGHBOUR,
    against="all clients of the machine",
    does="keeps the queue of @vuserd full where no daemon is",
    promise="clients end, and say what was tried and why each was in vain",
)
@all_clients
def test_there_is_an_end(ground: Path, find: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnect, "_FOR_GUESSES", (0.5, 1.0))
    folder = folder_of(VICTIM, ground / "run")

    def victim() -> None:
        limited()
        os.environ["XDG_RUNTIME_DIR"] = str(folder)
        with pytest.raises(CannotConnect) as failed:
            find()
        for told in ("@vuserd: its queue is full", f"{folder}/vuserd.sock: no such file"):
            assert told in str(failed.value), failed.value

    def stage() -> None:
        with held(MALLORY, "@vuserd", be_full, backlog=0):
            assert run_as(VICTIM, victim) == 0

    alone(stage)


@threat(
    "false daemon at a guess",
    who=Who.FALSE_DAEMON,
    against="a client's calls and memory",
    does="listens on a rig's name, or in the folder of another user that XDG_RUNTIME_DIR names",
    promise="a client sends nothing to who is not root, the service's user or its own",
)
@all_clients
@pytest.mark.parametrize(
    ("address", "named"),
    [("@vuserd", False), ("@vuserd", True), ("@lab", True), ("run/vuserd.sock", False)],
)
def test_nothing_is_sent_to_another_user(
    ground: Path, find: Find, address: str, named: bool
) -> None:
    folder = folder_of(MALLORY, ground / "run")
    where = address if address.startswith("@") else str(ground / address)
    reader, writer = os.pipe()

    def victim() -> None:
        limited()
        os.environ["XDG_RUNTIME_DIR"] = str(folder)
        with pytest.raises(CannotConnect, match=f"{where}: uid {MALLORY} listens there"):
            find(where if named else None)

    def stage() -> None:
        with held(MALLORY, where, partial(spy, writer)):
            assert run_as(VICTIM, victim) == 0
            assert os.read(reader, 1) == b"."

    alone(stage)
    os.close(reader)
    os.close(writer)


@threat(
    "false successor",
    who=Who.FALSE_DAEMON,
    against="a client's calls and memory",
    does="takes the abstract name of a daemon that was restarted",
    promise="who listens is looked at for each connection, the first and all others",
)
def test_the_successor_is_looked_at() -> None:
    reader, writer = os.pipe()

    def end_after_one(listener: socket.socket, ready: Callable[[], object]) -> None:
        ready()
        connection, _ = listener.accept()
        listener.close()
        number, _method = next(requests(connection))
        reply(connection, number, [])
        connection.close()
        signal.pause()

    def victim() -> None:  # which no alarm may end: the other process is its own
        with Client.connect("@lab", timeout=5) as client:
            assert client.exports() == []
            with held(MALLORY, "@lab", partial(spy, writer)):
                with pytest.raises(NotTaken) as failed:
                    client.exports()
                assert os.read(reader, 1) == b"."
        assert f"uid {MALLORY} listens there" in str(failed.value)

    def stage() -> None:
        with held(0, "@lab", end_after_one):
            assert run_as(0, victim, group=0) == 0

    alone(stage)
    os.close(reader)
    os.close(writer)
