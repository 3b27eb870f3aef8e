"""Where an open file has data: what attributes and LSEEK reveal of holes, and what they do not."""

import errno
import struct
from collections.abc import AsyncIterator

import pytest

from protocol.fuse import Opcode
from tests.fake.backend import Answer, FakeBackend, File, FuseRequest
from vuserd.errors import BackendError, FileError
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.openfile import Extent

BLOCK = 4096


@pytest.fixture
def backend() -> FakeBackend:
    sparse = File(
        bytes(BLOCK) + b"a" * BLOCK + bytes(BLOCK) + b"b" * BLOCK + bytes(BLOCK),
        data=((BLOCK, 2 * BLOCK), (3 * BLOCK, 4 * BLOCK)),
    )
    return FakeBackend(
        {
            b"sparse": sparse,
            b"full": File(b"a" * 5 * BLOCK),
            b"hole": File(bytes(5 * BLOCK), data=()),
            b"empty": File(),
            b"tail": File(bytes(BLOCK) + b"a" * 100, data=((BLOCK, BLOCK + 100),)),
        }
    )


@pytest.fixture
async def files(backend: FakeBackend) -> AsyncIterator[FileSystem]:
    async with backend.session() as session:
        yield FileSystem(session, idle_nodes=10)


async def extents(
    files: FileSystem, name: bytes, begin: int = 0, limit: int = 100
) -> tuple[list[Extent], int | None]:
    async with files.opened(name) as file:
        return await file.extents(begin, limit)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (b"sparse", [(BLOCK, BLOCK), (3 * BLOCK, BLOCK)]),
        (b"full", [(0, 5 * BLOCK)]),
        (b"hole", []),
        (b"empty", []),
        (b"tail", [(BLOCK, 100)]),
    ],
)
async def test_all_of_them(
    files: FileSystem, backend: FakeBackend, name: bytes, found: list[tuple[int, int]]
) -> None:
    assert await extents(files, name) == (found, None)
    asked = bool(backend.named(Opcode.LSEEK))
    assert asked == (name in (b"sparse", b"hole", b"tail"))  # attributes tell of the others


@pytest.mark.parametrize(
    ("begin", "found"),
    [
        (1, [(BLOCK, BLOCK), (3 * BLOCK, BLOCK)]),
        (BLOCK + 5, [(BLOCK + 5, BLOCK - 5), (3 * BLOCK, BLOCK)]),
        (2 * BLOCK, [(3 * BLOCK, BLOCK)]),
        (4 * BLOCK - 1, [(4 * BLOCK - 1, 1)]),
        (4 * BLOCK, []),
        (5 * BLOCK, []),
        (1 << 62, []),
    ],
)
async def test_from_an_offset_on(
    files: FileSystem, begin: int, found: list[tuple[int, int]]
) -> None:
    assert await extents(files, b"sparse", begin) == (found, None)


@pytest.mark.parametrize("begin", [0, 7, 5 * BLOCK - 1, 5 * BLOCK, 1 << 62])
async def test_of_a_file_without_holes(files: FileSystem, begin: int) -> None:
    rest = 5 * BLOCK - begin
    assert await extents(files, b"full", begin) == ([(begin, rest)] if rest > 0 else [], None)


async def test_some_at_a_time(files: FileSystem) -> None:
    found, following = await extents(files, b"sparse", 0, 1)
    assert found == [(BLOCK, BLOCK)]
    assert following == 2 * BLOCK
    found, following = await extents(files, b"sparse", following, 1)
    assert found == [(3 * BLOCK, BLOCK)]
    assert following == 4 * BLOCK
    assert await extents(files, b"sparse", following, 1) == ([], None)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EIO])
async def test_a_backend_or_file_system_without_lseek_has_data_everywhere(
    files: FileSystem, backend: FakeBackend, number: int
) -> None:
    backend.answer_to(Opcode.LSEEK, Answer(error=number))
    assert await extents(files, b"sparse", 5) == ([(5, 5 * BLOCK - 5)], None)


@pytest.mark.parametrize(
    ("data", "hole", "found"),
    [
        pytest.param(0, 0, [(0, 5 * BLOCK)], id="a hole that is no hole"),
        pytest.param(9, 3, [(9, 5 * BLOCK - 9)], id="a hole before the data"),
        pytest.param(1 << 63, 0, [], id="data behind the end"),
        pytest.param(5 * BLOCK, 0, [], id="data at the end"),
        pytest.param(9, 2**64 - 1, [(9, 5 * BLOCK - 9)], id="a hole behind the end"),
        pytest.param(9, None, [(9, 5 * BLOCK - 9)], id="no hole at the end"),
    ],
)
async def test_answers_that_cannot_be(
    files: FileSystem,
    backend: FakeBackend,
    data: int,
    hole: int | None,
    found: list[tuple[int, int]],
) -> None:
    def answer(request: FuseRequest) -> Answer:
        _, _, whence = struct.unpack_from("=QQI", request.body)
        place = data if whence == 3 else hole
        return Answer(error=errno.ENXIO) if place is None else Answer(struct.pack("=Q", place))

    backend.answer_to(Opcode.LSEEK, answer)
    assert await extents(files, b"sparse") == (found, None)
    assert len(backend.named(Opcode.LSEEK)) <= 2


async def test_an_answer_that_leads_back_is_no_way_back(
    files: FileSystem, backend: FakeBackend
) -> None:
    """SEEK_DATA answers with 0 for ever, SEEK_HOLE with a byte behind where it was asked."""

    def answer(request: FuseRequest) -> Answer:
        _, offset, whence = struct.unpack_from("=QQI", request.body)
        return Answer(struct.pack("=Q", 0 if whence == 3 else offset + 1))

    backend.answer_to(Opcode.LSEEK, answer)
    found, following = await extents(files, b"sparse", 0, 50)
    assert found == [(offset, 1) for offset in range(50)]
    assert following == 50


async def test_a_reply_of_another_size_ends_the_session(
    files: FileSystem, backend: FakeBackend
) -> None:
    backend.answer_to(Opcode.LSEEK, Answer(bytes(7)))
    with pytest.raises(BackendError, match="7 bytes where 8 belong"):
        await extents(files, b"sparse")
    assert files.is_lost()


async def test_blocks_that_are_untrue_hide_nothing(files: FileSystem, backend: FakeBackend) -> None:
    """ZFS and others report no blocks before a file is written back: LSEEK shows its data."""
    backend.files[b"full"] = File(b"a" * 5 * BLOCK, data=())

    def answer(request: FuseRequest) -> Answer:
        _, offset, whence = struct.unpack_from("=QQI", request.body)
        return Answer(struct.pack("=Q", offset if whence == 3 else 5 * BLOCK))

    backend.answer_to(Opcode.LSEEK, answer)
    assert await extents(files, b"full") == ([(0, 5 * BLOCK)], None)


async def test_what_is_no_regular_file_has_none(files: FileSystem, backend: FakeBackend) -> None:
    backend.files[b"folder"] = File(mode=0o040755)
    with pytest.raises(FileError):
        await extents(files, b"folder")
