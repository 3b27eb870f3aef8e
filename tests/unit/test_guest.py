"""Guest memory: three names for each byte, and the table that gives them to the backend."""

import mmap
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from memory.guest import GuestMemory, GuestRegion
from memory.region import Region

PAGE = mmap.PAGESIZE
MIB = 1 << 20
USER_OFFSET = 1 << 60

Add = Callable[[int], GuestRegion]


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory()


@pytest.fixture
def add(memory: GuestMemory) -> Iterator[Add]:
    """Add a region of that many bytes."""
    regions: list[Region] = []

    def add_region(size: int) -> GuestRegion:
        regions.append(Region(size))
        return memory.add(regions[-1])

    yield add_region
    for region in regions:
        region.close()


class TestTranslation:
    def test_first_byte_is_at_the_regions_base(self, add: Add) -> None:
        placed = add(PAGE)
        assert placed.guest_address(0, 1) == placed.guest_base == 1 << 32
        assert placed.user_address(0, 1) == (1 << 32) + USER_OFFSET

    def test_addresses_move_with_the_offset(self, add: Add) -> None:
        placed = add(2 * PAGE)
        assert placed.guest_address(100, 10) - placed.guest_base == 100
        assert placed.user_address(100, 10) - placed.user_address(0, 1) == 100

    def test_whole_region_and_its_last_byte_have_an_address(self, add: Add) -> None:
        placed = add(PAGE)
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
        self, add: Add, offset: int, length: int
    ) -> None:
        placed = add(PAGE)
        with pytest.raises(ValueError, match=f"{length} bytes at {offset} leave the region"):
            placed.guest_address(offset, length)
        with pytest.raises(ValueError, match=f"{length} bytes at {offset} leave the region"):
            placed.user_address(offset, length)


class TestPlacement:
    def test_no_region_touches_the_next(self, add: Add) -> None:
        regions = [add(size) for size in (PAGE, MIB - PAGE, MIB, MIB + PAGE, 3 * MIB, PAGE)]
        for before, after in pairwise(regions):
            assert after.guest_base >= before.guest_base + before.region.size + PAGE

    def test_regions_are_aligned_to_a_mebibyte(self, add: Add) -> None:
        for size in (PAGE, MIB, MIB - PAGE, PAGE):
            assert add(size).guest_base % MIB == 0

    def test_no_guest_address_is_a_user_address(self, add: Add) -> None:
        regions = [add(MIB) for _ in range(3)]
        guest_end = regions[-1].guest_base + MIB
        assert guest_end < min(region.user_address(0, 1) for region in regions)

    def test_address_of_a_region_that_is_gone_is_not_given_again(
        self, memory: GuestMemory, add: Add
    ) -> None:
        first = add(PAGE)
        memory.remove(first)
        assert len(memory) == 0
        assert add(PAGE).guest_base > first.guest_base
        assert len(memory) == 1


class TestTable:
    def test_region_is_told_as_one_mapping_from_the_memfds_start(self, add: Add) -> None:
        region = add(2 * PAGE)
        told = region._replace(guest_base=0x5000).wire()
        assert told == (0x5000, 2 * PAGE, 0x5000 + USER_OFFSET, 0)
        assert told.mmap_offset == 0

    def test_regions_come_in_the_order_in_which_they_were_added(
        self, memory: GuestMemory, add: Add
    ) -> None:
        first, gone, second = add(0x2000), add(0x1000), add(0x10000)
        memory.remove(gone)
        assert list(memory) == [first, second]
        assert [region.wire() for region in memory] == [
            (1 << 32, 0x2000, (1 << 32) + USER_OFFSET, 0),
            ((1 << 32) + (2 << 20), 0x10000, (1 << 32) + (2 << 20) + USER_OFFSET, 0),
        ]
