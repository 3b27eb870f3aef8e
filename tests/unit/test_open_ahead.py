"""The file that a path led to last time is opened with the LOOKUPs, and counts only if it is it."""

import contextlib
import errno
from collections.abc import AsyncIterator
from functools import partial

import pytest

from protocol.fuse import Opcode
from tests.fake.backend import Answer, FakeBackend, FuseRequest, cancelled_when
from tests.fake.files import File
from vuserd.device.session import Session
from vuserd.errors import FileError
from vuserd.fs.filesystem import FileSystem

PATH = b"board.dtb"


@contextlib.asynccontextmanager
async def known(backend: FakeBackend) -> AsyncIterator[tuple[Session, FileSystem]]:
    """Yield a file system in which the path has been opened once."""
    async with backend.session() as session:
        files = FileSystem(session, idle_nodes=10)
        async with files.opened(PATH):
            pass
        await session.lane.drained()
        backend.requests.clear()
        yield session, files
        await session.lane.drained()
        assert len(backend.named(Opcode.OPEN)) == len(backend.named(Opcode.RELEASE))
        files.close()
        await session.lane.drained()


async def test_the_first_round_has_all_lookups_and_the_open() -> None:
    backend = FakeBackend({PATH: b"old"})
    async with known(backend) as (_, files):
        async with files.opened(PATH) as file:
            assert file.size == 3
        assert [request.opcode for request in backend.requests[:2]] == [Opcode.LOOKUP, Opcode.OPEN]
        assert len(backend.named(Opcode.OPEN)) == 1


async def test_another_file_by_that_name_is_opened_instead() -> None:
    backend = FakeBackend({PATH: b"old"})
    async with known(backend) as (_, files):
        backend.files = {b"its former name": File(b"old"), PATH: File(b"newer")}
        async with files.opened(PATH) as file:
            assert file.size == 5
        guessed, opened = backend.named(Opcode.OPEN)
        assert guessed.node != opened.node == file.node.id


@pytest.mark.parametrize(
    ("now", "number"),
    [
        (None, errno.ENOENT),
        (File(mode=0o040755), errno.EISDIR),
        (File(mode=0o010644), errno.EINVAL),
    ],
)
async def test_nothing_stays_open_where_no_file_is_left(now: File | None, number: int) -> None:
    backend = FakeBackend({PATH: b"old"})
    async with known(backend) as (_, files):
        backend.files = {b"its former name": File(b"old")}
        if now is not None:
            backend.files[PATH] = now
        with pytest.raises(FileError) as refused:
            await files.open(PATH)
        assert refused.value.number == number


async def test_an_open_that_fails_is_tried_again() -> None:
    """What was tried ahead of the LOOKUPs is no answer; the one after them is."""
    backend = FakeBackend({PATH: b"old"})
    async with known(backend) as (_, files):
        backend.answer_to(Opcode.OPEN, Answer(error=errno.ESTALE))
        with pytest.raises(FileError) as refused:
            await files.open(PATH)
        assert refused.value.number == errno.ESTALE
        assert len(backend.named(Opcode.OPEN)) == 2
        backend.requests.clear()
        backend.answer = backend.serve_files


@pytest.mark.parametrize("kept", [Opcode.LOOKUP, Opcode.OPEN])
async def test_a_call_that_is_cancelled_leaves_nothing_open(kept: Opcode) -> None:
    backend = FakeBackend({PATH: b"old"})
    late: list[FuseRequest] = []

    def keep(request: FuseRequest) -> Answer | None:
        if request.opcode is kept and not late:
            late.append(request)
            return None
        return backend.serve_files(request)

    async with known(backend) as (_, files):
        backend.answer = keep
        await cancelled_when(lambda: bool(late), partial(files.open, PATH))
        answer = backend.serve_files(late[0])
        assert answer is not None
        backend.reply(late[0], answer)
