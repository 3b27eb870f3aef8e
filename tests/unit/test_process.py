"""A backend's process: its command line, and the one connection that it has."""

import os
import shutil
import socket
from pathlib import Path

import pytest
import trio

from vuserd.backend.find import BackendKind, Program
from vuserd.backend.process import (
    BackendOptions,
    command_line,
    connected_listener,
    sandboxes,
    start_backend,
)
from vuserd.errors import BackendDown

RUST = Program("virtiofsd", BackendKind.RUST, "1.13.2")
C = Program("virtiofsd", BackendKind.C, "7.2.22")


def test_options_are_said_in_each_backends_own_words() -> None:
    options = BackendOptions(cache="never", thread_pool=3, xattr=True)
    rust = command_line(RUST, "/srv/a,b", 7, "namespace", options)
    assert {"--shared-dir=/srv/a,b", "--cache=never", "--xattr", "--readonly"} <= set(rust)
    [c] = [word for word in command_line(C, "/srv", 7, "chroot", options) if "source=" in word]
    assert {"source=/srv", "sandbox=chroot", "cache=none", "xattr"} <= set(c.split(","))
    assert "--thread-pool-size=3" in rust


def test_what_splits_options_is_quoted_for_the_c_one() -> None:
    (options,) = command_line(C, "/srv/a,b\\101", 7, "chroot", BackendOptions())[-1:]
    assert options.startswith(r"source=/srv/a\,b\\101,sandbox=chroot,")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (BackendOptions(cache="metadata"), "neither cache=metadata nor"),
        (BackendOptions(inode_file_handles="prefer"), "nor inode file handles"),
    ],
)
def test_what_the_c_one_cannot_is_refused(options: BackendOptions, words: str) -> None:
    with pytest.raises(BackendDown, match=words):
        command_line(C, "/srv", 7, "chroot", options)


@pytest.mark.parametrize(
    ("kind", "uid", "has_landlock", "modes"),
    [
        (BackendKind.RUST, 0, True, ("namespace", "chroot")),
        (BackendKind.C, 0, True, ("namespace", "chroot")),
        (BackendKind.RUST, 1000, True, ("landlock", "namespace", "none")),
        (BackendKind.RUST, 1000, False, ("namespace", "none")),
        (BackendKind.C, 1000, True, ("namespace",)),  # it has no other
    ],
)
def test_the_best_sandbox_comes_first(
    monkeypatch: pytest.MonkeyPatch,
    kind: BackendKind,
    uid: int,
    modes: tuple[str, ...],
    *,
    has_landlock: bool,
) -> None:
    monkeypatch.setattr("vuserd.backend.landlock.is_available", lambda: has_landlock)
    assert sandboxes(kind, uid) == modes


def test_landlock_is_around_a_backend_without_a_sandbox() -> None:
    line = command_line(RUST, "/srv", 7, "landlock", BackendOptions())
    inner = command_line(RUST, "/srv", 7, "none", BackendOptions())
    assert line[-len(inner) - 1 :] == ["/srv", *inner]
    with pytest.raises(BackendDown, match="a sandbox of its own"):
        command_line(C, "/srv", 7, "landlock", BackendOptions())


async def test_there_is_one_connection_in_its_life() -> None:
    program = Program(shutil.which("cat") or "/bin/cat", BackendKind.RUST, "1")
    async with start_backend(program, "/", "none", BackendOptions(), "files") as backend:
        async with await backend.connect():
            pass
        with pytest.raises(BackendDown, match="one connection in its life"):
            await backend.connect()
        await backend.wait()
    assert "ended with status 1" in backend.last_words()  # cat knows none of the options
    assert "unrecognized option" in backend.last_words()


@pytest.mark.parametrize(
    ("number", "name"), [(9, "SIGKILL"), (34, "SIGRTMIN"), (35, "signal 35"), (64, "SIGRTMAX")]
)
async def test_the_signal_that_ended_it_is_told(tmp_path: Path, number: int, name: str) -> None:
    """Any there is: what no name is known of ended the daemon, too."""
    script = tmp_path / "virtiofsd"
    script.write_text(f"#!/bin/sh\nkill -{number} $$\n")
    script.chmod(0o755)
    program = Program(str(script), BackendKind.RUST, "1")
    async with start_backend(program, "/", "chroot", BackendOptions(), "files") as backend:
        await backend.wait()
        assert backend.last_words() == f"virtiofsd was ended by {name}"


async def test_one_that_is_refused_leaves_nothing_open() -> None:
    """Its sockets are made before its command line is."""
    options = BackendOptions(cache="metadata")
    with pytest.raises(BackendDown, match="cache=metadata"):
        async with start_backend(C, "/srv", "chroot", options, "files"):
            pytest.fail("it was started")


async def test_one_without_a_thread_to_start_it_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", fail)
    with pytest.raises(BackendDown, match="cannot be started: can't start new thread"):
        async with start_backend(C, "/srv", "chroot", BackendOptions(), "files"):
            pytest.fail("it was started")


def connect(address: str | bytes) -> socket.socket:
    """Connect to a unix socket at once, or raise."""
    intruder = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    intruder.setblocking(False)
    try:
        intruder.connect(address)
    except OSError:
        intruder.close()
        raise
    return intruder


@pytest.mark.parametrize("temporary", ["/nowhere/at/all", "/proc", "/" + "long/" * 40])
def test_a_backends_socket_needs_no_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, temporary: str
) -> None:
    monkeypatch.setenv("TMPDIR", temporary)
    listener, connection = connected_listener()
    with listener, connection:
        accepted, _ = listener.accept()
        with accepted:
            connection.sendall(b"hello")
            assert accepted.recv(16) == b"hello"
    assert not os.path.exists(temporary) or temporary == "/proc"


def test_nobody_else_can_connect_to_a_backend() -> None:
    """Its queue has one place, and that is taken: who knows the name is not let in."""
    listener, connection = connected_listener()
    with listener, connection:
        assert listener.getsockname()[:1] == b"\0"
        with pytest.raises(BlockingIOError):
            connect(listener.getsockname())


class Raced(socket.socket):
    """A socket that others connect to the moment that it listens, so often as ``races`` says."""

    races = 0
    intruders: list[socket.socket]

    def listen(self, backlog: int = 0, /) -> None:
        super().listen(backlog)
        if Raced.races:
            Raced.races -= 1
            Raced.intruders.append(connect(self.getsockname()))


@pytest.mark.parametrize(("races", "succeeds"), [(1, True), (7, True), (8, False)])
def test_who_connects_first_has_a_socket_that_no_backend_gets(
    monkeypatch: pytest.MonkeyPatch, races: int, *, succeeds: bool
) -> None:
    Raced.races, Raced.intruders = races, []
    monkeypatch.setattr("vuserd.backend.process.socket.socket", Raced)
    try:
        if not succeeds:
            with pytest.raises(BlockingIOError):
                connected_listener()
            return
        listener, connection = connected_listener()
        with listener, connection:
            accepted, _ = listener.accept()
            with accepted:
                connection.sendall(b"ours")
                assert accepted.recv(16) == b"ours"
    finally:
        assert len(Raced.intruders) == races
        for intruder in Raced.intruders:
            with intruder, pytest.raises(ConnectionResetError):
                intruder.recv(1)
