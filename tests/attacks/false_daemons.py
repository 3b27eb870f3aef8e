"""Daemons of an attacker's, and what they hand to clients."""

import asyncio
import os
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgpack
import trio

from tests.attacks.people import MALLORY, As
from vuserd.client import AsyncioClient, Client, TrioClient
from vuserd.client.calls import Call

#: Seconds that a lingering socket keeps whoever closes it waiting.
LINGER: Final = 90
#: Seconds after which a victim counts as hanging: an alarm ends it.
PATIENCE: Final = 30

#: Answers one request: the connection, the message's number and the method.
Answer = Callable[[socket.socket, int, str], object]


@contextmanager
def false_daemon(
    folder: Path, answer: Answer, greet: Callable[[socket.socket], object] = id
) -> Iterator[str]:
    """Give a socket that everybody reaches, where Mallory answers for the block's time.

    Each connection is greeted first.
    """
    path = tempfile.mktemp(prefix="false-", dir=folder)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    os.chmod(path, 0o666)
    listener.listen()

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            greet(connection)
            with suppress(ConnectionError):
                for number, method in requests(connection):
                    answer(connection, number, method)

    with As(MALLORY, serve):
        listener.close()
        yield path


def requests(connection: socket.socket) -> Iterator[tuple[int, str]]:
    """Give number and method of what a client asks, until it goes."""
    unpacker = msgpack.Unpacker()
    while received := connection.recv(65536):
        unpacker.feed(received)
        for _, number, method, _ in unpacker:
            yield number, method


def reply(
    connection: socket.socket, number: int, result: object, descriptors: tuple[int, ...] = ()
) -> None:
    """Answer a request, with descriptors beside the first byte."""
    socket.send_fds(connection, [msgpack.packb([1, number, None, result])], descriptors)


def lingering() -> socket.socket:
    """Return a TCP socket: who closes it last waits, as nobody reads what it has sent."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    sock = socket.socket()
    sock.connect(listener.getsockname())
    sock.setblocking(False)
    peer, _ = listener.accept()
    kept.append(peer)
    try:
        while True:
            sock.send(bytes(65536))
    except BlockingIOError:
        pass
    sock.setblocking(True)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER))
    return sock


#: The other ends of lingering sockets.
kept: list[socket.socket] = []


def ask_synchronously(
    path: str, *calls: Call[Any], first: Callable[[], object] = int, timeout: float = 5
) -> list[Any]:
    """Do calls with the synchronous client, which has a time-out; return results and errors.

    When it is connected ``first`` is called.
    """
    with Client.connect(path, timeout=timeout, reconnect=0) as client:
        first()
        return [_outcome(partial(client.call, call)) for call in calls]


def ask_with_trio(
    path: str, *calls: Call[Any], first: Callable[[], object] = int, timeout: float = 5
) -> list[Any]:
    """Do the same with the trio client, whose caller gives up after as long."""

    async def main() -> list[Any]:
        outcomes = []
        async with TrioClient.connect(path, reconnect=0) as client:
            first()
            for call in calls:
                try:
                    with trio.fail_after(timeout):
                        outcomes.append(await client.call(call))
                except Exception as error:
                    outcomes.append(error)
        return outcomes

    return trio.run(main)


def ask_with_asyncio(
    path: str, *calls: Call[Any], first: Callable[[], object] = int, timeout: float = 5
) -> list[Any]:
    """Do the same with the asyncio client, whose caller gives up after as long."""

    async def main() -> list[Any]:
        outcomes = []
        async with AsyncioClient.connect(path, reconnect=0) as client:
            first()
            for call in calls:
                try:
                    async with asyncio.timeout(timeout):
                        outcomes.append(await client.call(call))
                except Exception as error:
                    outcomes.append(error)
        return outcomes

    return asyncio.run(main())


def _outcome(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:
        return error


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so, for a generous time."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
