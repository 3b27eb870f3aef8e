"""A changed configuration: checked whole, applied by difference, and refused where it is wrong."""

import contextlib
import os
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import RunningDaemon, wait_until
from vuserd.client.calls import Call
from vuserd.client.errors import ConnectionLost, RemoteError
from vuserd.client.sync_client import Client


class Configured:
    """A daemon and the file that it is configured by."""

    def __init__(self, folder: Path, backend: str) -> None:
        self.folder = folder
        self.path = folder / "vuserd.toml"
        self.socket = folder / "s"
        self.listeners = [self.socket]
        self.top = f'backend = "{backend}"\nimage_cache = "1M"\n'
        self.exports: dict[str, str] = {}

    def export(self, name: str, folder: str | None = None, more: str = "") -> None:
        path = self.folder / (folder or name)
        if not path.exists():
            path.mkdir()
            (path / "file").write_text(path.name)
        self.exports[name] = f'[[export]]\nname = "{name}"\npath = "{path}"\n{more}\n'

    def write(self, more: str = "") -> None:
        listening = "".join(f'[[listen]]\nsocket = "{path}"\n' for path in self.listeners)
        self.path.write_text(self.top + listening + "".join(self.exports.values()) + more)


def reload(client: Client) -> list[str]:
    return client.call(Call("reload", [None], list))


def content(client: Client, export: str) -> bytes:
    return bytes(client.read(export, "file", 0, 10))


def backends(client: Client) -> dict[str, tuple[int | None, int | None]]:
    """Return pid and generation of each export's backend."""
    return {
        export.name: (export.backend.pid, export.backend.generation)
        for export in client.exports()
        if export.backend is not None
    }


@pytest.fixture
def configured(tmp_path: Path, rust_virtiofsd: str) -> Configured:
    made = Configured(tmp_path, rust_virtiofsd)
    made.export("one")
    made.export("two")
    made.write()
    return made


@contextlib.contextmanager
def serving(configured: Configured) -> Iterator[tuple[RunningDaemon, Client]]:
    arguments = ["--config", str(configured.path)]
    with (
        RunningDaemon({}, configured.socket, None, *arguments, configured=True) as daemon,
        Client.connect(daemon.socket) as client,
    ):
        yield daemon, client


def test_what_did_not_change_is_not_touched(configured: Configured) -> None:
    with serving(configured) as (_, client):
        before = backends(client)
        assert reload(client) == []
        configured.export("three")
        configured.write()
        assert reload(client) == ["export three: added, up"]
        assert [export.name for export in client.exports()] == ["one", "two", "three"]
        assert content(client, "three") == b"three"
        del configured.exports["two"]
        configured.write()
        assert reload(client) == ["export two: removed"]
        with pytest.raises(RemoteError, match="UNKNOWN_EXPORT"):
            client.stat("two", "/")
        assert backends(client)["one"] == before["one"]


def test_another_directory_another_backend_other_rights(configured: Configured) -> None:
    with serving(configured) as (_, client):
        before = backends(client)
        configured.export("one", "elsewhere")
        configured.write()
        assert reload(client) == [f"export one: now {configured.folder}/elsewhere, up"]
        assert content(client, "one") == b"elsewhere"
        configured.export("two", more="thread_pool = 2\nidle_nodes = 100")
        configured.write()
        assert reload(client) == ["export two: backend replaced"]
        pid, generation = backends(client)["two"]
        assert (pid == before["two"][0], generation) == (False, 2)
        assert b"--thread-pool-size=2" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        configured.export("two", more='thread_pool = 2\nidle_nodes = 100\nusers = ["*"]')
        configured.write()
        assert reload(client) == ["export two: other rights"]
        assert backends(client)["two"] == (pid, 2)


def test_no_call_is_lost_while_backends_are_replaced(configured: Configured) -> None:
    faults: list[BaseException] = []
    calls = 0
    over = threading.Event()

    def read_on() -> None:
        nonlocal calls
        try:
            with Client.connect(str(configured.socket)) as client:
                while not over.is_set():
                    assert content(client, "one") == b"one"
                    calls += 1
        except BaseException as fault:  # told by the test
            faults.append(fault)

    with serving(configured) as (daemon, client):
        readers = [threading.Thread(target=read_on) for _ in range(4)]
        for reader in readers:
            reader.start()
        for threads in range(1, 6):
            configured.export("one", more=f"thread_pool = {threads}")
            configured.write()
            seen = calls
            assert reload(client) == ["export one: backend replaced"]
            while calls == seen and not faults:
                client.stat("two", "/")
        over.set()
        for reader in readers:
            reader.join()
    assert faults == []
    assert "export one goes on with all that it has open" in daemon.log


def test_a_wrong_configuration_changes_nothing(configured: Configured) -> None:
    with serving(configured) as (daemon, client):
        before = backends(client)
        del configured.exports["two"]
        configured.export("three")
        configured.write('[[export]]\nname = "three"\npath = "no/such/place"\nspeed = 3\n')
        with pytest.raises(RemoteError) as refused:
            reload(client)
        told = refused.value.message.splitlines()
        assert len(told) == 3
        assert all(f"{configured.path}:" in line for line in told)
        assert {"three", "no/such/place", "speed"} == {
            word
            for word in ("three", "no/such/place", "speed")
            if any(word in line for line in told)
        }
        assert backends(client) == before
        os.kill(daemon.process.pid, signal.SIGHUP)
        wait_until(lambda: "speed" in log_of(daemon))
        assert backends(client) == before
    assert "no/such/place" in daemon.log


def test_a_backend_that_cannot_be_had_leaves_the_old_one(configured: Configured) -> None:
    with serving(configured) as (_, client):
        before = backends(client)
        broken = configured.folder / "virtiofsd"
        broken.write_text("#!/bin/sh\n[ $1 = --version ] && exec echo virtiofsd 1.0\nexit 3\n")
        broken.chmod(0o755)
        configured.export("one", more=f'backend = "{broken}"')
        configured.write()
        (told,) = reload(client)
        assert told.startswith("export one: kept with the backend it has: ")
        assert backends(client) == before
        assert content(client, "one") == b"one"


def test_a_signal_does_the_same(configured: Configured) -> None:
    with serving(configured) as (daemon, client):
        configured.export("three")
        configured.write()
        os.kill(daemon.process.pid, signal.SIGHUP)
        wait_until(lambda: "three" in [export.name for export in client.exports()])
    assert "reloaded: export three: added, up" in daemon.log


def test_sockets_come_and_go(configured: Configured) -> None:
    with serving(configured) as (_, client):
        other = configured.folder / "other"
        configured.listeners.append(other)
        configured.write()
        assert reload(client) == [f"socket {other}: listening"]
        with Client.connect(str(other), reconnect=0) as guest:
            assert content(guest, "one") == b"one"
            configured.listeners.remove(other)
            configured.write("[limits]\nrequests = 8\n")
            assert reload(client) == [
                "limits: changed, for users who connect from now on",
                f"socket {other}: closed",
            ]
            with pytest.raises(ConnectionLost):
                guest.stat("one", "/")
        assert not other.exists()
        assert content(client, "two") == b"two"


def test_permissions_of_a_socket(configured: Configured) -> None:
    def mode() -> tuple[int, int]:
        status = configured.socket.stat()
        return stat.S_IMODE(status.st_mode), status.st_gid

    with serving(configured) as (_, client):
        assert mode() == (0o600, os.getegid())
        configured.listeners.clear()
        configured.write(f'[[listen]]\nsocket = "{configured.socket}"\nmode = "0666"\n')
        assert reload(client) == [f"socket {configured.socket}: other permissions"]
        assert mode() == (0o666, os.getegid())
        if os.geteuid() == 0:
            more = 'mode = "0660"\ngroup = 61007\n'
            configured.write(f'[[listen]]\nsocket = "{configured.socket}"\n{more}')
            reload(client)
            assert mode() == (0o660, 61007)
        listeners = client.status()["listeners"]
        assert [each["socket"] for each in listeners] == [str(configured.socket)]


def test_a_failed_export_is_started_again(configured: Configured) -> None:
    missing = configured.folder / "virtiofsd"
    configured.export("one", more=f'backend = "{missing}"')
    missing.write_text("#!/bin/sh\nexit 3\n")
    missing.chmod(0o755)
    configured.write()
    with serving(configured) as (_, client):
        states = {export.name: export.state for export in client.exports()}
        assert states == {"one": "failed", "two": "up"}
        missing.unlink()
        missing.symlink_to(configured.top.split('"')[1])
        assert client.call(Call("reload", ["one"], list)) == ["export one: started again"]
        assert content(client, "one") == b"one"


def log_of(daemon: RunningDaemon) -> str:
    return Path(f"{daemon.socket}.log").read_text()
