"""Guest memory: three names for each byte, and the table that tells the backend of them."""

import mmap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from memory.guest import GuestMemory, GuestRegion
from memory.region import Region

PAGE = mmap.PAGESIZE
MIB = 1 << 20


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    guest_memory = GuestMemory()
    yield guest_memory
    guest_memory.close()


class TestTranslation:
    def test_first_byte_is_at_the_regions_base(self, memory: GuestMemory) -> None:
        placed = memory.add(Region(PAGE))
        assert placed.guest_address(0, 1) == placed.guest_base == 1 << 32
        assert placed.user_address(0, 1) == (1 << 32) + (1 << 44)

    def test_addresses_move_with_the_offset(self, memory: GuestMemory) -> None:
        placed = memory.add(Region(2 * PAGE))
        assert placed.guest_address(100, 10) - placed.guest_base == 100
        assert placed.user_address(100, 10) - placed.user_address(0, 1) == 100

    def test_whole_region_and_its_last_byte_have_an_address(self, memory: GuestMemory) -> None:
        placed = memory.add(Region(PAGE))
        assert placed.guest_address(0, PAGE) == placed.guest_base
        assert placed.guest_address(PAGE - 1, 1) == placed.guest_base + PAGE - 1

    @pytest.mark.parametrize(
        ("offset", "length"),
        [
            pytest.param(-1, 1, id="before the region"),
            pytest.param(0, 0, id="no bytes"),
            pytest.param(8, -1, id="fewer than none"),
            pytest.param(PAGE, 1, id="after the region"),
            pytest.param(1, PAGE, id="across its end"),
            pytest.param(0, PAGE + 1, id="more than the region"),
        ],
    )
    def test_bytes_outside_the_region_have_no_address(
        self, memory: GuestMemory, offset: int, length: int
    ) -> None:
        placed = memory.add(Region(PAGE))
        with pytest.raises(ValueError, match=f"{length} bytes at {offset} leave the region"):
            placed.guest_address(offset, length)
        with pytest.raises(ValueError, match=f"{length} bytes at {offset} leave the region"):
            placed.user_address(offset, length)


class TestPlacement:
    def test_regions_keep_the_order_in_which_they_were_added(self, memory: GuestMemory) -> None:
        first, second = memory.add(Region(PAGE)), memory.add(Region(PAGE))
        assert memory.regions == (first, second)

    def test_no_region_touches_the_next(self, memory: GuestMemory) -> None:
        sizes = (PAGE, MIB - PAGE, MIB, MIB + PAGE, 3 * MIB, PAGE)
        for size in sizes:
            memory.add(Region(size))
        for before, after in pairwise(memory.regions):
            assert after.guest_base >= before.guest_base + before.region.size + PAGE

    def test_regions_are_aligned_to_a_mebibyte(self, memory: GuestMemory) -> None:
        for size in (PAGE, MIB, MIB - PAGE, PAGE):
            assert memory.add(Region(size)).guest_base % MIB == 0

    def test_no_guest_address_is_a_user_address(self, memory: GuestMemory) -> None:
        for _ in range(3):
            memory.add(Region(MIB))
        guest_end = memory.regions[-1].guest_base + MIB
        assert guest_end < min(region.user_address(0, 1) for region in memory.regions)


class TestTable:
    def test_region_is_told_as_one_mapping_from_the_memfds_start(self) -> None:
        region = Region(2 * PAGE)
        told = GuestRegion(region, 0x5000).wire()
        assert told == (0x5000, 2 * PAGE, 0x5000 + (1 << 44), 0)
        assert told.mmap_offset == 0
        region.close()

    def test_payload_and_descriptors_are_in_the_same_order(self, memory: GuestMemory) -> None:
        first, second = memory.add(Region(0x2000)), memory.add(Region(0x10000))
        payload, descriptors = memory.table()
        assert payload == bytes.fromhex(
            "02000000 00000000"  # two regions | padding
            "0000000001000000 0020000000000000"  # 4 GiB | 8 KiB
            "0000000001100000 0000000000000000"  # 16 TiB further | from the start
            "0000100001000000 0000010000000000"  # a MiB after the first | 64 KiB
            "0000100001100000 0000000000000000"
        )
        assert descriptors == [first.region.fileno(), second.region.fileno()]

    def test_table_of_no_region_is_refused(self, memory: GuestMemory) -> None:
        with pytest.raises(ValueError, match="0 regions"):
            memory.table()

    def test_table_of_nine_regions_is_refused(self, memory: GuestMemory) -> None:
        for _ in range(9):
            memory.add(Region(PAGE))
        with pytest.raises(ValueError, match="9 regions"):
            memory.table()


class TestClose:
    def test_every_region_is_closed(self) -> None:
        memory = GuestMemory()
        regions = [Region(PAGE, "test-guest-close"), Region(PAGE, "test-guest-close")]
        for region in regions:
            memory.add(region)
        memory.close()
        memory.close()
        assert memory.regions == ()
        assert [region.fileno() for region in regions] == [-1, -1]
        assert "test-guest-close" not in Path("/proc/self/maps").read_text()
