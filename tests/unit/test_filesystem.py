"""Operations on a fake backend: no lookup count is kept, and no delivery mixes two versions."""

import stat
import time

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.fuse import Opcode
from tests.attacks.threats import Who, threat
from tests.delivered import read_delivered
from tests.fake.backend import ROOT, Answer, FakeBackend, File, FuseRequest
from tests.fake.files import coarse_now
from tests.listings import page
from vuserd.delivery.inline import FileContent, read_inline
from vuserd.device.session import Session
from vuserd.errors import CallError, FileError
from vuserd.fs.filesystem import FileSystem

CONTENT = bytes(range(256)) * 8192  # 2 MiB: three READs of 1 MiB show that it ends


@pytest.fixture
def backend() -> FakeBackend:
    files: dict[bytes, File | bytes] = {b"file-%d" % number: b"%d" % number for number in range(50)}
    return FakeBackend({b"Image": CONTENT, **files})


@pytest.fixture
def files(session: Session) -> FileSystem:
    return FileSystem(session, idle_nodes=10)


def taken(content: FileContent) -> bytes:
    """Return the bytes, and give their buffers back."""
    whole = b"".join(content.views())
    content.give_back()
    return whole


async def test_a_file_is_read_whole_and_in_parts(files: FileSystem, session: Session) -> None:
    assert taken(await read_delivered(files, b"Image", 0, 8 << 20)) == CONTENT
    assert (
        taken(await read_delivered(files, b"Image", 1_000_000, 500_000))
        == CONTENT[1_000_000:1_500_000]
    )
    assert taken(await read_delivered(files, b"Image", len(CONTENT) - 3, 10)) == CONTENT[-3:]
    assert taken(await read_delivered(files, b"Image", len(CONTENT), 10)) == b""
    assert taken(await read_delivered(files, b"Image", len(CONTENT) + 10, 10)) == b""
    assert taken(await read_delivered(files, b"Image", 5, 0)) == b""
    assert session.payloads.taken == 0


async def test_handles_are_released(files: FileSystem, backend: FakeBackend) -> None:
    taken(await read_delivered(files, b"Image", 0, 100))
    await page(files, attributes=True, limit=5)
    with pytest.raises(FileError):
        await read_delivered(files, b"", 0, 100)
    await wait_all_tasks_blocked()
    assert backend.open_handles == set()


@pytest.mark.parametrize("most", [4001, 1 << 20])
async def test_a_file_of_untrue_size_is_read_to_its_end(
    files: FileSystem, backend: FakeBackend, session: Session, most: int
) -> None:
    """As in procfs: the size is 0, the content is not, and READs are short before its end."""
    backend.files[b"crypto"] = File(CONTENT, most=most)
    assert taken(await read_delivered(files, b"crypto", 0, 8 << 20)) == CONTENT
    assert taken(await read_delivered(files, b"crypto", 7, 2_000_000)) == CONTENT[7:2_000_007]
    assert taken(await read_delivered(files, b"crypto", 0, len(CONTENT))) == CONTENT
    assert taken(await read_delivered(files, b"crypto", len(CONTENT) - 3, 10)) == CONTENT[-3:]
    assert taken(await read_delivered(files, b"crypto", len(CONTENT), 10)) == b""
    assert taken(await read_delivered(files, b"crypto", 5, 0)) == b""
    assert session.payloads.taken == 0


async def test_lookup_counts_are_exact(files: FileSystem, backend: FakeBackend) -> None:
    for round_number in range(3):
        for number in range(50):
            await files.stat(b"file-%d" % number, follow=True)
        await page(files, attributes=True, limit=7 + round_number)
    # Idle nodes keep one count each; the rest is given back, or waits to be.
    assert len(files.nodes) == files.nodes.lookups == 10
    files.nodes.flush()
    await wait_all_tasks_blocked()
    assert +backend.lookups == {node: 1 for node in backend.lookups if backend.lookups[node]}
    assert sum(backend.lookups.values()) == 10
    files.close()
    await wait_all_tasks_blocked()
    assert not +backend.lookups
    assert len(files.nodes) == 0


async def test_forgets_go_in_batches(files: FileSystem, backend: FakeBackend) -> None:
    await page(files, attributes=True)
    await wait_all_tasks_blocked()
    assert len(backend.named(Opcode.BATCH_FORGET)) == 1
    assert backend.named(Opcode.FORGET) == []
    assert not +backend.lookups


@pytest.mark.parametrize("opcode", [Opcode.LOOKUP, Opcode.OPEN, Opcode.READ, Opcode.READDIRPLUS])
async def test_a_call_given_up_at_any_step_owes_nothing(
    files: FileSystem, backend: FakeBackend, session: Session, opcode: Opcode
) -> None:
    held: list[FuseRequest] = []

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is opcode:
            held.append(request)
            return None
        return backend.serve_files(request)

    async def call() -> None:
        if opcode is Opcode.READDIRPLUS:
            await page(files, attributes=True, limit=20)
        else:
            taken(await read_delivered(files, b"Image", 0, 4 << 20))

    backend.answer = answer
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    backend.answer = backend.serve_files
    assert held
    for request in held:
        late = backend.serve_files(request)
        assert late is not None
        backend.reply(request, late)
    await wait_all_tasks_blocked()
    files.close()
    await session.lane.drained()
    assert not +backend.lookups
    assert backend.open_handles == set()
    assert session.payloads.taken == 0
    assert session.lane.in_flight == 0


async def test_a_file_that_changes_once_is_read_again(
    files: FileSystem, backend: FakeBackend
) -> None:
    def answer(request: FuseRequest) -> Answer | None:
        reply = backend.serve_files(request)
        if request.opcode is Opcode.READ:
            backend.files[b"Image"] = File(b"new", mtime=2_000_000, ctime=2_000_000)
        return reply

    backend.answer = answer
    assert taken(await read_delivered(files, b"Image", 0, 8 << 20)) == b"new"


async def test_a_file_that_goes_on_changing_is_reported(
    files: FileSystem, backend: FakeBackend, session: Session
) -> None:
    def answer(request: FuseRequest) -> Answer | None:
        reply = backend.serve_files(request)
        if request.opcode is Opcode.READ:
            now = backend.files[b"Image"].ctime + 1
            backend.files[b"Image"] = File(CONTENT, mtime=now, ctime=now)
        return reply

    backend.answer = answer
    with pytest.raises(CallError, match="changed in each of 3 attempts") as changed:
        await read_delivered(files, b"Image", 0, 8 << 20)
    assert changed.value.code == "CHANGED"
    assert session.payloads.taken == 0


async def test_a_file_of_this_tick_is_looked_at_again_after_it(
    files: FileSystem, backend: FakeBackend
) -> None:
    class JustNow:
        """A ctime that is now when it is asked for first, and stays."""

        def __init__(self) -> None:
            self.stamp = 0

        def attributes(self, request: FuseRequest) -> Answer | None:
            answer = backend.serve_files(request)
            if request.opcode not in (Opcode.LOOKUP, Opcode.GETATTR) or answer is None:
                return answer
            self.stamp = self.stamp or time.time_ns()
            at = len(answer.body) - 88
            seconds, nanoseconds = divmod(self.stamp, 1_000_000_000)
            body = bytearray(answer.body)
            body[at + 40 : at + 48] = seconds.to_bytes(8, "little")
            body[at + 56 : at + 60] = nanoseconds.to_bytes(4, "little")
            return Answer(bytes(body))

    backend.answer = JustNow().attributes
    assert taken(await read_inline(files, b"file-7", 0, 10)) == b"7"
    kinds = [request.opcode for request in backend.requests if request.opcode is not Opcode.INIT]
    assert kinds[:3] == [Opcode.LOOKUP, Opcode.GETATTR, Opcode.OPEN]


@threat(
    "reads of what has just changed",
    who=Who.CLIENT,
    against="all who read from the export",
    does="reads a file that has just changed on many connections at once: each is read twice",
    promise="no read waits for buffers while it holds some",
)
async def test_reads_that_are_repeated_need_no_room_for_both_readings(
    backend: FakeBackend, files: FileSystem, session: Session
) -> None:
    """Else as many as have all buffers would wait for one another."""
    backend.files[b"Image"] = File(CONTENT, mtime=coarse_now())
    read: list[bytes] = []

    async def read_one() -> None:
        read.append(taken(await read_inline(files, b"Image", 0, len(CONTENT))))

    with trio.fail_after(session.timeout / 2):
        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(read_one)
    assert read == [CONTENT] * 16
    assert session.payloads.taken == 0


async def test_only_regular_files_are_opened(files: FileSystem, backend: FakeBackend) -> None:
    backend.files[b"fifo"] = File(mode=stat.S_IFIFO | 0o644)
    with pytest.raises(FileError, match="not a regular file but a fifo"):
        await read_delivered(files, b"fifo", 0, 1)
    assert backend.named(Opcode.OPEN) == []


async def test_a_name_that_is_its_directory_costs_that_no_lookup_count(
    session: Session, backend: FakeBackend
) -> None:
    """As where a file system gives both the inode number 0: the backend takes them for one."""
    backend.files[b"folder"] = File(mode=stat.S_IFDIR | 0o755)
    files = FileSystem(session, idle_nodes=10)

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.LOOKUP and request.node != ROOT:
            backend.lookups[request.node] += 1
            return Answer(backend.entry(request.node))
        return backend.serve_files(request)

    backend.answer = answer
    for _ in range(2):
        with pytest.raises(FileError, match="no inode number of its own"):
            await files.stat(b"folder/same", follow=True)
    [folder] = {one.node for one in backend.named(Opcode.LOOKUP)} - {ROOT}
    files.nodes.flush()
    await wait_all_tasks_blocked()
    assert backend.lookups[folder] == files.nodes.lookups == 1
