"""Ring and arena together against a model, with an independent device on the other side."""

import mmap
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memory.arena import ArenaExhaustedError, Buffer, BufferState, Pool
from memory.form import Form
from memory.guest import GuestMemory
from memory.region import Region
from memory.virtqueue import RingFullError, Rooms, Virtqueue
from protocol.virtio_ring import RingLayout
from tests.fake.ring_device import (
    Chain,
    DeviceMemory,
    DriverError,
    RingAddresses,
    RingDevice,
)

PAGE: Final = mmap.PAGESIZE
BUFFER_SIZE: Final = 64
REQUEST: Final = 48
REPLY: Final = 24
WRAP: Final = 0x10000


class SharedRing:
    """A ring, its rooms and a pool in one region, which is mapped once more for the device."""

    def __init__(self, num: int, base: int, buffers: int, *, replies: bool = True) -> None:
        layout = RingLayout.for_size(num)
        rooms_at = -(-layout.size // PAGE) * PAGE
        self.rooms = Rooms(rooms_at, REQUEST, REPLY if replies else 0)
        self.slots = self.rooms.count(layout)
        pool_at = rooms_at + -(-self.slots * self.rooms.size // PAGE) * PAGE
        size = pool_at + -(-buffers * BUFFER_SIZE // PAGE) * PAGE
        self.region = Region(size)
        self.placed = GuestMemory().add(self.region)
        self.queue = Virtqueue(self.region.mapping, self.placed, 0, layout, self.rooms, base)
        self.pool = Pool(self.region.view, self.placed, pool_at, BUFFER_SIZE, buffers)
        self.device_memory = DeviceMemory()
        self.device_memory.add(
            self.placed.guest_base,
            self.placed.user_address(0, size),
            memoryview(mmap.mmap(self.region.fileno(), size)),
        )
        addresses = (
            self.placed.user_address(offset, 1)
            for offset in (layout.descriptors, layout.available, layout.used)
        )
        self.device = RingDevice(self.device_memory, num, RingAddresses(*addresses), base)

    def close(self) -> None:
        self.device.close()
        self.device_memory.close()
        self.queue.close()
        self.pool.close()
        self.region.close()


class Request:
    """What the model knows of one chain."""

    def __init__(self, message: bytes, reply: int, target: Buffer | None, length: int) -> None:
        self.message = message
        self.reply = reply
        self.target = target
        self.length = length
        self.head = -1
        self.answer = b""

    @property
    def capacity(self) -> int:
        return self.reply + self.length

    def used(self) -> tuple[int, int, bytes]:
        return self.head, len(self.answer), self.answer[: self.reply]


class RingAndArena(RuleBasedStateMachine):
    """A chain goes through added, published, held, placed and shown, and is then reaped.

    Each buffer's state is kept beside it, so that a buffer which the device has and the pool gives
    away is noticed at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shared: SharedRing | None = None
        self.states: dict[Buffer, BufferState] = {}
        self.added: list[Request] = []
        self.published: list[Request] = []
        self.held: list[tuple[Request, Chain]] = []
        self.placed: list[Request] = []
        self.shown: list[Request] = []

    @initialize(
        num=st.sampled_from([2, 4, 8, 16]),
        base=st.integers(0, WRAP - 1) | st.integers(WRAP - 12, WRAP - 1),
        buffers=st.integers(1, 12),
        replies=st.booleans(),
    )
    def start(self, num: int, base: int, buffers: int, *, replies: bool) -> None:
        self.shared = SharedRing(num, base, buffers, replies=num > 2 and (replies or num == 16))
        self.base = base
        self.buffers = buffers
        self.popped = 0
        reply = self.shared.rooms.reply
        self.forms = [
            Form(b"a form's request of 32 bytes: xx", reply),
            Form(b"xx" * 13, reply // 3),
        ]
        self.aimed = Form(b"one with a target, if any", reply, has_target=reply > 0)

    @property
    def ring(self) -> SharedRing:
        assert self.shared is not None
        return self.shared

    def in_state(self, *states: BufferState) -> list[Buffer]:
        return [buffer for buffer, state in self.states.items() if state in states]

    @property
    def outstanding(self) -> list[Request]:
        held = [request for request, _ in self.held]
        return self.added + self.published + held + self.placed + self.shown

    # --- the owner of buffers ---------------------------------------------------------------------

    @rule(contents=st.binary(min_size=BUFFER_SIZE, max_size=BUFFER_SIZE))
    def take(self, contents: bytes) -> None:
        free = self.buffers - len(self.states)
        if not free:
            with pytest.raises(ArenaExhaustedError):
                self.ring.pool.take()
            return
        buffer = self.ring.pool.take()
        assert buffer not in self.states
        self.states[buffer] = BufferState.OWNED
        buffer.view[:] = contents

    @precondition(lambda self: self.in_state(BufferState.OWNED, BufferState.LENT))
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        given = self.in_state(BufferState.OWNED, BufferState.LENT)
        buffer = data.draw(st.sampled_from(given))
        buffer.give_back()
        if self.states[buffer] is BufferState.OWNED:
            del self.states[buffer]
        else:
            self.states[buffer] = BufferState.QUARANTINED

    # --- the driver -------------------------------------------------------------------------------

    @rule(
        message=st.binary(min_size=1, max_size=REQUEST),
        reply=st.integers(0, REPLY),
        length=st.integers(0, BUFFER_SIZE),
    )
    def add(self, message: bytes, reply: int, length: int) -> None:
        owned = self.in_state(BufferState.OWNED)
        reply = min(reply, self.ring.rooms.reply)
        target = owned[-1] if owned and reply and length else None
        request = Request(message, reply, target, length if target else 0)
        queue = self.ring.queue
        address = 0 if target is None else target.address
        if not queue.free:
            with pytest.raises(RingFullError):
                queue.add(message, reply, address, request.length)
            assert queue.free == 0
            return
        if target is not None:
            target.lend()
            self.states[target] = BufferState.LENT
        request.head = queue.add(message, reply, address, request.length)
        assert request.head not in {one.head for one in self.outstanding}
        self.added.append(request)

    @rule(number=st.integers(0, 2), words=st.lists(st.integers(0, (1 << 64) - 1), max_size=3))
    def take_form(self, number: int, words: list[int]) -> None:
        queue, owned = self.ring.queue, self.in_state(BufferState.OWNED)
        form = [*self.forms, self.aimed][number]
        if form.has_target and not owned:
            return
        target = owned[-1] if form.has_target else None
        if not queue.free:
            with pytest.raises(RingFullError):
                queue.take(form)
            assert queue.free == 0
            return
        request = Request(form.message, form.reply, target, 1 + len(words) if target else 0)
        request.head = queue.take(form)
        assert request.head not in {one.head for one in self.outstanding}
        if target is not None:
            target.lend()
            self.states[target] = BufferState.LENT
            queue.aim(request.head, target.address, request.length)
        # What was written before is another request's: all that differs is written each time.
        begin, changed = queue.first_words[request.head], bytearray(form.message)
        for place, word in enumerate([*words, 0, 0, 0][:3]):
            queue.words[begin + place] = word
            changed[8 * place : 8 * place + 8] = word.to_bytes(8, "little")
        request.message = bytes(changed)
        self.added.append(request)

    @rule()
    def publish(self) -> None:
        assert self.ring.queue.publish() is bool(self.added)
        self.published += self.added
        self.added.clear()

    @rule(most=st.integers(1, 4) | st.just(WRAP))
    def reap(self, most: int) -> None:
        expected, self.shown = self.shown[:most], self.shown[most:]
        assert list(self.ring.queue.reap(most)) == [request.used() for request in expected]
        for request in expected:
            if request.target is None:
                continue
            rest = request.answer[request.reply :]
            assert request.target.view[: len(rest)] == rest
            request.target.reclaim()
            if self.states[request.target] is BufferState.QUARANTINED:
                del self.states[request.target]
            else:
                self.states[request.target] = BufferState.OWNED

    # --- the device -------------------------------------------------------------------------------

    @rule()
    def device_takes(self) -> None:
        chain = self.ring.device.pop()
        if chain is None:
            assert not self.published
            return
        request = self.published.pop(0)
        assert chain.head == request.head
        assert chain.read() == request.message
        assert chain.capacity == request.capacity
        self.held.append((request, chain))
        self.popped += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data(), at_once=st.booleans())
    def device_uses(self, data: st.DataObject, at_once: bool) -> None:
        position = data.draw(st.integers(0, len(self.held) - 1), label="chain")
        request, chain = self.held.pop(position)
        request.answer = data.draw(st.binary(max_size=request.capacity), label="answer")
        self.ring.device.place(chain.head, chain.write(request.answer))
        self.placed.append(request)
        if at_once:
            self.device_shows()

    @rule()
    def device_shows(self) -> None:
        self.ring.device.publish()
        self.shown += self.placed
        self.placed.clear()

    # --- what always holds ------------------------------------------------------------------------

    @invariant()
    def slots_are_conserved(self) -> None:
        if self.shared is None:
            return
        assert self.ring.queue.free + len(self.outstanding) == self.ring.slots
        assert self.ring.queue.outstanding == len(self.outstanding)
        assert self.ring.queue.is_idle is (len(self.outstanding) == len(self.added))

    @invariant()
    def every_buffer_is_in_the_models_state(self) -> None:
        for buffer, state in self.states.items():
            assert buffer.state is state
        if self.shared is not None:
            assert self.ring.pool.available == self.buffers - len(self.states)
            assert self.ring.pool.quarantined == len(self.in_state(BufferState.QUARANTINED))

    @invariant()
    def no_buffer_is_free_while_the_device_has_it(self) -> None:
        has = [request.target for request in self.outstanding if request.target is not None]
        assert len(has) == len(set(has))
        assert set(has) == set(self.in_state(BufferState.LENT, BufferState.QUARANTINED))

    @invariant()
    def device_stands_where_it_was_led(self) -> None:
        if self.shared is not None:
            assert self.ring.device.base == (self.base + self.popped) % WRAP
            assert self.ring.device.available == len(self.published)

    def teardown(self) -> None:
        """Make the device finish, after which everything is back in its place."""
        if self.shared is None:
            return
        self.publish()
        while self.published:
            self.device_takes()
        for request, chain in self.held:
            self.ring.device.place(chain.head, 0)
            request.answer = b""
            self.placed.append(request)
        self.held.clear()
        self.device_shows()
        self.reap(WRAP)
        for buffer in list(self.states):
            buffer.give_back()
        assert self.ring.pool.available == self.buffers
        assert (self.ring.queue.free, self.ring.queue.outstanding) == (self.ring.slots, 0)
        self.shared.close()
        self.shared = None
        self.states.clear()  # Hypothesis may keep this machine, and views keep the region's memory


TestRingAndArena = RingAndArena.TestCase
TestRingAndArena.settings = settings(deadline=None, max_examples=60, stateful_step_count=50)


@contextmanager
def shared_ring(num: int, base: int) -> Iterator[SharedRing]:
    shared = SharedRing(num, base, buffers=1)
    try:
        yield shared
    finally:
        shared.close()


def laid_by_hand(num: int, *descriptors: tuple[int, int, int, int]) -> str:
    """Return what a strict device says of a chain at 0; addresses are relative to the region."""
    with shared_ring(num, base=0) as shared:
        ring = shared.region.view
        for slot, (address, length, flags, following) in enumerate(descriptors):
            ring[16 * slot : 16 * slot + 16] = b"".join(
                (
                    (shared.placed.guest_base + address).to_bytes(8, "little"),
                    length.to_bytes(4, "little"),
                    flags.to_bytes(2, "little"),
                    following.to_bytes(2, "little"),
                )
            )
        ring[16 * num + 2] = 1  # avail.idx; the ring's first place holds 0
        with pytest.raises(DriverError) as refused:
            shared.device.pop()
        return str(refused.value)


@pytest.mark.parametrize(
    ("descriptors", "complaint"),
    [
        pytest.param([(0, 0, 0, 0)], "descriptor 0 is empty", id="an empty descriptor"),
        pytest.param([(0, 8, 1, 4)], "descriptor 4 in a ring of 4", id="next outside the ring"),
        pytest.param([(0, 8, 1, 1), (0, 8, 1, 0)], "loops at descriptor 0", id="a loop"),
        pytest.param([(0, 8, 3, 1), (0, 8, 0, 0)], "readable after", id="readable after writable"),
        pytest.param([(0, 8, 4, 0)], "indirect", id="an indirect descriptor"),
        pytest.param([(0, 8, 8, 0)], "flags 0x8", id="a flag that is none"),
        pytest.param([(-1, 8, 0, 0)], "outside memory", id="before the region"),
        pytest.param([(3 * PAGE - 7, 8, 0, 0)], "outside memory", id="across the region's end"),
    ],
)
def test_device_of_these_tests_refuses(
    descriptors: list[tuple[int, int, int, int]], complaint: str
) -> None:
    assert complaint in laid_by_hand(4, *descriptors)


def test_device_of_these_tests_refuses_an_index_too_far_ahead() -> None:
    with shared_ring(4, base=0) as shared:
        shared.region.view[66] = 5
        with pytest.raises(DriverError, match=r"avail\.idx is 5 ahead in a ring of 4"):
            shared.device.pop()


def test_device_of_these_tests_refuses_a_chain_that_it_has() -> None:
    with shared_ring(4, base=0) as shared:
        shared.queue.add(b"x", 0)
        shared.queue.publish()
        assert shared.device.pop() is not None
        ring = shared.region.view
        ring[70:72] = ring[68:70]  # the same head again
        ring[66] = 2
        with pytest.raises(DriverError, match="belongs to a chain that the device has"):
            shared.device.pop()


def test_every_index_of_both_rings_is_crossed() -> None:
    base = 65_500
    rounds = WRAP // 21 + 10
    with shared_ring(64, base) as shared:
        slots = shared.slots
        crossed = 0
        for turn in range(rounds):
            heads = [shared.queue.add(b"%d" % number, 16) for number in range(slots)]
            assert shared.queue.publish()
            chains = []
            while (chain := shared.device.pop()) is not None:
                chains.append(chain)
            if turn % 2:
                chains.reverse()
                heads.reverse()
            for chain in chains:
                shared.device.push(chain, turn % 17)
            assert [used[:2] for used in shared.queue.reap()] == [
                (head, turn % 17) for head in heads
            ]
            crossed += len(chains)
        assert crossed > WRAP
        assert shared.device.base == (base + crossed) % WRAP
        assert (shared.queue.free, shared.queue.outstanding) == (slots, 0)


# --- index words are single 16-bit accesses -------------------------------------------------------
#
# Whether a store is one access cannot be seen from the thread that makes it, nor from another one
# of the same interpreter, which runs only between two of its calls. So another process maps the
# memory and looks as fast as it can, while here the index moves. With struct.pack_into(), which
# zeroes its target before it writes it, in place of the store of publish(), the first test saw 190
# to 400 false zeros in each of its runs on two processors. On a single one it can see little: when
# such a test fails it proves the fault, when it passes it proves that none was seen.

# Counts the values that differ from the one before and those that went back; no more is kept.
_WATCH_INDEX: Final = """
import ctypes, mmap, sys
descriptor, size, offset, last = map(int, sys.argv[1:])
memory = mmap.mmap(descriptor, size)
word = ctypes.c_uint16.from_buffer(memory, offset)
before, seen, back = word.value, 0, 0
print("watching", flush=True)
while before != last:
    now = word.value
    if now != before:
        seen += 1
        if now < before:
            back += 1
            if back > 1000:
                break
        before = now
print(seen, back)
"""

# Uses all chains in the order of the available ring and shows them one at a time.
_USE_CHAINS: Final = """
import ctypes, mmap, sys
descriptor, size, available, used, count = map(int, sys.argv[1:])
memory = mmap.mmap(descriptor, size)
heads = (ctypes.c_uint16 * count).from_buffer(memory, available + 4)
index = ctypes.c_uint16.from_buffer(memory, used + 2)
elements = (ctypes.c_uint32 * (2 * count)).from_buffer(memory, used + 4)
print("using", flush=True)
for place in range(count):
    elements[2 * place] = heads[place]
    elements[2 * place + 1] = place % 17
    index.value = place + 1
print("done")
"""


@contextmanager
def other_process(
    program: str, shared: SharedRing, *numbers: int
) -> Iterator[subprocess.Popen[str]]:
    """Run ``program`` with the region's descriptor, its size and ``numbers``."""
    region = shared.region
    arguments = [str(number) for number in (region.fileno(), region.size, *numbers)]
    with subprocess.Popen(
        # Without site, so that nothing is measured or traced in it.
        [sys.executable, "-I", "-S", "-c", program, *arguments],
        pass_fds=[region.fileno()],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def publish_rounds(shared: SharedRing, rounds: int, publish: Callable[[], object]) -> None:
    for _ in range(rounds):
        head = shared.queue.add(b"x", 0)
        publish()
        chain = shared.device.pop()
        assert chain is not None
        shared.device.push(chain, 0)
        assert list(shared.queue.reap()) == [(head, 0, b"")]


def test_no_other_process_sees_an_available_index_that_was_not_published() -> None:
    rounds = 50_000
    with shared_ring(4, base=1) as shared:
        offset = shared.queue.layout.available + 2
        with other_process(_WATCH_INDEX, shared, offset, 1 + rounds) as watcher:
            assert watcher.stdout is not None
            assert watcher.stdout.readline() == "watching\n"
            publish_rounds(shared, rounds, shared.queue.publish)
            seen, back = map(int, watcher.stdout.readline().split())
    # The index never wraps and never stands at 0: a false zero or a torn word goes back.
    assert back == 0
    assert 1 <= seen <= rounds


@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the other process has no fence between its stores"
)
def test_used_index_of_another_process_is_read_whole_and_elements_after_it() -> None:
    with shared_ring(32_768, base=0) as shared:
        layout = shared.queue.layout
        heads = [shared.queue.add(b"x", 16) for _ in range(shared.slots)]
        shared.queue.publish()
        expected = iter(enumerate(heads))
        numbers = (layout.available, layout.used, shared.slots)
        with other_process(_USE_CHAINS, shared, *numbers) as user:
            assert user.stdout is not None
            assert user.stdout.readline() == "using\n"
            while shared.queue.outstanding:
                ended = user.poll() is not None
                for head, length, _ in shared.queue.reap():
                    place, used = next(expected)
                    assert (head, length) == (used, place % 17)
                assert not ended or not shared.queue.outstanding
            assert user.stdout.readline() == "done\n"
        assert next(expected, None) is None
