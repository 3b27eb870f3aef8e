"""Buffers and their pool: every arrow of the drawing in memory/arena.py, and those it lacks."""

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memory.arena import ArenaExhaustedError, Buffer, BufferState, Pool
from memory.guest import GuestMemory, GuestRegion
from memory.region import Region

PAGE = mmap.PAGESIZE


@pytest.fixture
def region() -> Iterator[Region]:
    region = Region(4 * PAGE)
    yield region
    region.close()


@pytest.fixture
def placed(region: Region) -> GuestRegion:
    return GuestMemory().add(region)


@pytest.fixture
def pool(region: Region, placed: GuestRegion) -> Iterator[Pool]:
    """Three buffers of 1,024 bytes, from the region's second page on."""
    pool = Pool(region.view, placed, PAGE, 1024, 3)
    yield pool
    pool.close()


def in_state(pool: Pool, state: BufferState) -> Buffer:
    buffer = pool.take()
    if state is BufferState.FREE:
        buffer.give_back()
    elif state is not BufferState.OWNED:
        buffer.lend()
        if state is BufferState.QUARANTINED:
            buffer.give_back()
    assert buffer.state is state
    return buffer


class TestBuffers:
    def test_buffer_is_bytes_of_the_region_with_their_guest_address(
        self, pool: Pool, region: Region, placed: GuestRegion
    ) -> None:
        buffer = pool.take()
        assert buffer.size == len(buffer.view) == pool.buffer_size == 1024
        assert buffer.address == placed.guest_address(PAGE, 1024)
        buffer.view[:4] = b"here"
        assert bytes(region.view[PAGE : PAGE + 4]) == b"here"

    def test_buffers_do_not_overlap(self, pool: Pool, placed: GuestRegion) -> None:
        addresses = sorted(pool.take().address for _ in range(3))
        assert addresses == [placed.guest_base + PAGE + 1024 * index for index in range(3)]

    @pytest.mark.parametrize(
        ("offset", "size", "count"),
        [
            pytest.param(-1024, 1024, 1, id="before the region"),
            pytest.param(0, 1024, 17, id="one more than fits"),
            pytest.param(4 * PAGE, 1024, 1, id="after the region"),
            pytest.param(0, 5 * PAGE, 1, id="a buffer larger than the region"),
        ],
    )
    def test_pool_that_leaves_the_region_is_refused(
        self, region: Region, placed: GuestRegion, offset: int, size: int, count: int
    ) -> None:
        with pytest.raises(ValueError, match="leave the region"):
            Pool(region.view, placed, offset, size, count)

    def test_pool_may_fill_the_region(self, region: Region, placed: GuestRegion) -> None:
        pool = Pool(region.view, placed, 0, 1024, 16)
        assert pool.available == 16
        pool.close()


class TestStates:
    def test_taken_buffer_is_owned(self, pool: Pool) -> None:
        buffer = pool.take()
        assert buffer.state is BufferState.OWNED
        assert pool.available == 2

    def test_owned_buffer_given_back_is_free(self, pool: Pool) -> None:
        buffer = in_state(pool, BufferState.OWNED)
        buffer.give_back()
        assert buffer.state is BufferState.FREE
        assert pool.available == 3

    def test_owned_buffer_can_be_lent(self, pool: Pool) -> None:
        buffer = in_state(pool, BufferState.OWNED)
        buffer.lend()
        assert buffer.state is BufferState.LENT

    def test_reclaimed_buffer_is_owned_again(self, pool: Pool) -> None:
        buffer = in_state(pool, BufferState.LENT)
        buffer.reclaim()
        assert buffer.state is BufferState.OWNED
        assert pool.available == 2

    def test_lent_buffer_given_back_is_in_quarantine(self, pool: Pool) -> None:
        buffer = in_state(pool, BufferState.LENT)
        buffer.give_back()
        assert buffer.state is BufferState.QUARANTINED
        assert pool.available == 2

    def test_buffer_in_quarantine_is_free_once_reclaimed(self, pool: Pool) -> None:
        buffer = in_state(pool, BufferState.QUARANTINED)
        buffer.reclaim()
        assert buffer.state is BufferState.FREE
        assert pool.available == 3

    @pytest.mark.parametrize(
        ("state", "step"),
        [
            pytest.param(BufferState.FREE, Buffer.lend, id="a free buffer is not lent"),
            pytest.param(BufferState.FREE, Buffer.reclaim, id="a free buffer is not reclaimed"),
            pytest.param(BufferState.FREE, Buffer.give_back, id="a free buffer is not given back"),
            pytest.param(BufferState.OWNED, Buffer.reclaim, id="an owned one is not reclaimed"),
            pytest.param(BufferState.LENT, Buffer.lend, id="a lent one is not lent again"),
            pytest.param(BufferState.QUARANTINED, Buffer.lend, id="one in quarantine is not lent"),
            pytest.param(
                BufferState.QUARANTINED,
                Buffer.give_back,
                id="one in quarantine is not given back again",
            ),
        ],
    )
    def test_step_that_the_picture_lacks_is_refused_and_changes_nothing(
        self, pool: Pool, state: BufferState, step: Callable[[Buffer], None]
    ) -> None:
        buffer = in_state(pool, state)
        available = pool.available
        with pytest.raises(ValueError, match=f"a buffer that is {state.name}"):
            step(buffer)
        assert (buffer.state, pool.available) == (state, available)


class TestPool:
    def test_buffer_given_back_last_is_taken_first(self, pool: Pool) -> None:
        first, second, third = (pool.take() for _ in range(3))
        second.give_back()
        third.give_back()
        first.give_back()
        assert [pool.take() for _ in range(3)] == [first, third, second]

    def test_empty_pool_says_so_until_a_buffer_comes_back(self, pool: Pool) -> None:
        buffers = [pool.take() for _ in range(3)]
        with pytest.raises(ArenaExhaustedError, match="all 3 buffers of 1024"):
            pool.take()
        buffers[0].lend()
        buffers[0].give_back()
        with pytest.raises(ArenaExhaustedError):
            pool.take()
        buffers[0].reclaim()
        assert pool.take() is buffers[0]

    def test_whoever_waits_is_told_of_each_buffer_that_becomes_free(self, pool: Pool) -> None:
        told: list[int] = []
        pool.on_free = lambda: told.append(pool.available)
        owned, lent, quarantined = (pool.take() for _ in range(3))
        lent.lend()
        quarantined.lend()
        quarantined.give_back()
        assert told == []
        owned.give_back()
        quarantined.reclaim()
        lent.reclaim()
        assert told == [1, 2]
        lent.give_back()
        assert told == [1, 2, 3]

    def test_whoever_waits_may_take_the_buffer_at_once(self, pool: Pool) -> None:
        buffers = [pool.take() for _ in range(3)]
        taken: list[Buffer] = []
        pool.on_free = lambda: taken.append(pool.take())
        buffers[1].give_back()
        assert taken == [buffers[1]]


class TestClose:
    def test_closed_pool_has_no_buffers(self, pool: Pool) -> None:
        pool.close()
        assert pool.available == 0
        with pytest.raises(ArenaExhaustedError):
            pool.take()

    @pytest.mark.parametrize(
        "state", [BufferState.OWNED, BufferState.LENT, BufferState.QUARANTINED]
    )
    def test_buffer_that_was_out_ends_free_but_not_in_the_pool(
        self, pool: Pool, state: BufferState
    ) -> None:
        buffer = in_state(pool, state)
        told: list[None] = []
        pool.on_free = lambda: told.append(None)
        pool.close()
        if state is not BufferState.OWNED:
            buffer.reclaim()
        if state is not BufferState.QUARANTINED:
            buffer.give_back()
        assert buffer.state is BufferState.FREE
        assert pool.available == 0
        assert told == []

    def test_mapping_goes_with_the_last_buffer_that_was_out(self) -> None:
        name = "test-arena-last"
        region = Region(PAGE, name)
        pool = Pool(region.view, GuestMemory().add(region), 0, 1024, 4)
        buffer = pool.take()
        buffer.view[:4] = b"kept"
        pool.close()
        region.close()
        assert f"/memfd:{name} " in Path("/proc/self/maps").read_text()
        assert bytes(buffer.view[:4]) == b"kept"
        buffer.give_back()
        del buffer
        assert f"/memfd:{name} " not in Path("/proc/self/maps").read_text()
