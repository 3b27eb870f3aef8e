"""Memory regions: a client's memory that the backend does not take, or does not let go."""

import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from memory.foreign import ForeignRegion
from protocol.fuse import Opcode
from protocol.vhost_user import Request
from tests.fake.backend import CONFIGURE_MEM_SLOTS, Answer, FakeBackend, File, FuseRequest
from tests.fake.bare_daemon import ThreadlessDescriptors
from tests.faults.catalogue import DOWN, fault
from tests.faults.harness import CONTENT, FOR_EVER, SECRET, Front
from vuserd.delivery.attached import AttachedMemory
from vuserd.delivery.memory_table import MemoryTable
from vuserd.delivery.placements import ChangeLocks
from vuserd.device.session import SessionOptions
from vuserd.errors import BackendBroken, BackendDown, BackendTimeout, FileError
from vuserd.fs.filesystem import FileSystem
from vuserd.users.holdings import Holdings

SIZE = 1 << 16


def memfd(size: int = SIZE) -> int:
    descriptor = os.memfd_create("client", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    return descriptor


@pytest.fixture
def memory() -> Iterator[AttachedMemory]:
    attached = AttachedMemory(ForeignRegion(memfd(), SIZE), ChangeLocks())
    yield attached
    attached.region.close()


@pytest.fixture
async def front(backend: FakeBackend) -> AsyncIterator[Front]:
    backend.protocol_features |= CONFIGURE_MEM_SLOTS
    async with backend.session() as session:
        yield Front(backend, session, FileSystem(session, idle_nodes=10))


async def load(memory: AttachedMemory, front: Front) -> int:
    return await memory.load(front.files, b"Image", 0, 0, None)


@fault(
    "add-region-refused",
    done="ADD_MEM_REG is acknowledged with status 12",
    must="The load fails with BACKEND_DOWN and names the message; the region is taken off the"
    " session's list, the session goes on, and the next load is served.",
)
async def test_memory_that_is_refused(front: Front, memory: AttachedMemory) -> None:
    front.backend.refused = {Request.ADD_MEM_REG: 12}
    for _ in range(20):  # more than there are slots
        with pytest.raises(BackendBroken, match=r"refused ADD_MEM_REG \(status 12\)"):
            await load(memory, front)
    assert front.session.regions == front.backend.regions == 1
    front.backend.refused = {}
    assert await load(memory, front) == len(CONTENT)
    await memory.detach()
    assert front.backend.regions == 1
    await front.serves()


@fault(
    "remove-region-refused",
    done="REM_MEM_REG is acknowledged with status 1",
    must="The session is declared broken: the backend could still write into the client's memory.",
)
async def test_memory_that_is_not_let_go(front: Front, memory: AttachedMemory) -> None:
    assert await load(memory, front) == len(CONTENT)
    front.backend.refused = {Request.REM_MEM_REG: 1}
    await memory.detach()
    assert front.session.lost


@fault(
    "add-region-acknowledged-oddly",
    done="ADD_MEM_REG is acknowledged with 4 bytes",
    must="The load gets BACKEND_DOWN, and the session is declared broken with this cause.",
)
async def test_an_acknowledgement_that_is_none(front: Front, memory: AttachedMemory) -> None:
    front.backend.altered = {Request.ADD_MEM_REG: lambda reply: reply._replace(payload=bytes(4))}
    with pytest.raises(BackendBroken, match="4 bytes where 8 belong"):
        await load(memory, front)
    assert front.session.lost


@pytest.mark.parametrize("request_", [Request.ADD_MEM_REG, Request.REM_MEM_REG])
@fault(
    "dies-at-region",
    done="the backend ends when it is sent ADD_MEM_REG or REM_MEM_REG",
    must=DOWN + " A detach ends.",
)
async def test_death_at_a_change_of_memory(
    front: Front, memory: AttachedMemory, request_: Request
) -> None:
    front.backend.dies_at = {request_}
    with trio.fail_after(FOR_EVER):
        if request_ is Request.ADD_MEM_REG:
            with pytest.raises(BackendDown):
                await load(memory, front)
        else:
            assert await load(memory, front) == len(CONTENT)
        await memory.detach()
    await front.is_over()


@fault(
    "silent-at-ADD_MEM_REG",
    done="ADD_MEM_REG is acknowledged after the deadline",
    must="The load gets TIMEOUT, and the session is declared lost: it is no longer known which"
    " request a reply is to.",
)
async def test_silence_at_a_change_of_memory(
    front: Front,
    memory: AttachedMemory,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    front.backend.ignored = {Request.ADD_MEM_REG}
    with pytest.raises(BackendTimeout):
        await load(memory, front)
    assert front.session.lost


@fault(
    "memory-slots-used-up",
    done="the backend has two slots in all, one of which is the session's own",
    must="A second memory takes the slot of one that lies idle, and gives it back in its turn.",
)
async def test_memory_without_a_slot(backend: FakeBackend, memory: AttachedMemory) -> None:
    backend.protocol_features |= CONFIGURE_MEM_SLOTS
    backend.memory_slots = 2
    other = AttachedMemory(ForeignRegion(memfd(), SIZE), ChangeLocks())
    async with backend.session() as session:
        front = Front(backend, session, FileSystem(session, 10))
        assert await load(memory, front) == len(CONTENT)
        for each in (other, memory, other):
            assert await load(each, front) == len(CONTENT)
            assert session.regions == 2
        await memory.detach()
        await other.detach()
        assert session.regions == 1
        await front.serves()


@fault(
    "dies-without-a-slot",
    done="the backend keeps a READ into memory that has its last slot, and ends while another"
    " memory is to be loaded",
    must=DOWN + " So the load is asked again of the next backend.",
)
async def test_death_while_a_slot_is_waited_for(
    backend: FakeBackend, memory: AttachedMemory
) -> None:
    backend.protocol_features |= CONFIGURE_MEM_SLOTS
    backend.memory_slots = 2
    other = AttachedMemory(ForeignRegion(memfd(), SIZE), ChangeLocks())
    async with backend.session() as session:
        front = Front(backend, session, FileSystem(session, 10))
        front.tell(Opcode.READ, None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load, other, front)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:

            async def load_another() -> None:
                with pytest.raises(BackendDown, match="closed its socket"):
                    await load(memory, front)

            nursery.start_soon(load_another)
            await wait_all_tasks_blocked()
            backend.die()
        await other.detach()
        await front.is_over()


@fault(
    "dies-while-loading",
    done="the backend ends while it has READs into a client's memory",
    must=DOWN + " A detach ends.",
)
async def test_death_while_loading(front: Front, memory: AttachedMemory) -> None:
    front.tell(Opcode.READ, lambda backend, _: backend.die())
    with trio.fail_after(FOR_EVER):
        with pytest.raises(BackendDown):
            await load(memory, front)
        await memory.detach()
    await front.is_over()


@fault(
    "keeps-a-read-into-memory",
    done="the backend never answers a READ into a client's memory, and all else",
    must="The load gets TIMEOUT. A detach ends within another deadline, and as the memory may still"
    " be written to, the session is declared lost.",
)
async def test_a_read_into_memory_that_never_ends(
    front: Front,
    memory: AttachedMemory,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    front.tell(Opcode.READ, None)
    with pytest.raises(BackendTimeout):
        await load(memory, front)
    with trio.fail_after(FOR_EVER):
        await memory.detach()
    assert front.session.lost


@pytest.mark.parametrize("seconds", [0.2, 2.5])
async def test_a_detach_has_the_sessions_timeout_and_no_more(
    backend: FakeBackend,
    memory: AttachedMemory,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
    seconds: float,
) -> None:
    backend.protocol_features |= CONFIGURE_MEM_SLOTS
    async with backend.session(SessionOptions(timeout=seconds)) as session:
        front = Front(backend, session, FileSystem(session, idle_nodes=10))
        front.tell(Opcode.READ, None)
        with pytest.raises(BackendTimeout):
            await load(memory, front)
        begun = trio.current_time()
        await memory.detach()
        assert trio.current_time() - begun == pytest.approx(seconds)
        assert session.lost


@fault(
    "dies-with-a-read-into-memory",
    done="the backend ends while a detach waits for a READ that it keeps",
    must="The detach ends at once.",
)
async def test_death_while_a_detach_waits(
    front: Front,
    memory: AttachedMemory,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    front.tell(Opcode.READ, None)
    with pytest.raises(BackendTimeout):
        await load(memory, front)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.detach)
        await trio.sleep(0.1)
        begun = trio.current_time()
        front.backend.die()
    assert trio.current_time() == begun
    await front.is_over()


@fault(
    "several-silent-at-REM_MEM_REG",
    done="three backends, each of which has a client's memories, acknowledge no REM_MEM_REG",
    must="All memories are detached within one deadline, and the sessions are declared lost.",
)
async def test_silence_of_several_at_a_detach(
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    table = MemoryTable(2, 2 * SIZE, ThreadlessDescriptors(64), Holdings(99, 0))
    memories = [table.find(await table.attach(memfd(), SIZE)) for _ in range(2)]
    async with AsyncExitStack() as stack:
        sessions = []
        for _ in range(3):
            backend = FakeBackend({b"Image": CONTENT})
            backend.protocol_features |= CONFIGURE_MEM_SLOTS
            backend.ignored = {Request.REM_MEM_REG}
            session = await stack.enter_async_context(backend.session())
            for memory in memories:
                await memory.load(FileSystem(session, idle_nodes=10), b"Image", 0, 0, None)
            sessions.append(session)
        begun = trio.current_time()
        with trio.CancelScope() as client:
            client.cancel()  # it is gone, and that takes nothing from the backends
            await table.close()
        assert trio.current_time() - begun == pytest.approx(sessions[0].timeout)
        assert all(session.lost for session in sessions)
    assert [memory.region.fileno() for memory in memories] == [-1, -1]


async def test_memory_that_was_closed_is_no_loss_of_the_backend(front: Front) -> None:
    region = ForeignRegion(memfd(), SIZE)
    region.close()
    with pytest.raises(ValueError, match="ADD_MEM_REG with a descriptor that is closed"):
        await front.session.slots.add(region)
    assert front.session.regions == front.backend.regions == 1
    await front.serves()


@fault(
    "late-read-into-memory",
    done="the backend answers a READ into a client's memory after its caller's deadline",
    must="A detach waits for it, and only then is the memory taken from the backend.",
)
async def test_a_late_read_into_memory(
    front: Front,
    memory: AttachedMemory,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    front.tell(Opcode.READ, None)
    with pytest.raises(BackendTimeout):
        await load(memory, front)
    late = front.backend.named(Opcode.READ)  # of its bytes, and of what may follow
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.detach)
        await wait_all_tasks_blocked()
        assert Request.REM_MEM_REG not in front.backend.messages
        for request in late:
            answer = front.backend.serve_files(request)
            assert answer is not None
            front.backend.reply(request, answer)
    assert front.backend.messages[-1] is Request.REM_MEM_REG
    assert front.backend.regions == 1
    await front.serves()


def offset_of(request: FuseRequest) -> int:
    """Return where a READ begins."""
    return int.from_bytes(request.body[8:16], "little")


def into_memory(front: Front) -> FuseRequest:
    """Return the READ of a file's first bytes; the other one looks whether the file goes on."""
    [first] = [one for one in front.backend.named(Opcode.READ) if not offset_of(one)]
    return first


def end_file(front: Front, late: FuseRequest, size: int) -> None:
    """Answer the READ that looks whether the file of a late one goes on behind its size."""
    [behind] = [
        one
        for one in front.backend.named(Opcode.READ)
        if one.node == late.node and offset_of(one) == size
    ]
    front.backend.reply(behind, Answer())


async def load_secret(memory: AttachedMemory, front: Front, address: int = 0) -> None:
    """Load another file, and see that it stands there when this is said."""
    assert await memory.load(front.files, b"secret", address, 0, None) == len(SECRET)
    assert os.pread(memory.region.fileno(), len(SECRET), address) == SECRET


@fault(
    "late-read-before-next-load",
    done="the backend answers a READ into a client's memory after its caller's deadline, when the"
    " client loads another file to the same place",
    must="The next load waits for it, so that what it brought stands there when it is done. A load"
    " to another place does not wait.",
)
async def test_a_late_read_is_not_written_over_the_next_load(
    front: Front,
    memory: AttachedMemory,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    front.tell(Opcode.READ, None)
    with pytest.raises(BackendTimeout):
        await load(memory, front)
    late = into_memory(front)
    front.backend.answer = front.backend.serve_files
    await load_secret(memory, front, address=len(CONTENT))
    so_far = len(front.backend.named(Opcode.READ))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load_secret, memory, front, len(CONTENT) - 1)
        await wait_all_tasks_blocked()
        assert len(front.backend.named(Opcode.READ)) == so_far
        front.backend.reply(late, Answer(CONTENT))
    end_file(front, late, len(CONTENT))
    await memory.detach()
    await front.serves()


@fault(
    "late-read-of-a-failed-load",
    done="the backend fails one READ of a load, keeps another, and answers that when the client"
    " loads another file to the same place",
    must="The next load waits for it, so that what it brought stands there when it is done.",
)
async def test_a_late_read_of_a_load_that_failed(front: Front) -> None:
    part = front.session.max_read
    size = 5 * part  # more than a task of the load waits for at once
    front.backend.files[b"five"] = File(bytes(size))
    memory = AttachedMemory(ForeignRegion(memfd(size), size), ChangeLocks())

    def fail_the_last(backend: FakeBackend, request: FuseRequest) -> Answer | None:
        if offset_of(request) == 4 * part:
            return Answer(error=errno.EIO)
        return backend.serve_files(request) if 0 < offset_of(request) < size else None

    front.tell(Opcode.READ, fail_the_last)
    with pytest.raises(FileError):
        await memory.load(front.files, b"five", 0, 0, None)
    late = into_memory(front)
    so_far = len(front.backend.named(Opcode.READ))
    front.backend.answer = front.backend.serve_files
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load_secret, memory, front)
        await wait_all_tasks_blocked()
        assert len(front.backend.named(Opcode.READ)) == so_far
        front.backend.reply(late, Answer(bytes(part)))
    end_file(front, late, size)
    await memory.detach()
    await front.serves()


@fault(
    "keeps-a-read-before-next-load",
    done="the backend never answers a READ into a client's memory, and the client loads another"
    " file to the same place",
    must="As the memory may still be written to, the session is declared lost within another"
    " deadline, and the load gets BACKEND_DOWN.",
)
async def test_a_read_that_never_ends_before_the_next_load(
    front: Front,
    memory: AttachedMemory,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    front.tell(Opcode.READ, None)
    with pytest.raises(BackendTimeout):
        await load(memory, front)
    front.backend.answer = front.backend.serve_files
    begun = trio.current_time()
    with pytest.raises(BackendDown, match="keeps a request"):
        await load_secret(memory, front)
    assert trio.current_time() - begun == pytest.approx(front.session.timeout)
    await memory.detach()
    await front.is_over()


async def test_a_read_that_another_backend_never_ends(
    front: Front,
    memory: AttachedMemory,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    other = FakeBackend({b"Image": CONTENT})
    other.protocol_features |= CONFIGURE_MEM_SLOTS
    other.answer_to(Opcode.READ, None)
    async with other.session() as session:
        with pytest.raises(BackendTimeout):
            await memory.load(FileSystem(session, idle_nodes=10), b"Image", 0, 0, None)
        await load_secret(memory, front)
        assert session.lost
    await memory.detach()
    await front.serves()
