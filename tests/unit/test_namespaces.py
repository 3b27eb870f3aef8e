"""Sockets in other network namespaces, and no thread of this process left there."""

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vuserd.listen.namespaces import unix_socket_in


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """Yield the path of another network namespace."""
    if os.geteuid() != 0:
        pytest.skip("only root can make network namespaces")
    command = ["unshare", "--net", "sh", "-c", "echo there; exec cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        yield f"/proc/{process.pid}/ns/net"
        process.communicate()


def strays() -> list[str]:
    """Return the threads of this process that are in another namespace than it."""
    own = os.readlink("/proc/self/ns/net")
    found = []
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/task/{thread}/ns/net") != own:
                found.append(thread)
    return found


def test_a_socket_is_in_that_namespace_and_nothing_else_is(elsewhere: str) -> None:
    before = os.listdir("/proc/self/fd"), threading.active_count()
    name = f"\0vuserd-test-{os.getpid()}"
    with unix_socket_in(elsewhere) as there, socket.socket(socket.AF_UNIX) as here:
        assert not there.get_inheritable()
        there.bind(name)
        there.listen()
        with pytest.raises(ConnectionRefusedError):
            here.connect(name)
        with unix_socket_in(elsewhere) as beside:
            beside.connect(name)
    assert (os.listdir("/proc/self/fd"), threading.active_count()) == before
    deadline = time.monotonic() + 20
    while strays():  # a thread that was waited for may have its last steps in the kernel to go
        assert time.monotonic() < deadline


def test_what_is_no_namespace_is_refused(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        unix_socket_in(str(tmp_path / "gone"))
    for path in (tmp_path, "/proc/self/ns/uts"):
        with pytest.raises(OSError, match=r"\[Errno 22\]") as caught:
            unix_socket_in(str(path))
        assert caught.value.filename == str(path)
    assert os.listdir("/proc/self/fd") == before


def test_a_pipe_that_nobody_writes_to_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="Invalid argument"):
        unix_socket_in(str(tmp_path / "pipe"))


def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match=r"^can't start new thread$"):
        unix_socket_in("/proc/self/ns/net")
