"""A region: a memfd sized, sealed and mapped, whose pages outlive it as long as a view does."""

import errno
import fcntl
import mmap
import os
from pathlib import Path
from typing import NoReturn

import pytest

from memory.region import Region

PAGE = mmap.PAGESIZE

F_SEAL_SEAL = 0x1
F_SEAL_SHRINK = 0x2
F_SEAL_GROW = 0x4
F_SEAL_WRITE = 0x8


def mapped(name: str) -> bool:
    return f"/memfd:{name} " in Path("/proc/self/maps").read_text()


def descriptors_of(name: str) -> list[int]:
    """List the process's descriptors of the memfd; the mapping may hold one of its own."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:
            continue  # the listing's own
        if target.startswith(f"/memfd:{name} "):
            found.append(int(entry))
    return found


class TestSize:
    def test_region_is_a_zeroed_writable_mapping_of_its_size(self) -> None:
        region = Region(3 * PAGE)
        assert region.size == len(region.view) == 3 * PAGE
        assert region.view.format == "B"
        assert not region.view.readonly
        assert bytes(region.view) == bytes(3 * PAGE)
        region.close()

    @pytest.mark.parametrize("size", [-PAGE, -1, 0, 1, PAGE - 1, PAGE + 1])
    def test_size_is_a_whole_number_of_pages(self, size: int) -> None:
        with pytest.raises(ValueError, match=f"a region of {size} bytes"):
            Region(size)

    def test_what_is_written_is_seen_through_the_descriptor(self) -> None:
        region = Region(PAGE)
        region.view[7:12] = b"hello"
        assert os.pread(region.fileno(), 5, 7) == b"hello"
        os.pwrite(region.fileno(), b"world", 7)
        assert bytes(region.view[7:12]) == b"world"
        region.close()

    def test_descriptor_is_not_inherited(self) -> None:
        region = Region(PAGE)
        assert not os.get_inheritable(region.fileno())
        region.close()


class TestSeals:
    def test_size_and_seals_are_sealed_and_nothing_else(self) -> None:
        region = Region(PAGE)
        seals = fcntl.fcntl(region.fileno(), fcntl.F_GET_SEALS)
        wanted = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW
        assert seals & (wanted | F_SEAL_WRITE) == wanted
        region.close()

    @pytest.mark.parametrize("size", [0, PAGE, 3 * PAGE], ids=["to nothing", "down", "up"])
    def test_size_cannot_be_changed(self, size: int) -> None:
        region = Region(2 * PAGE)
        with pytest.raises(PermissionError):
            os.ftruncate(region.fileno(), size)
        assert os.fstat(region.fileno()).st_size == 2 * PAGE
        region.close()

    def test_write_past_the_end_does_not_grow_it(self) -> None:
        region = Region(PAGE)
        with pytest.raises(PermissionError):
            os.pwrite(region.fileno(), b"x", PAGE)
        region.close()

    def test_no_seal_can_be_added(self) -> None:
        region = Region(PAGE)
        with pytest.raises(PermissionError):
            fcntl.fcntl(region.fileno(), fcntl.F_ADD_SEALS, F_SEAL_WRITE)
        region.close()


class TestClose:
    def test_descriptor_is_closed_and_mapping_gone(self) -> None:
        region = Region(PAGE, "test-region-close")
        descriptor = region.fileno()
        assert mapped("test-region-close")
        region.close()
        assert region.fileno() == -1
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.fstat(descriptor)
        assert not mapped("test-region-close")
        assert descriptors_of("test-region-close") == []

    def test_second_close_does_nothing(self) -> None:
        region = Region(PAGE)
        descriptor = region.fileno()
        region.close()
        reused = os.open("/dev/null", os.O_RDONLY)
        if reused != descriptor:
            os.dup2(reused, descriptor, inheritable=False)
        region.close()
        os.fstat(descriptor)
        os.close(descriptor)
        if reused != descriptor:
            os.close(reused)

    def test_closed_region_has_no_bytes(self) -> None:
        region = Region(PAGE)
        region.close()
        assert len(region.view) == 0

    def test_view_outlives_the_region_and_the_mapping_goes_with_the_last_view(self) -> None:
        region = Region(2 * PAGE, "test-region-views")
        first, second = region.view[:PAGE], region.view[PAGE:]
        first[:5] = b"first"
        second[:6] = b"second"
        region.close()
        assert bytes(first[:5]) == b"first"
        first.release()
        assert mapped("test-region-views")
        assert bytes(second[:6]) == b"second"
        second.release()
        assert not mapped("test-region-views")
        assert descriptors_of("test-region-views") == []


class TestFailure:
    def test_region_that_cannot_be_mapped_leaves_nothing_open(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(descriptor: int, size: int) -> NoReturn:
            assert descriptor >= 0
            raise OSError(errno.ENOMEM, f"no room for {size} bytes")

        monkeypatch.setattr("memory.region.mmap.mmap", refuse)
        with pytest.raises(OSError, match="no room"):
            Region(PAGE, "test-region-fails")
        assert descriptors_of("test-region-fails") == []

    def test_region_larger_than_the_address_space_leaves_nothing_open(self) -> None:
        with pytest.raises(OSError, match=r"Errno"):
            Region(1 << 60, "test-region-huge")
        assert descriptors_of("test-region-huge") == []
