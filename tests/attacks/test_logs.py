"""What clients can make the daemon write into its log, again and again."""

import fcntl
import socket
import struct
import termios
from functools import partial
from pathlib import Path
from typing import Final

import msgpack

from tests.attacks.daemons import connected, serving
from tests.attacks.false_daemons import wait_for
from tests.attacks.people import MALLORY, run_as
from tests.attacks.threats import Who, threat

_TIMES: Final = 30
#: The first connections of a user have room for all that these ask for.
_WIDE: Final = 64
#: More than the kernel's answer has room for.
_GROUPS: Final = range(3000, 3400)

_ASKED: Final = b"".join(msgpack.packb([0, number, "api_info", []]) for number in range(64))
_REFUSED: Final = msgpack.packb([0, 1, "stat", ["files", "hello"]])

#: Bytes that lie unread when the daemon waits for the client to read.
_MUCH: Final = 100_000


def _has_much(sock: socket.socket) -> bool:
    [unread] = struct.unpack("=i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))
    return bool(unread >= _MUCH)


@threat(
    "lines of the log",
    who=Who.STRANGER,
    against="the log",
    does="goes with replies unread, asks for what it may not see, and is in too many groups, again"
    " and again",
    promise="each of these has a line a minute for each user, with a count, and few of all users",
)
def test_a_client_has_few_lines(ground: Path, rust_virtiofsd: str) -> None:
    path = ground / "s"

    def attack() -> None:
        idle = [connected(path) for _ in range(_WIDE)]
        for _ in range(_TIMES):
            with connected(path) as sock:
                sock.sendall(_REFUSED)
                assert sock.recv(4096)
                sock.sendall(_ASKED)
                wait_for(partial(_has_much, sock))  # there is no room for the rest
        for each in idle:
            each.close()

    with serving(ground, rust_virtiofsd) as daemon:
        assert run_as(MALLORY, attack, groups=[*_GROUPS]) == 0
    lines = daemon.log.splitlines()
    for line in ("was dropped", "refused to", "do not count"):
        assert sum(line in each for each in lines) == 1, lines
