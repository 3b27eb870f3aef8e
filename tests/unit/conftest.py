"""Fixtures for the tests of the clients and of vuserctl: a small tree behind the fake daemon."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.fake.rpc_server import IMAGE, FakeDaemon, Node, directory
from tests.loops import LOOPS, Loop
from tests.unit.faces import KINDS, Connect, Taker, connecting
from vuserd.client import Client
from vuserd.client.files import transfer


@pytest.fixture
def fake_daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    root = directory(
        image=Node(content=IMAGE),
        empty=Node(),
        boot=directory(a=Node(), b=Node()),
        link=Node("symlink", b"/image"),
        pipe=Node("fifo"),
    )
    root.children[b"\xff"] = Node(content=b"odd")
    root.children[b"odd"] = Node("symlink", b"\xff")
    with FakeDaemon(str(tmp_path / "d.sock"), root) as served:
        yield served


@pytest.fixture(params=KINDS)
def connect(request: pytest.FixtureRequest) -> Connect:
    """Connect clients of each kind."""
    return connecting(request.param)


@pytest.fixture
def client(connect: Connect, fake_daemon: FakeDaemon) -> Iterator[Client]:
    """Use a client of each kind."""
    with connect(fake_daemon.address) as connected:
        yield connected


@pytest.fixture(params=[*LOOPS.values()], ids=[*LOOPS])
def loop(request: pytest.FixtureRequest) -> Loop:
    """Use each of the libraries that have an asynchronous client."""
    found: Loop = request.param
    return found


@pytest.fixture
def taker(connect: Connect, fake_daemon: FakeDaemon) -> Taker:
    """Take whole files, with each kind of client."""
    return Taker(connect, fake_daemon.address)


@pytest.fixture(params=["reads", "lent"])
def small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make files come in many chunks, over the socket or through lent memory."""
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 10_000)
    monkeypatch.setattr(transfer, "LENT_CHUNK_BYTES", 8192)
    if request.param == "lent":
        monkeypatch.setattr(transfer, "LENT_LEAST", 1)


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[BinaryIO]:
    """Yield a file to download to, which holds something else already."""
    with open(tmp_path / "copy", "w+b") as opened:
        opened.write(b"older and longer " * 30_000)
        opened.seek(0)
        yield opened
