"""Fixtures for the tests of both clients and of vuserctl: a small tree behind the fake daemon."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.fake.rpc_server import IMAGE, FakeDaemon, Node, directory
from tests.unit.takers import SyncTaker, Taker, TrioTaker
from vuserd.client import transfer


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


@pytest.fixture(params=[SyncTaker, TrioTaker])
def taker(request: pytest.FixtureRequest, fake_daemon: FakeDaemon) -> Taker:
    """Take whole files, with either client."""
    made: Taker = request.param(fake_daemon.address)
    return made


@pytest.fixture(params=["reads", "lent"])
def small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have files come in many chunks, over the socket or through memory that is lent."""
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
