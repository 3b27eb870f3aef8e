"""Files that keep a backend waiting: what their owners can do to others who use the export."""

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest

from tests.attacks.daemons import call, connected, serving
from tests.attacks.people import MALLORY, VICTIM, As, run_as
from tests.attacks.threats import Who, threat

#: Seconds that the backend has for each reply.
_TIMEOUT: Final = 2.5
_CONFIGURATION: Final = """
timeout = 2.5
[[listen]]
socket = "{ground}/s"
mode = "0666"
[[export]]
name = "files"
path = "{ground}/export"
backend = "{backend}"
users = [1000, 1001]
"""


@contextlib.contextmanager
def _leased(folder: Path, names: Sequence[str]) -> Iterator[As]:
    """Have files of the attacker's that nobody can open, as long as the attacker lives.

    Who opens a file with a lease waits for its end, for the 45 seconds of
    /proc/sys/fs/lease-break-time at the longest.
    """
    for name in names:
        (folder / name).write_text("a kernel")
        os.chown(folder / name, MALLORY, MALLORY)
    reading, writing = os.pipe()

    def hold() -> None:
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        for name in names:
            descriptor = os.open(folder / name, os.O_RDWR)
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        os.write(writing, b"!")
        signal.pause()

    with As(MALLORY, hold) as attacker:
        os.close(writing)
        with os.fdopen(reading, "rb") as ready:
            assert ready.read(1)
        yield attacker


def _read(socket: Path, name: str) -> Any:
    """Read a file; return its bytes, or the error's code."""
    error, result = call(socket, "read", "files", f"/{name}", 0, 100)
    return result if error is None else error["code"]


def _read_from_another_backend(socket: Path, name: str) -> Any:
    """Read a file when one has come up, which takes a while on a busy machine."""
    deadline = time.monotonic() + 30
    while (got := _read(socket, name)) == "BACKEND_DOWN" and time.monotonic() < deadline:
        time.sleep(0.01)
    return got


def _within(seconds: float, since: float) -> bool:
    return time.monotonic() - since < seconds


@threat(
    "lease",
    who=Who.FILE_OWNER,
    against="all who use the export",
    does="keeps a lease on a file, so that whoever opens it hangs, and opens it again and again",
    promise="what hung the backend fails at once for a while, in which all else is served, in the"
    " same directory, too; the time doubles with each hang, and ends when a try does",
)
@pytest.mark.slow
def test_a_file_that_hangs_is_held_back(ground: Path, virtiofsd: str) -> None:
    with (
        _leased(ground / "export", ["leased"]) as attacker,
        serving(ground, virtiofsd, _CONFIGURATION),
    ):

        def attack() -> None:
            assert _read(ground / "s", "leased") == "TIMEOUT"
            # The backend that hangs is given another second to show that it is alive.
            assert _read_from_another_backend(ground / "s", "leased") == "ETIMEDOUT"
            begun = time.monotonic()
            for _ in range(50):
                assert _read(ground / "s", "leased") == "ETIMEDOUT"
            assert _within(_TIMEOUT, begun)

        def use() -> None:
            begun = time.monotonic()
            assert _read(ground / "s", "leased") == "ETIMEDOUT"
            assert _read(ground / "s", "hello") == b"hello\n"
            error, page = call(ground / "s", "readdir", "files", "/", {"attrs": True})
            assert error is None
            assert sorted(entry["name"] for entry in page["entries"]) == ["hello", "leased"]
            assert call(ground / "s", "stat", "files", "/leased")[0] is None
            assert _within(_TIMEOUT, begun)

        assert run_as(MALLORY, attack) == 0
        assert run_as(VICTIM, use) == 0
        os.kill(attacker.pid, signal.SIGKILL)  # and its leases end
        attacker.wait()
        deadline = time.monotonic() + 10 * _TIMEOUT
        while (got := _read(ground / "s", "leased")) == "ETIMEDOUT" and time.monotonic() < deadline:
            time.sleep(0.1)
        assert got == b"a kernel"


@threat(
    "leases",
    who=Who.FILE_OWNER,
    against="all who use the export",
    does="has one file after the other opened that hangs, each of them once, and does not wait for"
    " the answers",
    promise="a user whose calls hung the backend three times has none put to it for a while, which"
    " doubles; all others are served",
)
@pytest.mark.slow
def test_a_user_who_finds_ever_more_of_them_is_held_back(ground: Path, rust_virtiofsd: str) -> None:
    names = [f"leased{number}" for number in range(30)]  # three will do, where none is slow
    with (
        _leased(ground / "export", names),
        serving(ground, rust_virtiofsd, _CONFIGURATION),
    ):

        def attack() -> None:
            for name in names:
                with connected(ground / "s") as sock:
                    sock.sendall(msgpack.packb([0, 1, "read", ["files", f"/{name}", 0, 100]]))
                    time.sleep(0.1)
                if (got := _read(ground / "s", "hello")) == "BUSY":
                    return
            raise AssertionError(got)

        def use() -> None:
            begun = time.monotonic()
            assert _read(ground / "s", "hello") == b"hello\n"
            assert _within(_TIMEOUT, begun)

        assert run_as(MALLORY, attack) == 0
        assert run_as(VICTIM, use) == 0
