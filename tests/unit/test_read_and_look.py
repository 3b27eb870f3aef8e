"""A short read and the look that shows it to be one version share a round where that is sound."""

import pytest
import trio

from protocol.fuse import Opcode
from tests.delivered import read_delivered
from tests.fake.backend import Answer, FakeBackend, FuseRequest
from tests.fake.files import File
from vuserd.errors import CallError
from vuserd.fs.filesystem import FileSystem

PATH = b"board.dtb"


async def read(backend: FakeBackend, *, in_order: bool) -> bytes:
    async with backend.session() as session:
        session.lane.answers_in_order = in_order
        files = FileSystem(session, idle_nodes=10)
        content = await read_delivered(files, PATH, 0, 100)
        try:
            return b"".join(content.views())
        finally:
            content.give_back()


def looks(backend: FakeBackend) -> list[Opcode]:
    return [one.opcode for one in backend.requests if one.opcode in (Opcode.READ, Opcode.GETATTR)]


@pytest.mark.parametrize("in_order", [True, False])
async def test_a_file_is_read_and_looked_at_once(in_order: bool) -> None:
    backend = FakeBackend({PATH: b"content"})
    assert await read(backend, in_order=in_order) == b"content"
    assert looks(backend) == [Opcode.READ, Opcode.GETATTR]


async def test_they_come_in_one_batch() -> None:
    backend = FakeBackend({PATH: b"content"})
    unanswered: list[FuseRequest] = []

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.READ:
            unanswered.append(request)
            return None
        if request.opcode is Opcode.GETATTR and unanswered:
            read = unanswered.pop()
            honest = backend.serve_files(read)
            assert honest is not None
            backend.reply(read, honest)
        return backend.serve_files(request)

    backend.answer = answer
    with trio.fail_after(5):
        assert await read(backend, in_order=True) == b"content"
    assert looks(backend) == [Opcode.READ, Opcode.GETATTR]


async def test_a_look_that_came_first_is_not_believed() -> None:
    backend = FakeBackend({PATH: b"content"})
    unanswered: list[FuseRequest] = []

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.READ:
            unanswered.append(request)
            return None
        if request.opcode is Opcode.GETATTR and unanswered:
            honest = backend.serve_files(request)
            assert honest is not None
            backend.reply(request, honest)
            read = unanswered.pop()
            honest = backend.serve_files(read)
            assert honest is not None
            backend.reply(read, honest)
            return None
        return backend.serve_files(request)

    backend.answer = answer
    assert await read(backend, in_order=True) == b"content"
    assert looks(backend) == [Opcode.READ, Opcode.GETATTR, Opcode.GETATTR]


async def test_a_look_that_failed_is_repeated() -> None:
    backend = FakeBackend({PATH: b"content"})
    failed: list[FuseRequest] = []

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.GETATTR and not failed:
            failed.append(request)
            return Answer(error=5)
        return backend.serve_files(request)

    backend.answer = answer
    assert await read(backend, in_order=True) == b"content"


async def test_a_change_is_noticed() -> None:
    backend = FakeBackend({PATH: b"first"})

    def answer(request: FuseRequest) -> Answer | None:
        honest = backend.serve_files(request)
        if request.opcode is Opcode.READ:
            before = backend.files[PATH]
            backend.files[PATH] = File(before.content, ctime=before.ctime + 1)
        return honest

    backend.answer = answer
    with pytest.raises(CallError, match="changed"):
        await read(backend, in_order=True)


async def test_a_backend_that_has_threads_by_now_is_looked_at_again() -> None:
    backend = FakeBackend({PATH: b"content"})
    async with backend.session() as session:
        session.lane.answers_in_order = True

        def answer(request: FuseRequest) -> Answer | None:
            if request.opcode is Opcode.READ:
                session.lane.answers_in_order = False
            return backend.serve_files(request)

        backend.answer = answer
        content = await read_delivered(FileSystem(session, idle_nodes=10), PATH, 0, 100)
        content.give_back()
    assert looks(backend) == [Opcode.READ, Opcode.GETATTR, Opcode.GETATTR]
