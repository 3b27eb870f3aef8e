"""The front-end under test, the calls that are made on it, and how it is known to be well."""

import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, TypeAlias

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from memory.arena import BufferState
from protocol import fuse
from tests.delivered import read_delivered
from tests.fake.backend import FakeBackend
from tests.fake.files import Answer, FuseRequest
from tests.listings import page
from vuserd.config.model import ExportConfig
from vuserd.device.layout import IN_FLIGHT
from vuserd.device.session import Session
from vuserd.errors import BackendBroken, BackendError, ConfigurationError
from vuserd.exports.export import Export
from vuserd.exports.states import ExportState
from vuserd.fs.filesystem import FileSystem

CONTENT: Final = bytes(range(256)) * 16
#: In a file that the call under test does not ask for.
SECRET: Final = b"secret! " * 512

#: Seconds, longer than every deadline of a session together.
FOR_EVER: Final = 100.0

Call: TypeAlias = Callable[[FileSystem], Awaitable[object]]
Lie: TypeAlias = Answer | Callable[[FakeBackend, FuseRequest], Answer | None] | None


async def until(is_so: Callable[[], object]) -> None:
    """Wait until something is so that another task or process brings about."""
    with trio.fail_after(FOR_EVER):
        while not is_so():  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.01)


class Front(NamedTuple):
    """A session and a file system on it, and the backend that they are up against."""

    backend: FakeBackend
    session: Session
    files: FileSystem

    def tell(self, opcode: fuse.Opcode, lie: Lie) -> None:
        """Make the backend answer one kind of request with this."""
        if lie is None or isinstance(lie, Answer):
            self.backend.answer_to(opcode, lie)
        else:
            function = lie
            self.backend.answer_to(opcode, lambda request: function(self.backend, request))

    async def breaks(
        self, call: Call, words: str, kind: type[BackendError] = BackendBroken
    ) -> None:
        """Make a call and see the session end with this cause, for this call and the next."""
        with trio.fail_after(FOR_EVER):
            with pytest.raises(kind, match=words) as raised:
                await call(self.files)
            assert raised.value.code == "BACKEND_DOWN"
            reason = await self.session.wait_lost()
        assert isinstance(reason, kind)
        assert re.search(words, str(reason))
        await self.is_over()

    async def is_over(self) -> None:
        """Check that a lost session serves no call and that no caller owns a buffer of it."""
        assert self.session.lost
        await wait_all_tasks_blocked()  # it may have been asked for something more by then
        sent = len(self.backend.requests)
        with trio.fail_after(FOR_EVER), pytest.raises(BackendError):
            await self.files.statfs()
        self.files.close()
        await wait_all_tasks_blocked()
        assert len(self.backend.requests) == sent
        assert self.session.lane.in_flight == 0

    async def owes_nothing(self) -> None:
        """Check that a session that goes on has given everything back."""
        assert not self.session.lost
        self.files.close()
        with trio.fail_after(FOR_EVER):
            await self.session.lane.drained()
        await wait_all_tasks_blocked()
        assert not +self.backend.lookups
        assert self.backend.open_handles == set()
        assert self.session.payloads.taken == 0
        assert self.session.lane.in_flight == 0
        free = sum(queue.ring.free for queue in self.session.lane.queues.values())
        assert free == sum(IN_FLIGHT.values())

    async def serves(self) -> None:
        """Check that the session is as good as new."""
        self.backend.answer = self.backend.serve_files
        with trio.fail_after(FOR_EVER):
            assert await read(self.files) == CONTENT
        await self.owes_nothing()

    def quarantined(self) -> int:
        """Count the buffers that the device has though no caller waits for them."""
        slots = self.session.lane._slots.outstanding()
        targets = [slot.asked[1] for slot in slots if slot.asked]
        return sum(getattr(one, "state", None) is BufferState.QUARANTINED for one in targets)


# --- calls ----------------------------------------------------------------------------------------


async def stat(files: FileSystem) -> fuse.Attributes:
    return await files.stat(b"Image", follow=True)


async def stat_root(files: FileSystem) -> fuse.Attributes:
    return await files.stat(b"", follow=True)


async def read(files: FileSystem, name: bytes = b"Image") -> bytes:
    content = await read_delivered(files, name, 0, 1 << 20)
    try:
        return b"".join(content.views())
    finally:
        content.give_back()


async def names(files: FileSystem) -> list[bytes]:
    return [entry.name for entry in await page(files, limit=100)]


async def entries(files: FileSystem) -> list[bytes]:
    return [entry.name for entry in await page(files, attributes=True, limit=100)]


async def readlink(files: FileSystem) -> bytes:
    return await files.readlink(b"link")


async def statfs(files: FileSystem) -> fuse.FileSystemStatistics:
    return await files.statfs()


# --- bytes to spoil -------------------------------------------------------------------------------

#: Where things stand in struct fuse_entry_out and fuse_attr_out.
ENTRY_NODE: Final = 0
ENTRY_ATTRIBUTES: Final = 40
ATTR_ATTRIBUTES: Final = 16
INO: Final = 0
SIZE: Final = 8
ATIME: Final = 24
NANOSECONDS: Final = 48
MODE: Final = 60
BLOCK_SIZE: Final = 80


def spoiled(body: bytes, offset: int, layout: str, value: int) -> bytes:
    """Return ``body`` with one field replaced."""
    copy = bytearray(body)
    struct.pack_into(layout, copy, offset, value)
    return bytes(copy)


def spoil(offset: int, layout: str, value: int) -> Lie:
    """Answer as the files do, with one field replaced."""

    def answer(backend: FakeBackend, request: FuseRequest) -> Answer | None:
        honest = backend.serve_files(request)
        assert honest is not None
        return honest._replace(body=spoiled(honest.body, offset, layout, value))

    return answer


# --- an export over several sessions --------------------------------------------------------------


@asynccontextmanager
async def exported(backend: FakeBackend, path: str, **options: object) -> AsyncIterator[Export]:
    """Run an export on a backend that comes back on its socket whenever its session is over."""
    config = ExportConfig("files", socket=path, **options)  # type: ignore[arg-type]
    export = Export(config, ConfigurationError("not asked for"))
    async with backend.listening(path), trio.open_nursery() as nursery:
        nursery.start_soon(export.run)
        with trio.fail_after(FOR_EVER):
            await export.settled.wait()
        try:
            yield export
        finally:
            export.stop()
    assert export.state in (ExportState.STOPPED, ExportState.FAILED)
