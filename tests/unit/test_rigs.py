"""Rigs whose namespaces and configuration change while a socket is being made in them."""

import os
import socket
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.fake.bare_daemon import bare_methods
from vuserd.config.model import ClientLimits, RigConfig
from vuserd.listen import rigs as rigs_module
from vuserd.listen.rigs import Rigs
from vuserd.rpc.access import Peer, Rights
from vuserd.rpc.server import Server

MANAGER = Rights(Peer(os.getpid(), 0, frozenset()))


class Made:
    """Sockets that are made as slowly as the test wants."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        #: Released by each thread that begins to make one.
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.go_on.set()

    def listen_in(self, config: RigConfig) -> socket.socket:
        del config
        self.begun.release()
        assert self.go_on.wait(10)
        made = socket.socket(socket.AF_UNIX)
        made.setblocking(False)
        made.bind("")
        made.listen()
        self.sockets.append(made)
        return made


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    made = Made()
    monkeypatch.setattr(rigs_module, "_listen_in", made.listen_in)
    return made


@pytest.fixture
async def rigs(nursery: trio.Nursery) -> Rigs:
    server = Server(bare_methods(None), ClientLimits())
    await nursery.start(server.run)
    server.open()
    return Rigs(server, nursery)


#: This process's own namespace, by a path: there without root.
HERE = RigConfig("/proc/self/ns/net", ("a",))


async def test_one_socket_is_made_whoever_looks(
    rigs: Rigs, made: Made, nursery: trio.Nursery
) -> None:
    made.go_on.clear()
    async with trio.open_nursery() as several:
        several.start_soon(rigs.apply, [HERE])
        await trio.to_thread.run_sync(made.begun.acquire)
        nursery.start_soon(rigs.run)
        [rig] = rigs._rigs.values()
        with trio.fail_after(10):
            while not rig.lock.statistics().tasks_waiting:  # noqa: ASYNC110 - nothing tells
                await trio.sleep(0.01)
        made.go_on.set()
    await trio.testing.wait_all_tasks_blocked()
    assert [rig["state"] for rig in rigs.describe(MANAGER)] == ["listening"]
    assert len(made.sockets) == 1
    nursery.cancel_scope.cancel()


async def test_a_rig_that_is_removed_meanwhile_is_not_served(
    rigs: Rigs, made: Made, nursery: trio.Nursery
) -> None:
    made.go_on.clear()
    async with trio.open_nursery() as several:
        several.start_soon(rigs.apply, [HERE])
        await trio.to_thread.run_sync(made.begun.acquire)
        several.start_soon(rigs.apply, [])
        await trio.testing.wait_all_tasks_blocked()
        made.go_on.set()
    assert rigs.describe(MANAGER) == []
    assert [made.fileno() for made in made.sockets] == [-1]
    nursery.cancel_scope.cancel()


async def test_without_inotify_it_looks_again_and_again(
    rigs: Rigs, made: Made, nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folders: set[str]) -> None:
        raise OSError(24, "no descriptors") if folders else AssertionError

    from pyroute2.inotify import inotify_fd

    monkeypatch.setattr(inotify_fd, "Inotify", lambda path: fail(path))
    assert rigs_module._inotify_on({str(tmp_path)}) is None
    monkeypatch.setattr(rigs_module, "_OFTEN", 0.01)
    namespace = tmp_path / "net"
    await rigs.apply([RigConfig(str(namespace), ("a",))])
    nursery.start_soon(rigs.run)
    assert [rig["state"] for rig in rigs.describe(MANAGER)] == ["absent"]
    namespace.symlink_to("/proc/self/ns/net")
    with trio.fail_after(10):
        while rigs.describe(MANAGER)[0]["state"] != "listening":  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.01)
    assert len(made.sockets) == 1
    nursery.cancel_scope.cancel()


async def test_a_rig_that_failed_and_went_is_absent(
    rigs: Rigs, nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: RigConfig) -> socket.socket:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(rigs_module, "_listen_in", refuse)
    namespace = tmp_path / "net"
    namespace.symlink_to("/proc/self/ns/net")
    await rigs.apply([RigConfig(str(namespace), ("a",))])
    [rig] = rigs._rigs.values()
    assert (rig.state, rig.problem) == ("failed", "operation not permitted")
    namespace.unlink()
    await rigs._look_at(rig)
    assert (rig.state, rig.problem) == ("absent", "")
    nursery.cancel_scope.cancel()


async def test_a_folder_that_comes_later_is_watched_then(
    rigs: Rigs, made: Made, nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rigs_module, "_OFTEN", 60.0)  # it has to be told
    folder = tmp_path / "more" / "netns"
    await rigs.apply([RigConfig(str(folder / "net"), ("a",))])
    [rig] = rigs.describe(MANAGER)
    assert rig["reason"] == f"there is no network namespace at {folder}/net"
    nursery.start_soon(rigs.run)
    await trio.sleep(0.2)
    folder.mkdir(parents=True)
    await trio.sleep(0.2)
    (folder / "net").symlink_to("/proc/self/ns/net")
    with trio.fail_after(10):
        while not made.sockets:  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.01)
    nursery.cancel_scope.cancel()


async def test_without_a_thread_it_looks_again_and_again(
    rigs: Rigs, made: Made, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(rigs_module, "_OFTEN", 0.01)
    with monkeypatch.context() as context:
        context.setattr(trio.to_thread, "run_sync", fail)
        await rigs.apply([HERE])
        nursery.start_soon(rigs.run)
        await trio.sleep(0.1)
        assert [rig["state"] for rig in rigs.describe(MANAGER)] == ["failed"]
    with trio.fail_after(10):
        while not made.sockets or rigs.problems:  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.01)
    nursery.cancel_scope.cancel()
