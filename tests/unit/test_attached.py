"""Memory of clients: which slot gives way when none is left, and which load waits for which."""

import os
from collections.abc import Iterator
from functools import partial

import pytest
import trio
from trio.testing import assert_no_checkpoints, wait_all_tasks_blocked

from memory.foreign import ForeignRegion
from protocol.fuse import Opcode
from tests.fake.backend import CONFIGURE_MEM_SLOTS, FakeBackend, File, cancelled_when
from vuserd.delivery.attached import AttachedMemory
from vuserd.delivery.cgroups import Room
from vuserd.delivery.headroom import HEADROOM, RESERVE
from vuserd.delivery.memory_table import MemoryTable
from vuserd.delivery.placements import ChangeLocks
from vuserd.device.session import Session
from vuserd.errors import CallError, ErrorCode, FileError
from vuserd.fs.filesystem import FileSystem
from vuserd.users.foreign_descriptors import ForeignDescriptors
from vuserd.users.holdings import Holdings

CONTENT = b"kernel" * 100
SIZE = 1 << 16


def memfd(size: int = SIZE) -> int:
    descriptor = os.memfd_create("client", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    return descriptor


@pytest.fixture
def memories() -> Iterator[list[AttachedMemory]]:
    """Three memories, each of a client of its own."""
    made = [AttachedMemory(ForeignRegion(memfd(), SIZE), ChangeLocks()) for _ in range(3)]
    yield made
    for memory in made:
        memory.region.close()


@pytest.fixture
def backend() -> FakeBackend:
    backend = FakeBackend({b"Image": CONTENT})
    backend.protocol_features |= CONFIGURE_MEM_SLOTS
    return backend


def answer_all(backend: FakeBackend, opcode: Opcode) -> None:
    """Answer the requests of a kind that were withheld: of a load its bytes, and what follows."""
    for request in backend.named(opcode):
        answer = backend.serve_files(request)
        assert answer is not None
        backend.reply(request, answer)


async def load(memory: AttachedMemory, session: Session) -> None:
    assert await memory.load(FileSystem(session, 10), b"Image", 0, 0, None) == len(CONTENT)


async def test_the_slot_that_was_used_longest_ago_is_taken(
    backend: FakeBackend, memories: list[AttachedMemory]
) -> None:
    backend.memory_slots = 3
    first, second, third = memories
    async with backend.session() as session:
        await load(first, session)
        await load(second, session)
        await load(first, session)
        changes = len(backend.messages)
        await load(third, session)
        assert len(backend.messages) == changes + 2  # the second one's out, the third one's in
        await load(first, session)
        assert len(backend.messages) == changes + 2  # it has stayed


async def test_memory_that_is_mapped_already_is_found_at_once(
    memories: list[AttachedMemory], session: Session
) -> None:
    placements = memories[0]._placements
    placement = await placements.at(session)
    with assert_no_checkpoints():
        assert await placements.at(session) is placement
        await placements.wait_for_late_reads(0, SIZE)
    await memories[0].detach()


async def test_a_slot_in_use_is_not_taken(
    backend: FakeBackend, memories: list[AttachedMemory]
) -> None:
    backend.memory_slots = 2
    async with backend.session() as session:
        backend.answer_to(Opcode.READ, None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load, memories[0], session)
            await wait_all_tasks_blocked()
            with pytest.raises(CallError, match="all are in use") as busy:
                await load(memories[1], session)
            assert busy.value.code == ErrorCode.BUSY
            answer_all(backend, Opcode.READ)
            backend.answer = backend.serve_files
        await load(memories[1], session)
        assert session.regions == 2


async def test_a_client_with_many_memories_queues_for_one_change_at_a_time(
    backend: FakeBackend,
) -> None:
    backend.memory_slots = 64
    greedy = MemoryTable(50, 1 << 30, ForeignDescriptors(64), Holdings(99, 0))
    other = MemoryTable(1, 1 << 30, ForeignDescriptors(64), Holdings(99, 0))
    for _ in range(50):
        await greedy.attach(memfd(), SIZE)
    await other.attach(memfd(2 * SIZE), 2 * SIZE)
    async with backend.session() as session:
        async with trio.open_nursery() as nursery:
            for memory_id in range(1, 51):
                nursery.start_soon(load, greedy.find(memory_id), session)
            nursery.start_soon(load, other.find(1), session)
        sizes = [len(region.view) for region in backend._memory._regions]
        assert len(sizes) == 52
        assert sizes.index(2 * SIZE) <= 2  # after the session's own, and one of the greedy one's
        # The same holds for taking them away.
        closed: list[str] = []

        async def detach(table: MemoryTable, memory: int, name: str) -> None:
            await table.detach(memory)
            closed.append(name)

        async with trio.open_nursery() as nursery:
            for memory_id in range(1, 51):
                nursery.start_soon(detach, greedy, memory_id, "greedy")
            nursery.start_soon(detach, other, 1, "other")
        assert closed.index("other") <= 1
        assert session.regions == backend.regions == 1


@pytest.mark.parametrize(
    ("sizes", "code", "words"),
    [
        ([SIZE, SIZE, SIZE], ErrorCode.TOO_LARGE, "may attach 2 memories"),
        ([SIZE, 4 * SIZE], ErrorCode.TOO_LARGE, f"this would make {5 * SIZE}"),
        ([SIZE + 1], ErrorCode.BAD_REQUEST, "whole number of pages"),
    ],
)
async def test_a_client_has_only_so_much(sizes: list[int], code: ErrorCode, words: str) -> None:
    table = MemoryTable(2, 4 * SIZE, ForeignDescriptors(64), Holdings(99, 0))
    for size in sizes[:-1]:
        await table.attach(memfd(size), size)
    refused = memfd(sizes[-1])
    with pytest.raises(CallError, match=words) as raised:
        await table.attach(refused, sizes[-1])
    assert raised.value.code == code
    with pytest.raises(OSError, match="Bad file descriptor"):  # what is refused is closed
        os.fstat(refused)
    assert len(table) == len(sizes) - 1
    await table.close()
    assert len(table) == 0


async def test_a_memory_is_attached_once_and_forgotten_with_its_id() -> None:
    table = MemoryTable(2, 4 * SIZE, ForeignDescriptors(64), Holdings(99, 0))
    descriptor = memfd()
    again = os.dup(descriptor)
    memory = await table.attach(descriptor, SIZE)
    with pytest.raises(CallError, match="attached already"):
        await table.attach(again, SIZE)
    await table.detach(memory)
    with pytest.raises(CallError, match=f"no attached memory {memory}"):
        table.find(memory)
    with pytest.raises(CallError, match=f"no attached memory {memory}"):
        await table.detach(memory)


async def test_no_load_begins_once_a_memory_is_detached(
    backend: FakeBackend, memories: list[AttachedMemory], session: Session
) -> None:
    backend.answer_to(Opcode.READ, None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load, memories[0], session)
        await wait_all_tasks_blocked()
        nursery.start_soon(memories[0].detach)
        await wait_all_tasks_blocked()
        with pytest.raises(CallError, match="no attached memory any more") as refused:
            await load(memories[0], session)
        assert refused.value.code == ErrorCode.BAD_REQUEST
        answer_all(backend, Opcode.READ)  # the load that was there before is not disturbed
    assert session.regions == backend.regions == 1
    assert memories[0].region.fileno() == -1
    with pytest.raises(CallError, match="no attached memory any more"):
        await load(memories[0], session)
    assert not session.lost


async def test_a_detach_waits_where_the_slot_is_being_given_up(
    backend: FakeBackend, memories: list[AttachedMemory]
) -> None:
    """A READ of a load that was cancelled may still write there, for whoever the slot is."""
    backend.memory_slots = 2
    async with backend.session() as session:
        backend.answer_to(Opcode.READ, None)
        await cancelled_when(
            lambda: bool(backend.named(Opcode.READ)), partial(load, memories[0], session)
        )
        late = backend.named(Opcode.READ)
        backend.answer = backend.serve_files
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load, memories[1], session)
            await wait_all_tasks_blocked()
            nursery.start_soon(memories[0].detach)
            await wait_all_tasks_blocked()
            assert memories[0].region.fileno() >= 0
            assert session.regions == backend.regions == 2
            backend.let_go(late)
        assert memories[0].region.fileno() == -1


async def test_a_file_that_does_not_fit_is_not_loaded(session: Session) -> None:
    table = MemoryTable(1, SIZE, ForeignDescriptors(64), Holdings(99, 0))
    memory = table.find(await table.attach(memfd(), SIZE))
    files = FileSystem(session, 10)
    room = len(CONTENT) - 1
    with pytest.raises(CallError, match=f"the memory ends {room} bytes after") as raised:
        await memory.load(files, b"Image", SIZE - room, 0, None)
    assert raised.value.fields == {"size": len(CONTENT), "room": room}
    assert await memory.load(files, b"Image", SIZE - room, 0, room) == room
    assert await memory.load(files, b"Image", 0, len(CONTENT), None) == 0
    await table.close()


@pytest.mark.alike(0)
async def test_a_file_of_untrue_size_is_loaded_to_its_end(
    backend: FakeBackend, session: Session
) -> None:
    """As in procfs: the size is 0, the content is not, and READs are short before its end."""
    content = bytes(range(250)) * 10_000
    backend.files[b"crypto"] = File(content, most=4001)
    room = len(content) + -len(content) % SIZE
    memory = AttachedMemory(ForeignRegion(memfd(room), room), ChangeLocks())
    files = FileSystem(session, 10)
    for address, offset, length in (
        (0, 0, None),
        (room - len(content), 0, None),  # it just fits
        (room - len(content) + 5, 0, len(content) - 5),  # so does the part that is wanted
        (0, 0, 1 << 30),
        (0, 7, 1_500_000),
        (0, len(content) - 3, None),
        (room, len(content), None),
        (room, 0, 0),
    ):
        wanted = content[offset:] if length is None else content[offset : offset + length]
        os.pwrite(memory.region.fileno(), bytes(room), 0)
        assert await memory.load(files, b"crypto", address, offset, length) == len(wanted)
        assert os.pread(memory.region.fileno(), room, 0).strip(b"\0") == wanted.strip(b"\0")
        assert os.pread(memory.region.fileno(), len(wanted), address) == wanted
    for address, length in ((room - len(content) + 1, None), (room - 9, 10), (room + 1, None)):
        with pytest.raises(CallError, match="does not fit") as refused:
            await memory.load(files, b"crypto", address, 0, length)
        assert refused.value.code == ErrorCode.TOO_LARGE
        assert refused.value.fields == {"room": max(room - address, 0)}
    await memory.detach()
    assert session.payloads.taken == 0


async def test_an_empty_file_takes_no_slot(
    backend: FakeBackend, memories: list[AttachedMemory], session: Session
) -> None:
    backend.files[b"empty"] = File()
    assert await memories[0].load(FileSystem(session, 10), b"empty", 0, 0, None) == 0
    assert session.regions == 1


@pytest.mark.parametrize("name", [b"Image", b"crypto"])
async def test_pages_that_cannot_be_had_are_refused(
    backend: FakeBackend, session: Session, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    backend.files[b"crypto"] = File(CONTENT, most=4001)
    monkeypatch.setattr(HEADROOM, "available", lambda _: RESERVE)
    memory = AttachedMemory(ForeignRegion(memfd(), SIZE), ChangeLocks())
    files = FileSystem(session, 10)
    with pytest.raises(FileError, match="bytes of the attached memory do not fit") as refused:
        await memory.load(files, name, 0, 0, None)
    assert refused.value.code == "ENOMEM"
    os.posix_fallocate(memory.region.fileno(), 0, SIZE)
    assert await memory.load(files, name, 0, 0, None) == len(CONTENT)
    await memory.detach()


async def test_pages_that_a_backend_is_about_to_take_are_not_there_for_others(
    backend: FakeBackend,
    memories: list[AttachedMemory],
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(HEADROOM, "_machine", lambda: Room(1 << 30, 1 << 31))
    monkeypatch.setattr(HEADROOM, "_limiting", list)
    held = backend.hold(lambda request: request.opcode is Opcode.READ)
    for is_cancelled in (False, True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load, memories[0], session)
            await wait_all_tasks_blocked()
            assert HEADROOM.available() == (1 << 30) - len(CONTENT)
            if is_cancelled:
                nursery.cancel_scope.cancel()
            else:
                backend.let_go(held)
                held = backend.hold(lambda request: request.opcode is Opcode.READ)
        assert HEADROOM.available() == 1 << 30


async def test_memory_that_runs_out_on_the_way_ends_the_load(
    backend: FakeBackend, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 12 << 20
    backend.files[b"Image"] = File(bytes(size))
    memory = AttachedMemory(ForeignRegion(memfd(size), size), ChangeLocks())
    free = RESERVE + size

    def available(_: int) -> int:  # others take two bytes for each that the load takes
        return free - 3 * (size - memory.region.unallocated)

    monkeypatch.setattr(HEADROOM, "available", available)
    with pytest.raises(FileError) as refused:
        await memory.load(FileSystem(session, 10), b"Image", 0, 0, None)
    assert refused.value.code == "ENOMEM"
    assert 0 < memory.region.unallocated < size
    await memory.detach()
    assert not session.lost
