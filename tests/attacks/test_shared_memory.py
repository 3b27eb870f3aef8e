"""Memory shared with a backend: who has which, and that nothing there is looked at twice."""

import mmap
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import trio

from protocol.fuse import Opcode
from protocol.vhost_user import Request
from tests.attacks.threats import Who, threat
from tests.fake.backend import CONFIGURE_MEM_SLOTS, MQ, REPLY_ACK, FakeBackend, File
from tests.faults.harness import FOR_EVER, entries, names, read, readlink, stat, statfs
from vuserd.client import TrioClient
from vuserd.client.errors import RemoteError
from vuserd.config.model import DaemonConfig, ExportConfig, ListenConfig
from vuserd.daemon import Daemon
from vuserd.device.session import Session
from vuserd.fs.filesystem import FileSystem

CONTENT: Final = bytes(range(256)) * 40


class FickleView:
    """Shared memory that a backend changes right after each look at it: a second one is a lie."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self.looks = 0

    def __len__(self) -> int:
        return len(self._view)

    def __setitem__(self, place: Any, value: Any) -> None:
        self._view[place] = value

    def __getitem__(self, place: Any) -> Any:
        self.looks += 1
        seen = self._view[place]
        if isinstance(seen, int):
            self._view[place] = 0xFFFF
            return seen
        copy = memoryview(bytes(seen)).cast(seen.format)
        seen[:] = memoryview(b"\xff" * seen.nbytes).cast(seen.format)
        return copy

    def release(self) -> None:
        self._view.release()


class FickleMapping:
    """A mapping that a backend changes right after each look at it."""

    def __init__(self, mapping: mmap.mmap) -> None:
        self._mapping = mapping
        self.looks = 0

    def __setitem__(self, place: slice, value: bytes) -> None:
        self._mapping[place] = value

    def __getitem__(self, place: slice) -> bytes:
        self.looks += 1
        seen = self._mapping[place]
        self._mapping[place] = b"\xff" * len(seen)
        return seen


@asynccontextmanager
async def _fickle_session(backend: FakeBackend) -> AsyncIterator[Session]:
    async with backend.session() as session:
        for buffer in session._layout.payloads._free:
            buffer.view = FickleView(buffer.view)  # type: ignore[assignment]
        yield session


@threat(
    "double-fetch",
    who=Who.BACKEND,
    against="the daemon",
    does="changes replies, directories and the used ring in shared memory between two looks",
    promise="each byte is copied out or decoded once, and only the copy is looked at",
)
async def test_nothing_that_a_backend_can_change_is_looked_at_twice() -> None:
    backend = FakeBackend(
        {
            b"Image": CONTENT,
            b"link": File(b"Image", mode=0o120777),
        }
    )
    async with _fickle_session(backend) as session:
        rings = [queue.ring for queue in session.lane.queues.values()]
        for ring in rings:
            ring._used_words = FickleView(ring._used_words)  # type: ignore[assignment]
            ring._elements = FickleView(ring._elements)  # type: ignore[assignment]
            ring._mapping = FickleMapping(ring._mapping)  # type: ignore[assignment]
        files = FileSystem(session, idle_nodes=10)
        with trio.fail_after(FOR_EVER):
            for _ in range(3):
                assert await read(files) == CONTENT
                assert (await stat(files)).size == len(CONTENT)
                assert await readlink(files) == b"Image"
                assert sorted(await names(files)) == [b"Image", b"link"]
                assert sorted(await entries(files)) == [b"Image", b"link"]
                assert (await statfs(files)).namelen
        answered = [one for one in backend.requests if one.opcode is not Opcode.INIT]
        looks = [ring._mapping.looks for ring in rings]  # type: ignore[attr-defined]
        assert sum(looks) >= len(answered) > 20
        assert not session.lost


@threat(
    "others-memory",
    who=Who.BACKEND,
    against="clients",
    does="keeps and looks at all memory that it is given",
    promise="it has its session's, and that of clients who load from its export, until they detach",
)
async def test_a_backend_is_given_the_memory_of_its_own_clients_alone(tmp_path: Path) -> None:
    backends = {name: FakeBackend({b"Image": CONTENT}) for name in ("good", "evil")}
    exports = []
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        for name, backend in backends.items():
            backend.protocol_features = MQ | REPLY_ACK | CONFIGURE_MEM_SLOTS
            path = str(tmp_path / name)
            await stack.enter_async_context(backend.listening(path))
            exports.append(ExportConfig(name, socket=path))
        config = DaemonConfig((ListenConfig(str(tmp_path / "s")),), tuple(exports))
        daemon = Daemon(lambda: config)
        with trio.fail_after(FOR_EVER):
            await nursery.start(daemon.run)
            async with TrioClient.connect(str(tmp_path / "s")) as client:
                for name in backends:
                    assert (await client.stat(name, "Image")).size == len(CONTENT)
                async with await client.attach(size=1 << 16) as memory:
                    for _ in range(2):
                        assert await memory.load("good", "Image", 0) == len(CONTENT)
                        await client.read("evil", "Image", 0, 100)
                        assert _regions(backends) == {"good": 2, "evil": 1}
                        backends["good"].die()
                        with suppress(RemoteError):
                            await client.stat("good", "Image")
                    assert await memory.load("good", "Image", 0) == len(CONTENT)
                    assert _regions(backends) == {"good": 2, "evil": 1}
                assert _regions(backends) == {"good": 1, "evil": 1}
        assert Request.ADD_MEM_REG in backends["good"].messages
        assert Request.ADD_MEM_REG not in backends["evil"].messages
        daemon.stop()


def _regions(backends: dict[str, FakeBackend]) -> dict[str, int]:
    return {name: backend.regions for name, backend in backends.items()}
