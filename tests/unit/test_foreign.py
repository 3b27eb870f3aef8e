"""Memory of clients: what is accepted, what is refused, and that no descriptor leaks."""

import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from memory.foreign import ForeignRegion, UnfitMemoryError

SIZE = 1 << 20
FUTURE_WRITE = 0x10


def memfd(flags: int = os.MFD_ALLOW_SEALING, size: int = SIZE, seals: int = 0) -> int:
    descriptor = os.memfd_create("rig", os.MFD_CLOEXEC | flags)
    os.ftruncate(descriptor, size)
    if seals:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def read_only() -> int:
    descriptor = memfd(seals=fcntl.F_SEAL_SHRINK)
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
    finally:
        os.close(descriptor)


def pipe() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


@pytest.fixture(autouse=True)
def _no_descriptor_is_lost() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("before", [0, fcntl.F_SEAL_SHRINK])
def test_a_memfd_is_sealed_against_shrinking_for_good(before: int) -> None:
    region = ForeignRegion(memfd(seals=before), SIZE)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    assert fcntl.fcntl(region.fileno(), fcntl.F_GET_SEALS) == seals
    with pytest.raises(PermissionError):
        os.ftruncate(region.fileno(), 0)
    os.ftruncate(region.fileno(), 2 * SIZE)  # growing harms nobody
    region.close()
    region.close()
    assert region.fileno() == -1


@pytest.mark.parametrize("seal", [fcntl.F_SEAL_WRITE, FUTURE_WRITE])
def test_nobody_seals_it_against_the_backend_later(seal: int) -> None:
    """A backend that then has to map it could not, and ends."""
    descriptor = memfd()
    region = ForeignRegion(os.dup(descriptor), SIZE)
    with pytest.raises(PermissionError):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seal)
    mmap.mmap(descriptor, SIZE).close()
    region.close()
    os.close(descriptor)


def test_memory_is_attached_again_with_the_seals_that_it_has() -> None:
    descriptor = memfd()
    for _ in range(2):
        ForeignRegion(os.dup(descriptor), SIZE).close()
    os.close(descriptor)


def test_a_part_of_a_memfd_is_enough() -> None:
    region = ForeignRegion(memfd(), SIZE // 2)
    assert region.size == SIZE // 2
    region.close()


def test_a_memfd_that_cannot_shrink_anyway_is_taken() -> None:
    ForeignRegion(memfd(seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL), SIZE).close()


def test_memory_is_known_by_its_inode() -> None:
    descriptor = memfd()
    one, same, other = (
        ForeignRegion(os.dup(descriptor), SIZE),
        ForeignRegion(os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR), SIZE),
        ForeignRegion(memfd(), SIZE),
    )
    assert one.identity == same.identity != other.identity
    for region in (one, same, other):
        region.close()
    os.close(descriptor)


@pytest.mark.parametrize(
    ("make", "size", "words"),
    [
        (pipe, SIZE, "no memfd"),
        (lambda: os.open("/", os.O_RDONLY), SIZE, "no memfd"),
        (lambda: os.open("/dev/null", os.O_RDWR), SIZE, "no memfd"),
        (read_only, SIZE, "not open for reading and writing"),
        (lambda: memfd(seals=fcntl.F_SEAL_WRITE), SIZE, "sealed against writing"),
        (lambda: memfd(seals=FUTURE_WRITE), SIZE, "sealed against writing"),
        (lambda: memfd(flags=0), SIZE, "cannot be sealed"),
        (lambda: memfd(seals=fcntl.F_SEAL_SEAL), SIZE, "cannot be sealed"),
        (memfd, SIZE + 4096, "the memfd has 1048576 bytes"),
        (memfd, SIZE - 1, "not a whole number of pages"),
        (memfd, 0, "not a whole number of pages"),
    ],
)
def test_unfit_memory_is_refused_and_closed(make: Callable[[], int], size: int, words: str) -> None:
    with pytest.raises(UnfitMemoryError, match=words):
        ForeignRegion(make(), size)


def test_pages_that_memory_lacks_are_counted() -> None:
    descriptor = memfd()
    region = ForeignRegion(descriptor, SIZE)
    assert region.unallocated == SIZE
    os.pwrite(descriptor, b"first", 0)
    assert region.unallocated == SIZE - mmap.PAGESIZE
    os.posix_fallocate(descriptor, 0, SIZE)
    assert region.unallocated == 0
    region.close()


def test_pages_behind_what_is_used_do_not_count() -> None:
    descriptor = memfd(size=2 * SIZE)
    region = ForeignRegion(descriptor, SIZE)
    os.posix_fallocate(descriptor, SIZE, SIZE)
    assert region.unallocated == SIZE
    os.posix_fallocate(descriptor, 0, SIZE // 2)
    assert region.unallocated == SIZE // 2
    os.posix_fallocate(descriptor, 0, 2 * SIZE)
    assert region.unallocated == 0
    region.close()


def test_memory_in_transparent_huge_pages_need_not_be_whole_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where shared memory may be in such pages, ``st_blksize`` is theirs."""
    status = SimpleNamespace(st_dev=1, st_ino=2, st_size=5 << 20, st_blocks=0, st_blksize=2 << 20)
    monkeypatch.setattr(os, "fstat", lambda _: status)
    region = ForeignRegion(memfd(size=5 << 20), 5 << 20)
    assert region.unallocated == 5 << 20
    region.close()


def test_huge_pages_are_set_aside_already() -> None:
    try:
        descriptor = memfd(os.MFD_HUGETLB | os.MFD_ALLOW_SEALING, size=0)
    except OSError:
        pytest.skip("no memfd of huge pages can be made on this machine")
    page = os.fstat(descriptor).st_blksize
    os.ftruncate(descriptor, page)
    region = ForeignRegion(descriptor, page)
    assert region.unallocated == 0
    region.close()
