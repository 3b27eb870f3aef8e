"""A payload buffer that many requests write to: it is lent as long as any part of it is."""

from collections.abc import Iterator

import pytest

from memory.arena import Buffer, BufferState, Pool
from memory.guest import GuestMemory
from memory.region import Region
from vuserd.device.shared_buffer import SharedBuffer


@pytest.fixture
def pool() -> Iterator[Pool]:
    """One buffer; a test that takes it lets go of it, and so the region's mapping can go."""
    region = Region(4096)
    pool = Pool(region.view, GuestMemory().add(region), 0, 4096, 1)
    yield pool
    pool.close()
    region.close()


def state_of(buffer: Buffer) -> BufferState:
    return buffer.state


def test_its_parts_follow_each_other(pool: Pool) -> None:
    buffer = pool.take()
    first, second, third = SharedBuffer(buffer).parts(1200)
    assert first.address == buffer.address
    assert second.address == buffer.address + 1200
    third.view[:] = b"3" * 1200
    assert bytes(buffer.view[2400:3600]) == b"3" * 1200


def test_it_is_lent_while_any_part_is(pool: Pool) -> None:
    buffer = pool.take()
    first, second = SharedBuffer(buffer).parts(2048)
    first.lend()
    second.lend()
    first.reclaim()
    assert state_of(buffer) is BufferState.LENT
    second.reclaim()
    assert state_of(buffer) is BufferState.OWNED
    second.lend()
    assert state_of(buffer) is BufferState.LENT
    second.reclaim()
    buffer.give_back()
    assert state_of(buffer) is BufferState.FREE


def test_given_up_it_is_not_free_before_the_last_part_is_back(pool: Pool) -> None:
    buffer = pool.take()
    first, second = SharedBuffer(buffer).parts(2048)
    first.lend()
    second.lend()
    buffer.give_back()
    first.reclaim()
    assert state_of(buffer) is BufferState.QUARANTINED
    second.reclaim()
    assert state_of(buffer) is BufferState.FREE
