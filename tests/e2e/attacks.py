"""Attacks of hostile clients on a daemon, one function for each; each cleans up after itself.

An attack takes the daemon's socket and how many rounds to do.  It fails when the daemon answers
what it must not, or hangs where it must end a connection.  That everybody else is served meanwhile
is for its caller to check.
"""

import contextlib
import fcntl
import os
import random
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgpack

from tests.e2e.good_clients import LARGE

#: Seconds that the daemon has for anything that it owes an attacker.
PATIENCE: Final = 25.0
#: What SCM_RIGHTS carries at most, and what the daemon keeps for one connection.
MOST_DESCRIPTORS: Final = 253
KEPT_DESCRIPTORS: Final = 16
_PAGE: Final = 4096


@contextmanager
def connected(path: str) -> Iterator[socket.socket]:
    """Connect without a client library."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)  # without a timeout it waits where the daemon's queue is full
        connection.settimeout(PATIENCE)
        yield connection


@contextmanager
def connections(path: str, count: int) -> Iterator[list[socket.socket]]:
    """Connect that often."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connected(path)) for _ in range(count)]


def packed(value: object) -> bytes:
    """Encode a message."""
    frame: bytes = msgpack.packb(value)
    return frame


def messages_until_end(connection: socket.socket) -> list[Any]:
    """Receive whatever comes until the daemon closes the connection."""
    unpacker = msgpack.Unpacker(max_buffer_size=64 << 20, unicode_errors="surrogateescape")
    with contextlib.suppress(ConnectionResetError):  # closed with bytes of ours unread
        while received := connection.recv(1 << 16):
            unpacker.feed(received)
    return list(unpacker)


def one_message(connection: socket.socket) -> Any:
    """Receive the next message, and nothing of those that come behind it."""
    unpacker = msgpack.Unpacker(max_buffer_size=64 << 20, unicode_errors="surrogateescape")
    taken = 0
    while seen := connection.recv(1 << 16, socket.MSG_PEEK):
        unpacker.feed(seen)
        for message in unpacker:
            connection.recv(unpacker.tell() - taken)
            return message
        taken += len(connection.recv(len(seen)))
    raise AssertionError("the daemon closed the connection without an answer")


def send_as_far_as_taken(connection: socket.socket, sent: bytes) -> None:
    """Send, to a daemon that may close the connection at any byte of it."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(sent)


def assert_served(connection: socket.socket) -> None:
    """Check that the connection still serves its own client."""
    connection.sendall(packed([0, 4_000_000_000, "exports", []]))
    message = one_message(connection)
    assert message[:3] == [1, 4_000_000_000, None], message


# -- frames ----------------------------------------------------------------------------------------


def _damaged(frame: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(frame)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(damaged) + 1)
        match chance.randrange(3):
            case 0:
                damaged[at : at + 1] = chance.randbytes(1)
            case 1:
                del damaged[at : at + chance.randint(1, 5)]
            case _:
                damaged[at:at] = chance.randbytes(chance.randint(1, 5))
    return bytes(damaged)


_FRAMES: Final = (
    packed([0, 1, "stat", ["files", "large", {"follow": False}]]),
    packed([0, 2, "read", ["files", "small-1", 0, 100]]),
    packed([0, 3, "readdir", ["files", "", {"limit": 3, "attrs": True}]]),
    packed([0, 4, "walk", ["files", "", {"limit": 3}]]),
    packed([0, 5, "load", [1, 0, "files", "large"]]),
    packed([0, 6, "attach", [4096]]),
    packed([2, "stat", ["files", "large"]]),
    packed([1, 7, None, 7]),
)


def malformed_frames(path: str, rounds: int) -> None:
    """Send damaged frames, some on one connection: each gives an error or the connection's end."""
    chance = random.Random(1)
    for _ in range(-(-rounds // 5)):
        with connected(path) as connection:
            for _ in range(5):
                send_as_far_as_taken(connection, _damaged(chance.choice(_FRAMES), chance))
            connection.shutdown(socket.SHUT_WR)
            for message in messages_until_end(connection):
                assert message[0] in (1, 2), message


def half_sent_frames(path: str, rounds: int) -> None:
    """Send the beginning of a frame and no more, on many connections at once."""
    whole = packed([0, 1, "stat", ["files", "x" * 3000]])
    for begin in range(0, rounds, 50):
        with connections(path, min(50, rounds - begin)) as crowd:
            for number, connection in enumerate(crowd):
                connection.sendall(whole[: 1 + (begin + number) * 7 % (len(whole) - 1)])
            for connection in crowd[::2]:
                connection.shutdown(socket.SHUT_WR)
                assert messages_until_end(connection) == []


def giant_frames(path: str, rounds: int) -> None:
    """Announce, or truly send, more than a request may have: TOO_LARGE, then the end."""
    head = b"\x94\x00\x01\xa4stat\x92\xa5files"
    giants = (
        head + b"\xc6\xff\xff\xff\xff",
        head + b"\xdb\x7f\xff\xff\xff" + bytes(100_000),
        head + b"\xc6\x00\x0f\xff\xf0" + bytes(1 << 20),
        head + b"\xc9\x40\x00\x00\x00\x01",
        b"\x94\x00\x01\xc6\x80\x00\x00\x00",
    )
    for number in range(rounds):
        with connected(path) as connection:
            send_as_far_as_taken(connection, giants[number % len(giants)])
            [(kind, method, [error])] = messages_until_end(connection)
            assert (kind, method, error["code"]) == (2, "error", "TOO_LARGE")


def nested_frames(path: str, rounds: int) -> None:
    """Put containers inside containers, of every kind."""
    chance = random.Random(2)
    heads = (b"\x91", b"\x81\xa1x", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01", b"\xde\x00\x01\xa1x")
    for _ in range(rounds):
        with connected(path) as connection:
            deep = b"".join(chance.choice(heads) for _ in range(chance.choice((30, 1000, 30_000))))
            send_as_far_as_taken(connection, b"\x94\x00\x01\xa4stat" + deep)
            [(kind, method, [error])] = messages_until_end(connection)
            assert (kind, method, error["code"]) == (2, "error", "TOO_LARGE")


def allocation_bombs(path: str, rounds: int) -> None:
    """Announce containers of many values: refused before one of them is made."""
    bombs = (
        b"\x94\x00\x01\xa4stat\xdd\xff\xff\xff\xff",
        b"\x94\x00\x01\xa4stat\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\x80\x00\x00\x00",
        b"\x94\x00\x01\xa4stat" + b"\xdc\x40\x00" * 12,
        b"\x94\x00\x01\xa4stat\xdc\xff\xff" + b"\x90" * 0xFFFF,
    )
    for number in range(rounds):
        with connected(path) as connection:
            send_as_far_as_taken(connection, bombs[number % len(bombs)])
            [(kind, method, [error])] = messages_until_end(connection)
            assert (kind, method, error["code"]) == (2, "error", "TOO_LARGE")


def pipelined_requests(path: str, rounds: int) -> None:
    """Send requests without waiting for one answer; all of them are answered, once each."""
    each = (
        lambda number: packed([0, number, "stat", ["files", "large"]]),
        lambda number: packed([0, number, "exports", []]),
        lambda number: packed([0, number, "no such method", []]),
        lambda number: packed([0, number, "read", ["files", "small-2", 0, 50]]),
    )
    with connected(path) as connection:

        def send() -> None:
            for begin in range(0, rounds, 500):
                numbers = range(begin, min(begin + 500, rounds))
                connection.sendall(b"".join(each[number % 4](number) for number in numbers))
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        answered = bytearray(rounds)
        unpacker = msgpack.Unpacker(max_buffer_size=16 << 20)
        while received := connection.recv(1 << 18):
            unpacker.feed(received)
            for kind, number, error, _ in unpacker:
                assert kind == 1
                assert (error is not None) == (number % 4 == 2), error
                answered[number] += 1
        sender.join()
        assert answered == b"\1" * rounds


def floods_of_nothing(path: str, rounds: int) -> None:
    """Send the shortest messages that ask for nothing, 64 KiB a round, and read all errors."""
    floods = (b"\x00" * (64 << 10), packed([2, "", []]) * (16 << 10))
    with connected(path) as connection:

        def send() -> None:
            for number in range(rounds):
                connection.sendall(floods[number % 2])
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = 0
        while got := connection.recv(1 << 20):
            received += len(got)
        sender.join()
        assert received > rounds // 2 * (64 << 10)


# -- descriptors -----------------------------------------------------------------------------------


def _send_with(connection: socket.socket, sent: bytes, descriptors: Sequence[int]) -> None:
    socket.send_fds(connection, [sent], list(descriptors))


def _odd_descriptors(stack: contextlib.ExitStack) -> dict[str, int]:
    """Open one of each kind that is no memory to attach."""
    reading, writing = os.pipe()
    sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(sealed, _PAGE)
    fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    unsealable = os.memfd_create("unsealable", 0)
    os.ftruncate(unsealable, _PAGE)
    small = os.memfd_create("small", os.MFD_ALLOW_SEALING)
    os.ftruncate(small, _PAGE - 1)
    read_only = os.open(f"/proc/self/fd/{small}", os.O_RDONLY)
    opened = {
        "the reading end of a pipe": reading,
        "the writing end of a pipe": writing,
        "a directory": os.open("/", os.O_RDONLY | os.O_DIRECTORY),
        "a path": os.open("/", os.O_PATH),
        "a device": os.open("/dev/zero", os.O_RDWR),
        "an eventfd": os.eventfd(0),
        "a memfd sealed against writing": sealed,
        "a memfd without sealing": unsealable,
        "a memfd that is too small": small,
        "a memfd to read from": read_only,
    }
    for descriptor in opened.values():
        stack.callback(os.close, descriptor)
    return opened


def descriptors_of_wrong_kinds(path: str, rounds: int) -> None:
    """Attach what is no memory: refused with a reason, and the connection goes on."""
    with contextlib.ExitStack() as stack:
        odd = _odd_descriptors(stack)
        for _ in range(-(-rounds // len(odd))):
            with connected(path) as connection:
                for number, (what, descriptor) in enumerate(odd.items()):
                    request = packed([0, number, "attach", [_PAGE]])
                    _send_with(connection, request, [descriptor])
                    _, msgid, error, _ = one_message(connection)
                    assert msgid == number
                    assert error["code"] == "BAD_REQUEST", (what, error)
                connection.sendall(packed([0, 99, "attach", [_PAGE]]))
                assert one_message(connection)[2]["code"] == "BAD_REQUEST"  # none came with it
                assert_served(connection)


def descriptors_where_none_are_taken(path: str, rounds: int) -> None:
    """Send them beside requests that take none, with half a frame, in hundreds."""
    reading, writing = os.pipe()
    try:
        for number in range(rounds):
            with connected(path) as connection:
                request = packed([0, 4, "stat", ["files", "large"]])
                match number % 5:
                    case 0:
                        _send_with(connection, request, [reading] * KEPT_DESCRIPTORS)
                        assert one_message(connection)[3]["size"] == LARGE
                        assert_served(connection)
                    case 1:
                        _send_with(connection, request, [writing] * MOST_DESCRIPTORS)
                        [(kind, _, [error])] = messages_until_end(connection)
                        assert (kind, error["code"]) == (2, "TOO_LARGE")
                    case 2:
                        _send_with(connection, request[:5], [reading] * KEPT_DESCRIPTORS)
                    case _:
                        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                            for at in range(KEPT_DESCRIPTORS + 1):
                                _send_with(connection, request[at : at + 1], [writing])
                        connection.shutdown(socket.SHUT_WR)
                        [(kind, _, [error])] = messages_until_end(connection)
                        assert (kind, error["code"]) == (2, "TOO_LARGE")
    finally:
        os.close(reading)
        os.close(writing)


def memory_that_is_cut_afterwards(path: str, rounds: int) -> None:
    """Attach memory, try to cut it while it is loaded, and go without a word."""
    size = 2 << 20
    for _ in range(rounds):
        memory = os.memfd_create("cut", os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(memory, size)
            with connected(path) as connection:
                _send_with(connection, packed([0, 1, "attach", [size]]), [memory])
                identity = one_message(connection)[3]
                for number in range(4):
                    connection.sendall(packed([0, number, "load", [identity, 0, "files", "large"]]))
                for shorter in (0, _PAGE, size - 1):
                    with contextlib.suppress(PermissionError):
                        os.ftruncate(memory, shorter)
                        raise AssertionError("the memory could be cut")
        finally:
            os.close(memory)


# -- peers that stop, go, or crawl -----------------------------------------------------------------


def readers_that_stop(path: str, rounds: int) -> None:
    """Ask for much, take a little of it, and then nothing, in many connections at a time.

    Each holds 1 MiB of payload: as many as the daemon's arena has no room for are another test.
    """
    for begin in range(0, rounds, 8):
        with connections(path, min(8, rounds - begin)) as crowd:
            for connection in crowd:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
                connection.sendall(packed([0, 1, "read", ["files", "large", 0, LARGE]]))
            for connection in crowd:
                assert connection.recv(1000)
            with connected(path) as busy:
                for number in range(300):
                    busy.sendall(packed([0, number, "stat", ["files", "large"]]))
                    assert one_message(busy)[3]["size"] == LARGE


def trees_that_nobody_reads(path: str, rounds: int) -> None:
    """Ask for pages of trees in many connections, take some of the first one, and go."""
    for begin in range(0, rounds, 8):
        with connections(path, min(8, rounds - begin)) as crowd:
            for connection in crowd:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
                for msgid in range(8):
                    request = [0, msgid, "tree", ["files", "", {"size": 8 << 20}]]
                    connection.sendall(packed(request))
            for connection in crowd[::2]:
                assert connection.recv(1000)
            with connected(path) as busy:
                for number in range(300):
                    busy.sendall(packed([0, number, "stat", ["files", "large"]]))
                    assert one_message(busy)[3]["size"] == LARGE


def peers_gone_in_mid_transfer(path: str, rounds: int) -> None:
    """Close the connection while bytes, descriptors and loads are on their way."""
    memory = os.memfd_create("gone", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, 4 << 20)
        for number in range(rounds):
            with connected(path) as connection:
                match number % 4:
                    case 0:
                        for msgid in range(4):
                            request = [0, msgid, "read", ["files", "large", 0, LARGE]]
                            connection.sendall(packed(request))
                        connection.recv(100)
                    case 1:
                        for msgid in range(8):
                            connection.sendall(packed([0, msgid, "fetch", ["files", "large"]]))
                        connection.recv(1)  # without taking the descriptor
                    case 2:
                        _send_with(connection, packed([0, 1, "attach", [4 << 20]]), [memory])
                        identity = one_message(connection)[3]
                        request = [0, 2, "load", [identity, 0, "files", "large"]]
                        connection.sendall(packed(request))
                    case 3:
                        for msgid in range(3):
                            request = [0, msgid, "tree", ["files", "", {"limit": msgid + 1}]]
                            connection.sendall(packed(request))
                        connection.recv(msgid)
                    case _:
                        connection.sendall(packed([0, 1, "walk", ["files", "", {"limit": 1}]]))
    finally:
        os.close(memory)


def slow_senders(path: str, rounds: int) -> None:
    """Send a request a byte at a time, on all connections in turn; each is answered in the end."""
    request = packed([0, 3, "stat", ["files", "large"]])
    with connections(path, rounds) as crowd:
        for at in range(len(request)):
            for connection in crowd:
                connection.sendall(request[at : at + 1])
        for connection in crowd:
            assert one_message(connection)[3]["size"] == LARGE


def many_connections(path: str, rounds: int) -> None:
    """Hold that many connections at once, each served."""
    with connections(path, rounds) as crowd:
        for connection in crowd:
            connection.sendall(packed([0, 3, "stat", ["files", "large"]]))
        for connection in crowd:
            assert one_message(connection)[3]["size"] == LARGE
