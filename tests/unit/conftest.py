"""Fixtures: a session with a fake backend; and, for clients and vuserctl, a fake daemon."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tests.fake import files
from tests.fake.backend import FakeBackend
from tests.fake.rpc_server import IMAGE, FakeDaemon, Node, directory
from tests.loops import LOOPS, Loop
from tests.unit.faces import KINDS, Connect, Taker, connecting
from vuserd.client import Client
from vuserd.client.files import transfer
from vuserd.ctl import main
from vuserd.device.session import Session

Run = Callable[..., tuple[int, str, str]]
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(autouse=True)
def sigint_as_it_was() -> Iterator[None]:
    """Undo what a program that ran here did about SIGINT, which a later test sends."""
    former = signal.getsignal(signal.SIGINT)
    yield
    if signal.getsignal(signal.SIGINT) is not former:
        signal.signal(signal.SIGINT, former)


@pytest.fixture
def backend() -> FakeBackend:
    """Return a backend with one file; many tests have one of their own in its place."""
    return FakeBackend({b"Image": files.IMAGE})


@pytest.fixture
async def session(backend: FakeBackend) -> AsyncIterator[Session]:
    """Yield the front-end's session with the backend."""
    async with backend.session() as session:
        yield session


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


@pytest.fixture
def vuserctl_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("LS_COLORS", "NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(
    fake_daemon: FakeDaemon,
    capfdbinary: pytest.CaptureFixture[bytes],
    vuserctl_environment: None,  # noqa: ARG001
) -> Run:
    """Run vuserctl in this process; return its exit code, and what it prints."""

    def run_it(*arguments: str, socket: bool = True) -> tuple[int, str, str]:
        address = ("--socket", fake_daemon.address) if socket else ()
        try:
            code = main.run([*address, *arguments])
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 99
        out, err = capfdbinary.readouterr()
        return code, os.fsdecode(out), os.fsdecode(err)

    return run_it


@pytest.fixture
def start(fake_daemon: FakeDaemon) -> Iterator[Start]:
    """Start vuserctl as a process of its own, which ends with the test."""
    code = "import sys; from vuserd.ctl.main import main; sys.exit(main())"
    # Signals end it, even if whoever started the tests ignores them.
    command = ["env", "--default-signal", sys.executable, "-c", code]
    command += ["--socket", fake_daemon.address]
    with ExitStack() as stack:

        def start_it(*arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
            process = subprocess.Popen([*command, *arguments], **options)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start_it


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty directory, under an ordinary umask."""
    working = tmp_path / "here"
    working.mkdir()
    monkeypatch.chdir(working)
    umask = os.umask(0o022)
    yield working
    os.umask(umask)
