"""Clients that break the protocol get a typed error, and other clients are not affected."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.attacks.threats import Who, threat
from tests.running import RunningDaemon
from vuserd.client import Client


@pytest.fixture(scope="module")
def running(
    rust_virtiofsd: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningDaemon]:
    folder = tmp_path_factory.mktemp("bad-input")
    (folder / "files").mkdir()
    (folder / "files" / "big").write_bytes(os.urandom(8 << 20))
    with RunningDaemon({"files": folder / "files"}, folder / "s", rust_virtiofsd) as running:
        yield running


@contextmanager
def raw(running: RunningDaemon) -> Iterator[socket.socket]:
    """Connect without a client library; afterwards the daemon serves others as before."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(running.socket)
        yield connection
    with Client.connect(running.socket) as good:
        assert good.stat("files", "big").size == 8 << 20


def receive(connection: socket.socket) -> Any:
    """Receive one message; None at the end of the stream."""
    unpacker = msgpack.Unpacker(max_buffer_size=16 << 20)
    while True:
        for message in unpacker:
            return message
        received = connection.recv(1 << 16)
        if not received:
            return None
        unpacker.feed(received)


@threat(
    "lost-framing",
    who=Who.STRANGER,
    against="the decoder",
    does="sends what is no frame, or announces more than there may be",
    promise="its own connection ends with a word, and no object was made of it",
)
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\xc1", "BAD_REQUEST"),
        (b"\x94\x00\x01\xa4stat" + b"\x91" * 40 + b"\xc0", "TOO_LARGE"),
        (b"\x94\x00\x01\xa4stat\x91\xc6\x7f\xff\xff\xff", "TOO_LARGE"),
        (b"\x94\x00\x01\xa4stat\xdd\xff\xff\xff\xff", "TOO_LARGE"),
        (b"\x94\x00\x01\xa4stat\x91\xc5\xff\xff" + bytes(65535) + b"\xc1", "BAD_REQUEST"),
    ],
)
def test_a_lost_framing_ends_the_connection_with_a_word(
    running: RunningDaemon, sent: bytes, code: str
) -> None:
    with raw(running) as connection:
        connection.sendall(sent)
        unpacker = msgpack.Unpacker(max_buffer_size=16 << 20)
        while received := connection.recv(1 << 16):
            unpacker.feed(received)
        messages = [*unpacker]
        [(_, method, [error])] = [message for message in messages if message[0] == 2]
        assert (method, error["code"]) == ("error", code)


@pytest.mark.parametrize(
    "message", [7, [], [0], [5, 1, "stat", []], [0, -1, "stat", []], [2, "stat"], {"a": 1}]
)
def test_what_is_no_request_is_refused_and_the_next_one_served(
    running: RunningDaemon, message: object
) -> None:
    with raw(running) as connection:
        connection.sendall(msgpack.packb(message))
        error = receive(connection)[2]
        assert (error[0] if isinstance(error, list) else error)["code"] == "BAD_REQUEST"
        connection.sendall(msgpack.packb([0, 5, "exports", []]))
        assert receive(connection)[:3] == [1, 5, None]


@pytest.mark.parametrize(
    "message",
    [
        [0, 1, 7, []],
        [0, 1, "stat", {}],
        [0, 1, "stat", ["files", "big", {}, 4]],
        [0, 1, "read", ["files", "big", 0, 1.5]],
        [0, 1, "read", ["files", "big", True, 1]],
        [0, 1, "readdir", ["files", "", {"after": b"forged"}]],
        [0, 1, "readdir", ["files", "", {"limit": 0}]],
        [0, 1, "stat", ["files", "a\0b"]],
        [0, 1, "stat", ["files", msgpack.ExtType(4, b"x")]],
    ],
)
def test_wrong_parameters_are_refused_on_their_request(
    running: RunningDaemon, message: object
) -> None:
    with raw(running) as connection:
        connection.sendall(msgpack.packb(message))
        kind, msgid, error, result = receive(connection)
        assert (kind, msgid, result) == (1, 1, None)
        assert error["code"] == "BAD_REQUEST"
        assert len(error["message"]) > 10


def test_a_half_closed_client_gets_all_its_replies(running: RunningDaemon) -> None:
    with raw(running) as connection:
        for number in range(20):
            connection.sendall(msgpack.packb([0, number, "read", ["files", "big", 0, 100_000]]))
        connection.shutdown(socket.SHUT_WR)
        seen = b""
        while received := connection.recv(1 << 16):
            seen += received
        unpacker = msgpack.Unpacker(max_buffer_size=16 << 20)
        unpacker.feed(seen)
        assert sorted(message[1] for message in unpacker) == list(range(20))


def test_a_client_that_goes_in_the_middle_of_a_reply_leaves_nothing(
    running: RunningDaemon,
) -> None:
    for _ in range(20):
        with raw(running) as connection:
            for number in range(8):
                connection.sendall(msgpack.packb([0, number, "read", ["files", "big", 0, 8 << 20]]))
            connection.recv(100)
    with Client.connect(running.socket) as client:
        state = client.status()["exports"][0]
        assert state["payloads"] == 0
        assert state["in_flight"] == 0


def test_a_client_that_does_not_read_holds_up_nobody(running: RunningDaemon) -> None:
    with raw(running) as idler:
        for number in range(64):
            idler.sendall(msgpack.packb([0, number, "read", ["files", "big", 0, 8 << 20]]))
        with Client.connect(running.socket) as client:
            for _ in range(3):
                assert len(client.read("files", "big", 0, 8 << 20)) == 8 << 20


@threat(
    "socket-mode",
    who=Who.NEIGHBOUR,
    against="a daemon without a configuration",
    does="connects",
    promise="the socket is its owner's alone",
)
def test_the_socket_is_its_owners_alone(running: RunningDaemon) -> None:
    assert Path(running.socket).stat().st_mode & 0o777 == 0o600
