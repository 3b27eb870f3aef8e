"""The configured limits of one connection and one user hold, and others go on meanwhile."""

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from tests.e2e.attacks import connected, messages_until_end, one_message, packed
from tests.e2e.visiting import User, Visitor
from tests.running import RunningDaemon
from vuserd.client.sync_client import Client


@contextlib.contextmanager
def serving(folder: Path, backend: str, limits: str) -> Iterator[RunningDaemon]:
    """Serve ``folder`` to all users."""
    config = folder / "vuserd.toml"
    config.write_text(
        f'backend = "{backend}"\n[limits]\n{limits}\n'
        f'[[export]]\nname = "files"\npath = "{folder}"\nusers = ["*"]\n'
    )
    with (
        tempfile.TemporaryDirectory() as public,  # pytest's own folders are for one user alone
        RunningDaemon({}, Path(public) / "s", None, "--config", str(config)) as daemon,
    ):
        os.chmod(public, 0o755)
        os.chmod(daemon.socket, 0o666)
        yield daemon


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
def test_one_user_s_connections_are_counted(tmp_path: Path, rust_virtiofsd: str) -> None:
    with (
        serving(tmp_path, rust_virtiofsd, "user_connections = 3") as daemon,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(Client.connect(daemon.socket))]
        while len(clients[0].status()["clients"]) > 1:
            pass  # until it is noticed that whoever looked whether the daemon is there has gone
        clients += [stack.enter_context(Client.connect(daemon.socket)) for _ in range(2)]
        for client in clients:
            assert client.stat("files", "/").type == "dir"
        with connected(daemon.socket) as refused:
            [[kind, method, [error]]] = messages_until_end(refused)
        assert (kind, method, error["code"], error["limit"]) == (2, "error", "BUSY", 3)
        with Visitor(User(61_001, 61_001), daemon.socket) as other:
            assert other.ask("exports") == ("ok", ["files"])
        clients[0].close()
        while len(clients[1].status()["clients"]) > 2:
            pass  # until it is noticed that one has gone
        with Client.connect(daemon.socket) as again:
            assert again.stat("files", "/").type == "dir"


def test_a_user_s_payload_is_shared_by_its_connections(tmp_path: Path, rust_virtiofsd: str) -> None:
    (tmp_path / "large").write_bytes(bytes(8 << 20))
    limits = 'payload = "8M"\nuser_payload = "8M"'
    with serving(tmp_path, rust_virtiofsd, limits) as daemon, connected(daemon.socket) as greedy:
        greedy.sendall(packed([0, 1, "read", ["files", "large", 0, 8 << 20]]))
        greedy.recv(1, socket.MSG_PEEK)  # its answer has begun
        with connected(daemon.socket) as second:
            second.sendall(packed([0, 2, "read", ["files", "large", 0, 1]]))
            second.sendall(packed([0, 3, "stat", ["files", "large"]]))
            assert one_message(second)[1] == 3  # whose reply is no payload
            answer = one_message(greedy)  # which gives back what it used
            assert (answer[1], len(answer[3])) == (1, 8 << 20)
            assert one_message(second)[1:] == [2, None, b"\0"]


def test_a_long_frame_is_refused(tmp_path: Path, rust_virtiofsd: str) -> None:
    with (
        serving(tmp_path, rust_virtiofsd, 'frame = "4K"') as daemon,
        connected(daemon.socket) as client,
    ):
        client.sendall(msgpack.packb([0, 1, "stat", ["files", "x" * 5000]]))
        [[_, _, [error]]] = messages_until_end(client)
        assert error["code"] == "TOO_LARGE"
