"""Each way of fetching a file: its size may be wrong, and its timestamps too coarse."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final, TypeAlias

import pytest
from trio.testing import wait_all_tasks_blocked

from memory.foreign import ForeignRegion
from protocol.fuse import Opcode
from tests.delivered import read_delivered
from tests.fake.backend import CONFIGURE_MEM_SLOTS, Answer, FakeBackend, File, FuseRequest
from tests.fake.files import coarse_now
from tests.faults.catalogue import CHANGED, fault
from vuserd.delivery.attached import AttachedMemory
from vuserd.delivery.image import image_delivery
from vuserd.delivery.one_version import deliver_whole
from vuserd.delivery.placements import ChangeLocks
from vuserd.device.session import Session
from vuserd.errors import CallError, FileError
from vuserd.fs.filesystem import FileSystem

#: Two READs and a bit.
CONTENT: Final = bytes(range(251)) * 2000
ROOM: Final = 1 << 20

Way: TypeAlias = Callable[[FileSystem], Awaitable[bytes]]


@pytest.fixture
def backend() -> FakeBackend:
    backend = FakeBackend()
    backend.max_pages = 64  # READs of 256 KiB
    backend.protocol_features |= CONFIGURE_MEM_SLOTS
    return backend


@pytest.fixture
async def files(session: Session, backend: FakeBackend) -> AsyncIterator[FileSystem]:
    """Yield a file system, and check that nothing is left of it."""
    files = FileSystem(session, idle_nodes=10)
    yield files
    files.close()
    await session.lane.drained()
    await wait_all_tasks_blocked()
    assert not session.lost
    assert session.payloads.taken == 0
    assert backend.open_handles == set()
    assert not +backend.lookups


@pytest.fixture
def memory() -> Iterator[AttachedMemory]:
    descriptor = os.memfd_create("client", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, ROOM)
    memory = AttachedMemory(ForeignRegion(descriptor, ROOM), ChangeLocks())
    yield memory
    memory.region.close()


async def inline(files: FileSystem) -> bytes:
    content = await read_delivered(files, b"file", 0, ROOM)
    whole = b"".join(content.views())
    content.give_back()
    return whole


async def image(files: FileSystem) -> bytes:
    made = await deliver_whole(files, b"file", image_delivery())
    whole = made.read(0, ROOM)
    assert len(whole) == made.size
    made.give_back()
    return whole


@pytest.fixture(params=["inline", "image", "load"])
def way(request: pytest.FixtureRequest, memory: AttachedMemory) -> Way:
    """Each way of taking the whole of a file."""

    async def load(files: FileSystem) -> bytes:
        os.pwrite(memory.region.fileno(), b"?" * ROOM, 0)
        length = await memory.load(files, b"file", 0, 0, None)
        return os.pread(memory.region.fileno(), length, 0)

    return {"inline": inline, "image": image, "load": load}[request.param]


def reads(backend: FakeBackend) -> int:
    return len(backend.named(Opcode.READ))


@pytest.fixture(params=[False, True], ids=["settled", "coarse"])
def stamp(request: pytest.FixtureRequest) -> int:
    """Return a time of the last change that a later change is certain to move, or is not."""
    return coarse_now() if request.param else 1_000_000_000


@fault(
    "size-untrue",
    done="a size that is not the length: 0, too small, too large; settled or not",
    must="All ways of taking the file give what READs give up to its end.",
)
@pytest.mark.parametrize(
    ("length", "size"),
    [
        pytest.param(0, 0, id="an empty file"),
        pytest.param(5, 5, id="a true size"),
        pytest.param(len(CONTENT), len(CONTENT), id="a true size of several READs"),
        pytest.param(262_144, 262_144, id="a true size of one READ"),
        pytest.param(5, 0, id="no size"),
        pytest.param(len(CONTENT), 0, id="no size of several READs"),
        pytest.param(262_144, 0, id="no size of one READ"),
        pytest.param(0, 4096, id="a page in sysfs that is empty"),
        pytest.param(5, 4096, id="a page in sysfs"),
        pytest.param(5, 1_000_000, id="far too large"),
        pytest.param(262_144, 300_000, id="too large, at the end of a READ"),
        pytest.param(300_000, 300_001, id="a byte too large"),
        pytest.param(300_001, 300_000, id="a byte too small"),
        pytest.param(len(CONTENT), 1, id="far too small"),
        pytest.param(len(CONTENT), 262_144, id="too small, at the end of a READ"),
        pytest.param(5, 2**62, id="larger than all memory"),
    ],
)
@pytest.mark.alike
async def test_it_is_what_reads_give_up_to_the_end(
    backend: FakeBackend, files: FileSystem, way: Way, length: int, size: int, stamp: int
) -> None:
    content = CONTENT[:length]
    backend.files[b"file"] = File(content, size=size, mtime=stamp, ctime=stamp)
    assert await way(files) == content


@pytest.mark.parametrize("most", [1, 4001])
async def test_short_reads_are_no_end(
    backend: FakeBackend, files: FileSystem, way: Way, most: int, stamp: int
) -> None:
    """As in procfs: lines that are whole, or what the page before had room for."""
    content = CONTENT[: 100 * most]
    backend.files[b"file"] = File(content, size=len(content), most=most, mtime=stamp, ctime=stamp)
    assert await way(files) == content


@pytest.mark.parametrize("size", [len(CONTENT), 0])
async def test_a_version_that_may_change_unseen_is_read_twice(
    backend: FakeBackend, files: FileSystem, way: Way, size: int
) -> None:
    backend.files[b"file"] = File(CONTENT, size=size)
    assert await way(files) == CONTENT
    once = reads(backend)
    now = coarse_now()
    backend.files[b"file"] = File(CONTENT, size=size, mtime=now, ctime=now)
    so_far = reads(backend)
    assert await way(files) == CONTENT
    assert reads(backend) - so_far >= once + 2
    handles = {request.body[:8] for request in backend.named(Opcode.READ)[so_far:]}
    assert len(handles) == 1  # both readings are of one opening


class Writer:
    """Changes a file's bytes, and not its attributes, after each of so many readings.

    What it writes goes to one place, in the middle of the file.
    """

    def __init__(self, backend: FakeBackend, changes: int, size: int) -> None:
        self.content = CONTENT
        self._backend = backend
        self._changes = changes
        self._size = size
        self._now = coarse_now()
        self._store()
        backend.answer = self._answer

    def _store(self) -> None:
        self._backend.files[b"file"] = File(
            self.content, size=self._size, mtime=self._now, ctime=self._now
        )

    def _answer(self, request: FuseRequest) -> Answer | None:
        answer = self._backend.serve_files(request)
        reads_end = answer is not None and len(answer.body) in (0, len(CONTENT) % 262_144)
        if request.opcode is Opcode.READ and reads_end and self._changes:
            self._changes -= 1
            old = self.content
            self.content = old[:300_000] + b"%07d" % self._changes + old[300_007:]
            self._store()
        return answer


@fault(
    "bytes-change-unseen",
    done="bytes of a file with coarse timestamps change while it is read, and nothing else does",
    must="It is read twice, and again as the readings differ: one version is given.",
)
@pytest.mark.parametrize("size", [len(CONTENT), 0])
async def test_bytes_that_change_unseen_are_read_again(
    backend: FakeBackend, files: FileSystem, way: Way, size: int
) -> None:
    writer = Writer(backend, 1, size)
    assert await way(files) == writer.content != CONTENT


@fault(
    "bytes-go-on-changing-unseen",
    done="bytes of a file with coarse timestamps change each time that it is read",
    must=CHANGED,
)
@pytest.mark.parametrize("size", [len(CONTENT), 0])
async def test_bytes_that_go_on_changing_unseen_are_told(
    backend: FakeBackend, files: FileSystem, way: Way, size: int
) -> None:
    Writer(backend, 1000, size)
    with pytest.raises(CallError, match="changed in each of 3 attempts") as changed:
        await way(files)
    assert changed.value.code == "CHANGED"


async def test_a_file_that_shrinks_while_it_is_read(
    backend: FakeBackend, files: FileSystem, way: Way
) -> None:
    """Its attributes show that: the next attempt has the new size."""
    backend.files[b"file"] = File(CONTENT)

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.READ:
            backend.files[b"file"] = File(b"short", ctime=1_000_000_001)
        return backend.serve_files(request)

    backend.answer = answer
    assert await way(files) == b"short"


async def test_a_file_that_grows_while_it_is_read(
    backend: FakeBackend, files: FileSystem, way: Way
) -> None:
    backend.files[b"file"] = File(b"short")

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.READ:
            backend.files[b"file"] = File(CONTENT, ctime=1_000_000_001)
        return backend.serve_files(request)

    backend.answer = answer
    assert await way(files) == CONTENT


@pytest.mark.parametrize("opcode", [Opcode.READ, Opcode.GETATTR])
async def test_an_error_after_the_first_reading_leaves_nothing(
    backend: FakeBackend, files: FileSystem, way: Way, opcode: Opcode
) -> None:
    now = coarse_now()
    backend.files[b"file"] = File(CONTENT, mtime=now, ctime=now)
    seen = False

    def answer(request: FuseRequest) -> Answer | None:
        nonlocal seen
        if request.opcode is Opcode.GETATTR:
            seen = True
        if seen and request.opcode is opcode:
            return Answer(error=5)
        return backend.serve_files(request)

    backend.answer = answer
    with pytest.raises(FileError) as failed:
        await way(files)
    assert failed.value.code == "EIO"


@pytest.mark.parametrize("size", [0, 5, len(CONTENT), 700_000])
@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 1),
        (0, len(CONTENT)),
        (0, len(CONTENT) + 1),
        (7, 300_000),
        (300_000, 300_000),
        (262_143, 2),
        (len(CONTENT) - 1, 1),
        (len(CONTENT) - 1, 2),
        (len(CONTENT), 1),
        (len(CONTENT) + 1, 10),
        (1 << 62, 10),
        (5, 0),
    ],
)
@pytest.mark.alike
async def test_a_part_is_that_of_the_whole(
    backend: FakeBackend,
    files: FileSystem,
    memory: AttachedMemory,
    size: int,
    offset: int,
    length: int,
) -> None:
    backend.files[b"file"] = File(CONTENT, size=size)
    wanted = CONTENT[offset : offset + length]
    content = await read_delivered(files, b"file", offset, length)
    assert b"".join(content.views()) == wanted
    assert content.length == len(wanted)
    content.give_back()
    os.pwrite(memory.region.fileno(), b"?" * ROOM, 0)
    assert await memory.load(files, b"file", 4096, offset, length) == len(wanted)
    assert os.pread(memory.region.fileno(), len(wanted), 4096) == wanted
    assert os.pread(memory.region.fileno(), 4096, 0) == b"?" * 4096
    if size == len(CONTENT):
        assert os.pread(memory.region.fileno(), 9, 4096 + len(wanted)) == b"?" * 9


@pytest.mark.parametrize("size", [0, 3, 10, 11, 4096, 2**62])
async def test_what_fits_into_memory_is_the_content(
    backend: FakeBackend, files: FileSystem, memory: AttachedMemory, size: int
) -> None:
    """Whatever its size is said to be."""
    backend.files[b"file"] = File(b"0123456789", size=size)
    assert await memory.load(files, b"file", ROOM - 10, 0, None) == 10
    assert os.pread(memory.region.fileno(), 20, ROOM - 10) == b"0123456789"
    assert await memory.load(files, b"file", ROOM - 4, 6, None) == 4
    assert await memory.load(files, b"file", ROOM - 4, 0, 4) == 4
    assert await memory.load(files, b"file", ROOM, 10, None) == 0
    assert await memory.load(files, b"file", ROOM + 7, 10, None) == 0
    for address, offset, length in ((ROOM - 9, 0, None), (ROOM - 3, 6, 4), (ROOM, 9, 100)):
        with pytest.raises(CallError, match="not fit") as refused:
            await memory.load(files, b"file", address, offset, length)
        assert refused.value.code == "TOO_LARGE"
        assert refused.value.fields["room"] == ROOM - address
