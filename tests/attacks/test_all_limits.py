"""A user at all its limits at once takes from nobody else, and leaves nothing when it is gone."""

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any, Final

import msgpack

from tests.attacks.daemons import connected
from tests.attacks.people import VICTIM, run_as
from tests.attacks.test_memory_budgets import answered, asked, attacking
from tests.attacks.threats import Who, threat
from tests.e2e.attacks import MOST_DESCRIPTORS, messages_until_end
from tests.running import RunningDaemon
from vuserd.client import Client

#: So few that the limits of connections, descriptors and requests follow from them.
_DESCRIPTORS: Final = 1024
#: The first of the uids that useradd(8) gives people beside their own, for containers.
_SUBORDINATE: Final = 100_000
_CONFIGURATION: Final = """
image_cache = 0
[limits]
payload = "4M"
user_payload = "4M"
user_frames = "1M"
user_kept = 60
[[listen]]
socket = "{ground}/s"
mode = "0666"
[[export]]
name = "files"
path = "{ground}/export"
backend = "{backend}"
users = [1000, 1001]
"""
_HALF: Final = b"\x94\x00\x01\xa4read\x91\xc6\x00\x07\xff\xff" + bytes(500_000)


@threat(
    "all-limits",
    who=Who.CLIENT,
    against="other users and root",
    does="has as many connections, unfinished requests, attached memories, open files, listings"
    " and requests that it does not read the replies of as it may have, all at once",
    promise="others connect and are served everything; nothing is left when it is gone",
)
def test_a_user_at_all_its_limits_leaves_room(ground: Path, rust_virtiofsd: str) -> None:
    make_files(ground)
    configuration = ground / "vuserd.toml"
    configuration.write_text(_CONFIGURATION.format(ground=ground, backend=rust_virtiofsd))
    path = ground / "s"
    with RunningDaemon(
        {}, path, None, "--config", str(configuration), configured=True, descriptors=_DESCRIPTORS
    ) as daemon:
        assert run_as(VICTIM, lambda: is_served(path)) == 0
        before = standing(daemon)
        with attacking(lambda: take_all(path)):
            taken = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
            assert before["descriptors"] + 97 < taken < _DESCRIPTORS // 2
            assert run_as(VICTIM, lambda: is_served(path)) == 0
            is_served(path)
            assert run_as(VICTIM, lambda: fills_a_message(path)) == 0
        deadline = time.monotonic() + 20
        while (now := standing(daemon)) != before:
            assert time.monotonic() < deadline, f"{before} became {now}"
            time.sleep(0.02)
    assert "user_connections is 97 instead of 4096" in daemon.log


def is_served(path: Path) -> None:
    """Use everything, as a user whom nothing of this concerns."""
    with Client.connect(str(path)) as client:
        assert client.stat("files", "3").size == 100_000
        assert len(client.readdir("files", "").entries) == 21
        assert client.read("files", "hello", 0, 100) == b"hello\n"
        with client.fetch("files", "hello") as image:
            assert bytes(image.buffer()) == b"hello\n"
        with client.attach(size=1 << 20) as memory:
            assert memory.load("files", "4", 0) == 100_000


def fills_a_message(path: Path) -> None:
    """Send all the descriptors that one message carries; they are received, and then refused."""
    with connected(path) as sock:
        descriptors = [sock.fileno()] * MOST_DESCRIPTORS
        socket.send_fds(sock, [b"\x94"], descriptors)
        [(_, _, [error])] = messages_until_end(sock)
        assert "too many descriptors came with a request" in error["message"]


def standing(daemon: RunningDaemon) -> dict[str, Any]:
    """Return what the daemon has of clients, as root sees it."""
    with Client.connect(daemon.socket) as client:
        status = client.status()
    return {
        "connections": status["connections"],
        "in_flight": status["exports"][0]["in_flight"],
        "payloads": status["exports"][0]["payloads"],
        "descriptors": len(os.listdir(f"/proc/{daemon.process.pid}/fd")),
    }


def take_all(path: Path) -> object:
    """Do as the threat says, each up to where it is refused; return what has to stay."""
    refused = {
        "memories": "BUSY",
        "files": "TOO_LARGE",
        "listings": "TOO_LARGE",
        "connections": "BUSY",
    }
    told = dict.fromkeys(refused, "")
    socks: list[socket.socket] = []
    while not told["memories"]:  # which ends the last of these connections, without any
        socks.append(connected(path))
        for _ in range(4):
            told["memories"] = told["memories"] or attach(socks[-1])
    socks.append(connected(path))
    for what, *request in (
        ("files", "open", ["files", "hello"]),
        ("listings", "walk", ["files", "", {"limit": 1}]),
    ):
        while not told[what]:
            error, _ = asked(socks[-1], *request)
            if error:
                socks.append(connected(path))
                error, _ = asked(socks[-1], *request)
                told[what] = error["code"] if error else ""
    for _ in range(4):
        socks.append(connected(path))
        with contextlib.suppress(OSError):  # it is one too many
            socks[-1].sendall(_HALF)
    readers = [connected(path) for _ in range(20)]
    while not told["connections"] and len(socks) < _DESCRIPTORS:
        socks.append(connected(path))
        error, _ = asked(socks[-1], "api_info", [])
        if error:
            told["connections"] = error["code"]
    assert told == refused
    for reader in readers:
        for _ in range(8):
            reader.sendall(msgpack.packb([0, 1, "read", ["files", "5", 0, 100_000]]))
            reader.sendall(msgpack.packb([0, 2, "fetch", ["files", "6"]]))
    return socks, readers


def attach(sock: socket.socket) -> str:
    """Attach a page; return the code where that is refused."""
    memfd = os.memfd_create("memory", os.MFD_ALLOW_SEALING)
    os.truncate(memfd, 4096)
    socket.send_fds(sock, [msgpack.packb([0, 1, "attach", [4096]])], [memfd])
    os.close(memfd)
    error, _ = answered(sock)
    return str(error["code"]) if error else ""


@threat(
    "many-users",
    who=Who.CLIENT,
    against="other users and root",
    does="connects as many users, as who has subordinate uids is, each as often as a user may",
    promise="half of the descriptors stay for root, the daemon's user and who has no connection",
)
def test_many_users_leave_room(ground: Path, rust_virtiofsd: str) -> None:
    make_files(ground)
    configuration = ground / "vuserd.toml"
    configuration.write_text(_CONFIGURATION.format(ground=ground, backend=rust_virtiofsd))
    path = ground / "s"
    with (
        RunningDaemon(
            {},
            path,
            None,
            "--config",
            str(configuration),
            configured=True,
            descriptors=_DESCRIPTORS,
        ),
        contextlib.ExitStack() as stack,
    ):
        for user in range(_SUBORDINATE, _SUBORDINATE + 12):
            stack.enter_context(attacking(lambda: connect_often(path), user))
        assert run_as(VICTIM, lambda: is_served(path)) == 0
        is_served(path)


def make_files(ground: Path) -> None:
    for number in range(20):
        (ground / "export" / f"{number}").write_bytes(b"%d" % number * 100_000)


def connect_often(path: Path) -> list[socket.socket]:
    """Connect until that is refused; a refusal is a word and the end."""
    kept = []
    for _ in range(_DESCRIPTORS):
        sock = connected(path)
        kept.append(sock)
        try:
            sock.sendall(msgpack.packb([0, 1, "api_info", []]))
            if msgpack.unpackb(sock.recv(1 << 16))[0] != 1:
                break
        except ConnectionError:  # the word came first, and is not read
            break
    return kept
