"""The daemon's sockets: with the mode that is configured, and never fewer than before."""

import fcntl
import itertools
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.fake.bare_daemon import bare_methods
from vuserd.config.model import Account, ClientLimits, ListenConfig
from vuserd.listen import sockets as listener_module
from vuserd.listen.listeners import Listeners
from vuserd.listen.sockets import listening
from vuserd.rpc.server import Listener, Server


@pytest.fixture
def _strict_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture
async def server(nursery: trio.Nursery) -> Server:
    made = Server(bare_methods(None), ClientLimits())
    await nursery.start(made.run)
    made.open()
    return made


@pytest.fixture
async def listeners(server: Server, nursery: trio.Nursery) -> AsyncIterator[Listeners]:
    yield Listeners(server, nursery)
    nursery.cancel_scope.cancel()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("_strict_umask")
@pytest.mark.parametrize("group", [None, os.getegid()])
def test_the_umask_takes_nothing_from_the_mode(tmp_path: Path, group: int | None) -> None:
    path = tmp_path / "s"
    with listening(ListenConfig(str(path), 0o666, group)):
        assert mode_of(path) == 0o666
    assert not path.exists()


def test_a_folder_that_somebody_keeps_locked_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener_module, "_LOCK_TRIES", 2)
    held = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with caplog.at_level(logging.WARNING), listening(ListenConfig(str(tmp_path / "s"))):
            assert (tmp_path / "s").is_socket()
        assert "stays locked by another process" in caplog.text
    finally:
        os.close(held)


async def test_what_can_be_had_is_and_the_old_one_goes(
    listeners: Listeners, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new, bad = (str(tmp_path / name) for name in ("old", "new", "no-folder/s"))
    await listeners.apply([ListenConfig(old)])
    reason = f"cannot listen on {bad}: no such file or directory; choose another path with --socket"
    for _ in range(2):
        done = await listeners.apply([ListenConfig(bad), ListenConfig(new)])
    assert done == [f"socket {bad}: {reason}"]
    assert listeners.addresses == [new]
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        f"{reason}; it is tried again"
    ]
    assert [(each["state"], each.get("reason")) for each in listeners.describe()] == [
        ("listening", None),
        ("failed", reason),
    ]
    assert await listeners.apply([ListenConfig(new)]) == []
    assert listeners.problems == {}


async def test_where_none_can_be_had_none_is_closed(listeners: Listeners, tmp_path: Path) -> None:
    old, bad = (str(tmp_path / name) for name in ("old", "no-folder/s"))
    await listeners.apply([ListenConfig(old)])
    (told,) = await listeners.apply([ListenConfig(bad)])
    assert f"cannot listen on {bad}" in told
    assert listeners.addresses == [old]


async def test_a_folder_and_a_group_that_come_later(
    server: Server, nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[str]] = []
    made = Listeners(server, nursery, (), lambda: told.append(list(made.problems)))
    monkeypatch.setattr("vuserd.listen.listeners.pauses", lambda: itertools.repeat(0.01))
    there: dict[Account, int] = {}
    monkeypatch.setattr("vuserd.config.accounts.number_of", there.get)
    late, lab = tmp_path / "late", Account("group", "lab")
    folder, group = str(late / "s"), str(tmp_path / "g")
    wanted = [ListenConfig(folder), ListenConfig(group, 0o660, missing=lab)]
    done = await made.apply([*wanted, ListenConfig(str(tmp_path / "s"))])
    assert f"socket {group}: there is no group lab" in made.problems.values()
    assert len(done) == 3
    nursery.start_soon(made.run)
    late.mkdir()
    there[lab] = os.getegid()
    with trio.fail_after(10):
        while made.problems:  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.01)
    assert mode_of(Path(group)) == 0o660
    assert told[0] == [folder, group]
    assert told[-1] == []
    nursery.cancel_scope.cancel()


async def test_permissions_that_cannot_be_given(
    listeners: Listeners, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    await listeners.apply([ListenConfig(str(path))])

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(os, "chmod", refuse)
        (told,) = await listeners.apply([ListenConfig(str(path), 0o660)])
        assert told.endswith("operation not permitted")
        assert listeners.describe()[0]["state"] == "listening"
    # What was not done is done the next time.
    assert await listeners.apply([ListenConfig(str(path), 0o660)]) == [
        f"socket {path}: other permissions"
    ]
    assert mode_of(path) == 0o660


def is_reachable(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


async def test_a_socket_whose_file_was_removed_is_listened_on_again(
    listeners: Listeners, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    wanted = [ListenConfig(str(path), 0o600)]
    await listeners.apply(wanted)
    path.unlink()
    assert not is_reachable(path)
    assert await listeners.apply(wanted) == [
        f"socket {path}: listening again: its file was removed"
    ]
    assert is_reachable(path)
    assert listeners.addresses == [str(path)]
    assert await listeners.apply(wanted) == []
    path.unlink()
    path.touch()  # it is another's now: what there was goes on
    (told,) = await listeners.apply([ListenConfig(str(path), 0o640)])
    assert "it exists and is no socket" in told
    assert listeners.addresses == [str(path)]


async def test_sockets_of_the_service_manager_with_one_address(
    server: Server, tmp_path: Path
) -> None:
    """Such as one whose file was removed before the next was made."""
    path = tmp_path / "s"
    inherited = []
    for name in ("one", "two"):
        path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        sock.listen()
        sock.setblocking(False)
        inherited.append((name, sock))
    async with trio.open_nursery() as nursery:
        both = Listeners(server, nursery, inherited)
        assert both.addresses == [str(path)]
        assert is_reachable(path)
        nursery.cancel_scope.cancel()
    assert both.addresses == []
    assert [sock.fileno() for _, sock in inherited] == [-1, -1]


@pytest.mark.parametrize("inherited", [True, False])
async def test_a_server_that_never_opened_takes_nobody(tmp_path: Path, inherited: bool) -> None:
    address = str(tmp_path / "s")
    server = Server(bare_methods(None), ClientLimits())
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as client:
        sock.bind(address)
        sock.listen()
        sock.setblocking(False)
        client.connect(address)
        for _ in range(10):  # which of the tasks is told first is a matter of chance
            async with trio.open_nursery() as serving:
                await serving.start(server.run)
                listener = Listener(address, sock, inherited=inherited)
                serving.start_soon(server.accept, listener)
                await trio.testing.wait_all_tasks_blocked()
                serving.cancel_scope.cancel()
        waiting, _ = sock.accept()  # the next daemon's
        waiting.close()


async def test_a_socket_is_listened_on_once_there_is_a_thread(
    listeners: Listeners, nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vuserd.listen.listeners.pauses", lambda: itertools.repeat(0.01))
    path = str(tmp_path / "s")
    with monkeypatch.context() as context:
        context.setattr(trio.to_thread, "run_sync", without_threads)
        (told,) = await listeners.apply([ListenConfig(path)])
        nursery.start_soon(listeners.run)
        await trio.sleep(0.1)
    assert told == f"socket {path}: cannot listen on {path}: can't start new thread"
    with trio.fail_after(10):
        while listeners.problems:  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.01)
    assert listeners.addresses == [path]


async def without_threads(*_: object, **__: object) -> None:
    raise RuntimeError("can't start new thread")
