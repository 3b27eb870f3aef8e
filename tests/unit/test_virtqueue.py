"""The driver's side of the split ring: its bytes in memory, and every check on the used ring.

A ring of 16 lies at 64 of a region (VIRTIO 1.2, section 2.7), which the tests write and read by
hand; offsets are the ring's own::

      0  descriptors: addr u64 | len u32 | flags u16 | next u16, 16 bytes each
    256  available:   flags u16 | idx u16 | ring u16 * 16 | used_event u16
    296  used:        flags u16 | idx u16 | (id u32 | len u32) * 16 | avail_event u16

Its five slots have their rooms from 1024 of the region on: 64 bytes of request and 48 of reply.
"""

import mmap
from typing import Final

import pytest

from memory.form import Form
from memory.guest import GuestRegion
from memory.virtqueue import RingFullError, Rooms, Used, Virtqueue
from protocol import MalformedError
from protocol.virtio_ring import RingLayout

SIZE: Final = 430
RING: Final = 64
ROOMS: Final = 1024
GUEST: Final = 0x1_0000_0000
TARGET: Final = 0x1_0010_0000
SLOTS: Final = 5


class Shared:
    size = mmap.PAGESIZE

    def fileno(self) -> int:
        return -1


class Ring:
    """A ring of 16, its queue and its raw bytes."""

    def __init__(self, base: int = 0, rubbish: int = 0, *, replies: bool = True) -> None:
        self.memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.memory[:] = bytes([rubbish]) * mmap.PAGESIZE
        self.rooms = Rooms(ROOMS, 64, 48 if replies else 0)
        placed = GuestRegion(Shared(), GUEST)
        layout = RingLayout.for_size(16)
        self.queue = Virtqueue(self.memory, placed, RING, layout, self.rooms, base)

    def add(self, message: bytes = b"request", reply: int = 16, length: int = 0) -> int:
        return self.queue.add(message, reply, TARGET, length)

    def read(self, at: int, size: int) -> bytes:
        return self.memory[RING + at : RING + at + size]

    def write(self, at: int, content: bytes) -> None:
        self.memory[RING + at : RING + at + len(content)] = content

    @property
    def whole(self) -> bytes:
        return self.read(0, SIZE)

    def chain(self, head: int) -> list[str]:
        """Return the descriptors of a chain as they stand in memory, from the head on."""
        records: list[str] = []
        slot = head
        while len(records) <= 16:
            record = self.read(16 * slot, 16)
            records.append(record.hex())
            if not record[12] & 1:
                break
            slot = int.from_bytes(record[14:16], "little")
        return records

    @property
    def available_index(self) -> str:
        return self.read(258, 2).hex()

    def available(self, place: int) -> int:
        return int.from_bytes(self.read(260 + 2 * place, 2), "little")

    def use(self, position: int, head: int, length: int, index: int | None = None) -> None:
        """Write the used element at ``position``, and used.idx where one is told."""
        self.write(300 + 8 * position, head.to_bytes(4, "little") + length.to_bytes(4, "little"))
        if index is not None:
            self.set_used_index(index)

    def set_used_index(self, index: int) -> None:
        self.write(298, index.to_bytes(2, "little"))

    def answer(self, head: int, reply: bytes) -> None:
        """Write what a device answers into a slot's room."""
        at = ROOMS + head // 3 * self.rooms.size + 64
        self.memory[at : at + len(reply)] = reply

    def reap(self) -> list[Used]:
        return list(self.queue.reap())


class TestNewRing:
    def test_memory_is_zeroed_but_for_where_messages_lie(self) -> None:
        ring = Ring(rubbish=0xFF)
        assert ring.read(256, SIZE - 256) == bytes(SIZE - 256)
        for descriptor in range(16):
            assert ring.read(16 * descriptor + 8, 8) == bytes(8)
        assert ring.read(-1, 1) == ring.read(SIZE, 1) == b"\xff"

    def test_addresses_of_requests_and_replies_are_laid_once(self) -> None:
        ring = Ring()
        for slot in range(SLOTS):
            room = GUEST + ROOMS + 112 * slot
            assert ring.read(48 * slot, 8) == room.to_bytes(8, "little")
            assert ring.read(48 * slot + 16, 8) == (room + 64).to_bytes(8, "little")
        assert ring.read(240, 16) == bytes(16)  # one descriptor is left over

    def test_queue_without_replies_has_a_slot_a_descriptor(self) -> None:
        ring = Ring(replies=False)
        assert (ring.queue.free, ring.queue.chain) == (16, 1)
        for slot in range(16):
            room = GUEST + ROOMS + 64 * slot
            assert ring.read(16 * slot, 8) == room.to_bytes(8, "little")

    def test_both_indices_begin_at_the_base(self) -> None:
        ring = Ring(base=0x1234, rubbish=0xFF)
        assert ring.read(256, 4) == bytes.fromhex("0000 3412")
        assert ring.read(296, 4) == bytes.fromhex("0000 3412")
        assert sum(ring.read(256, SIZE - 256)) == 2 * (0x12 + 0x34)

    def test_base_is_0_where_none_is_told(self) -> None:
        placed = GuestRegion(Shared(), GUEST)
        memory = mmap.mmap(-1, mmap.PAGESIZE)
        queue = Virtqueue(memory, placed, 0, RingLayout.for_size(16), Rooms(ROOMS, 8, 8))
        assert memory[256:SIZE] == bytes(SIZE - 256)
        assert queue.reaped == 0

    @pytest.mark.parametrize(
        ("ring", "rooms"),
        [
            pytest.param(mmap.PAGESIZE - SIZE + 1, ROOMS, id="the ring"),
            pytest.param(0, mmap.PAGESIZE - SLOTS * 112 + 1, id="a room"),
            pytest.param(-1, ROOMS, id="the ring begins before it"),
        ],
    )
    def test_nothing_leaves_the_region(self, ring: int, rooms: int) -> None:
        placed = GuestRegion(Shared(), GUEST)
        with pytest.raises(ValueError, match="leave the region"):
            Virtqueue(
                mmap.mmap(-1, mmap.PAGESIZE),
                placed,
                ring,
                RingLayout.for_size(16),
                Rooms(rooms, 64, 48),
            )

    def test_ring_and_rooms_may_fill_the_region(self) -> None:
        size = -(-SIZE // 16) * 16 + SLOTS * 112
        shared = Shared()
        shared.size = size
        memory = mmap.mmap(-1, size)
        layout = RingLayout.for_size(16)
        Virtqueue(memory, GuestRegion(shared, GUEST), 0, layout, Rooms(432, 64, 48)).close()
        memory.close()

    def test_everything_is_free_and_nothing_was_used(self) -> None:
        ring = Ring()
        assert (ring.queue.free, ring.queue.outstanding) == (SLOTS, 0)
        assert ring.queue.is_idle
        assert ring.reap() == []


class TestChains:
    """Each descriptor: addr | len | flags | next, as it stands in memory. The first slot is 0."""

    def test_request_with_a_reply(self) -> None:
        ring = Ring()
        assert ring.add(b"a request", reply=24) == 0
        assert ring.chain(0) == [
            "00040000010000000900000001000100",  # NEXT
            "40040000010000001800000002000000",  # WRITE
        ]
        assert ring.memory[ROOMS : ROOMS + 9] == b"a request"

    def test_request_with_a_target(self) -> None:
        ring = Ring()
        ring.add()
        assert ring.add(b"read", length=0x1234) == 3
        assert ring.chain(3) == [
            "70040000010000000400000001000400",  # NEXT
            "b0040000010000001000000003000500",  # NEXT and WRITE
            "00001000010000003412000002000000",  # WRITE, the last
        ]

    def test_request_without_a_reply(self) -> None:
        ring = Ring(replies=False)
        assert [ring.add(b"forget", reply=0), ring.add(b"more", reply=0)] == [0, 1]
        assert ring.chain(0) == ["00040000010000000600000000000000"]
        assert ring.chain(1) == ["40040000010000000400000000000000"]
        assert ring.memory[ROOMS + 64 : ROOMS + 68] == b"more"

    def test_request_without_a_reply_in_a_slot_that_could_have_one(self) -> None:
        ring = Ring()
        assert ring.chain(ring.add(b"forget", reply=0)) == ["00040000010000000600000000000000"]

    def test_slot_serves_for_each_kind_in_turn(self) -> None:
        ring = Ring()
        for turn, (reply, length) in enumerate(((16, 100), (48, 0), (0, 0), (16, 1), (20, 0))):
            assert ring.add(b"x" * (turn + 1), reply, length) == 0
            chain = ring.chain(0)
            assert len(chain) == (1 if not reply else 3 if length else 2)
            assert [int(record[16:18], 16) for record in chain] == [
                size for size in (turn + 1, reply, length) if size
            ]
            ring.queue.publish()
            ring.use(turn, 0, reply, index=turn + 1)
            assert [head for head, _, _ in ring.reap()] == [0]

    def test_longest_parts(self) -> None:
        ring = Ring()
        head = ring.add(b"x" * 64, reply=48, length=0xFFFF_FFFF)
        assert [record[16:24] for record in ring.chain(head)] == ["40000000", "30000000", "f" * 8]

    def test_free_and_outstanding_are_counted(self) -> None:
        ring = Ring()
        for count in range(1, SLOTS + 1):
            assert ring.add() == 3 * (count - 1)
            assert (ring.queue.free, ring.queue.outstanding) == (SLOTS - count, count)
        assert ring.queue.is_idle
        ring.queue.publish()
        assert not ring.queue.is_idle

    @pytest.mark.parametrize(
        ("size", "reply", "length"),
        [
            pytest.param(0, 16, 0, id="no request"),
            pytest.param(65, 16, 0, id="a request longer than its room"),
            pytest.param(8, 49, 0, id="a reply longer than its room"),
            pytest.param(8, -1, 0, id="a reply of less than nothing"),
            pytest.param(8, 0, 8, id="a target without a header"),
            pytest.param(8, 16, 1 << 32, id="a target of 33 bits"),
            pytest.param(8, 16, -1, id="a target of less than nothing"),
        ],
    )
    def test_chain_that_kills_backends_is_refused(self, size: int, reply: int, length: int) -> None:
        ring = Ring()
        before = ring.whole
        with pytest.raises(
            ValueError, match=rf" of ({size}|{length}) bytes with a reply of {reply}"
        ):
            ring.add(b"x" * size, reply, length)
        assert ring.whole == before
        assert (ring.queue.free, ring.queue.outstanding) == (SLOTS, 0)

    def test_reply_is_refused_where_none_has_a_room(self) -> None:
        ring = Ring(replies=False)
        with pytest.raises(ValueError, match="with a reply of 16 bytes"):
            ring.add()

    @pytest.mark.parametrize("target", [-1, 1 << 64])
    def test_target_that_no_descriptor_holds_changes_nothing(self, target: int) -> None:
        ring = Ring()
        with pytest.raises(ValueError, match="invalid value"):
            ring.queue.add(b"read", 16, target, 16)
        assert (ring.queue.free, ring.queue.outstanding) == (SLOTS, 0)
        assert ring.queue.publish() is False

    def test_full_ring_takes_nothing(self) -> None:
        ring = Ring()
        for _ in range(SLOTS):
            ring.add()
        before = ring.memory[:]
        with pytest.raises(RingFullError, match="no slot is free"):
            ring.add(b"one more")
        assert ring.memory[:] == before
        assert ring.queue.outstanding == SLOTS


class TestPublish:
    def test_device_sees_nothing_before(self) -> None:
        ring = Ring()
        ring.add()
        assert ring.available_index == "0000"

    def test_all_chains_added_are_shown_at_once(self) -> None:
        ring = Ring()
        heads = [ring.add(), ring.add()]
        assert ring.queue.publish() is True
        assert ring.available_index == "0200"
        assert [ring.available(0), ring.available(1)] == heads == [0, 3]
        assert ring.read(264, 32) == bytes(32)

    def test_nothing_new_needs_no_kick(self) -> None:
        ring = Ring()
        assert ring.queue.publish() is False
        ring.add()
        assert ring.queue.publish() is True
        assert ring.queue.publish() is False
        assert ring.available_index == "0100"

    def test_flags_stay_0_and_the_devices_are_not_read(self) -> None:
        ring = Ring()
        ring.write(296, b"\x01\x00")  # VIRTQ_USED_F_NO_NOTIFY
        ring.add()
        assert ring.queue.publish() is True
        assert ring.read(256, 2) == b"\0\0"
        assert ring.read(292, 2) == b"\0\0"

    @pytest.mark.parametrize("base", [1, 5, 8, 15])
    def test_whole_ring_at_once_from_any_place_on(self, base: int) -> None:
        ring = Ring(base, replies=False)
        heads = [ring.add(reply=0) for _ in range(16)]
        assert ring.queue.publish() is True
        assert [ring.available((base + place) % 16) for place in range(16)] == heads
        assert ring.read(292, 2) == b"\0\0"

    def test_index_wraps_at_65536_and_the_ring_at_its_size(self) -> None:
        ring = Ring(base=65535)
        heads = [ring.add(), ring.add()]
        assert ring.queue.publish() is True
        assert ring.available_index == "0100"
        # 65535 is place 15 of 16, and 0 is place 0
        assert [ring.available(15), ring.available(0)] == heads

    def test_index_of_65535_is_followed_by_0(self) -> None:
        ring = Ring(base=65534)
        ring.add()
        ring.queue.publish()
        assert ring.available_index == "ffff"
        ring.add()
        ring.queue.publish()
        assert ring.available_index == "0000"


class TestReap:
    def test_slot_length_and_reply_of_a_used_chain(self) -> None:
        ring = Ring()
        head = ring.add(reply=48)
        ring.queue.publish()
        assert ring.reap() == []
        ring.answer(head, b"twenty bytes, it is, and more")
        ring.use(0, head, length=20, index=1)
        assert ring.reap() == [(head, 20, b"twenty bytes, it is,")]
        assert (ring.queue.free, ring.queue.outstanding, ring.queue.reaped) == (SLOTS, 0, 1)
        assert ring.queue.is_idle
        assert ring.reap() == []

    @pytest.mark.parametrize("length", [0, 1, 31, 32])
    def test_any_length_up_to_the_writable_bytes(self, length: int) -> None:
        ring = Ring()
        head = ring.add(reply=32)
        ring.queue.publish()
        ring.answer(head, b"x" * 32)
        ring.use(0, head, length, index=1)
        assert ring.reap() == [(head, length, b"x" * length)]

    @pytest.mark.parametrize("length", [0, 15, 16, 17, 1016])
    def test_of_a_target_only_the_header_is_the_reply(self, length: int) -> None:
        ring = Ring()
        head = ring.add(reply=16, length=1000)
        ring.queue.publish()
        ring.answer(head, b"y" * 32)
        ring.use(0, head, length, index=1)
        assert ring.reap() == [(head, length, b"y" * min(length, 16))]

    def test_chains_come_back_in_the_devices_order(self) -> None:
        ring = Ring()
        first, second, third, fourth = (ring.add(reply=reply) for reply in (16, 17, 18, 19))
        ring.queue.publish()
        for position, head in enumerate((third, first, fourth)):
            ring.use(position, head, 0)
        ring.set_used_index(3)
        assert ring.reap() == [(third, 0, b""), (first, 0, b""), (fourth, 0, b"")]
        assert (ring.queue.free, ring.queue.outstanding) == (SLOTS - 1, 1)
        ring.use(3, second, length=0, index=4)
        assert ring.reap() == [(second, 0, b"")]

    def test_no_more_than_asked_for(self) -> None:
        ring = Ring(base=14)
        heads = [ring.add() for _ in range(5)]
        ring.queue.publish()
        for position, head in enumerate(heads):
            ring.use((14 + position) % 16, head, 0)
        ring.set_used_index(14 + 5)
        assert [head for head, _, _ in ring.queue.reap(1)] == heads[:1]
        assert [head for head, _, _ in ring.queue.reap(3)] == heads[1:4]
        assert (ring.queue.free, ring.queue.outstanding) == (4, 1)
        assert [head for head, _, _ in ring.queue.reap(3)] == heads[4:]

    def test_slot_is_free_once_its_reply_was_taken(self) -> None:
        """While it is looked at, no other request has its room."""
        ring = Ring()
        heads = [ring.add() for _ in range(SLOTS)]
        ring.queue.publish()
        for position, head in enumerate(heads[:2]):
            ring.use(position, head, 16)
        ring.set_used_index(2)
        reaped = ring.queue.reap()
        assert next(reaped)[0] == heads[0]
        assert (ring.queue.free, ring.queue.outstanding) == (0, SLOTS - 1)
        assert next(reaped)[0] == heads[1]
        assert ring.queue.free == 1
        assert ring.add() == heads[0]
        assert next(reaped, None) is None
        assert ring.queue.free == 1

    def test_slot_of_a_used_chain_serves_again(self) -> None:
        ring = Ring()
        ring.add()
        for turn in range(20):
            head = ring.add(b"turn %d" % turn, length=turn + 1)
            assert head == 3
            assert ring.memory[ROOMS + 112 :].startswith(b"turn %d" % turn)
            ring.queue.publish()
            ring.use(turn % 16, head, length=16, index=turn + 1)
            assert [used[:2] for used in ring.reap()] == [(head, 16)]
            assert ring.queue.free == SLOTS - 1

    def test_what_the_device_wrote_over_the_chain_does_not_matter(self) -> None:
        ring = Ring()
        head = ring.add(reply=16)
        ring.queue.publish()
        ring.write(0, b"\xff" * 294)  # descriptors and the available ring
        ring.use(0, head, length=16, index=1)
        assert [used[:2] for used in ring.reap()] == [(head, 16)]
        assert ring.queue.free == SLOTS

    def test_used_index_wraps_at_65536_and_the_ring_at_its_size(self) -> None:
        ring = Ring(base=65535)
        first, second = ring.add(), ring.add()
        ring.queue.publish()
        ring.use(15, second, length=0)
        ring.use(0, first, length=0, index=1)
        assert [head for head, _, _ in ring.reap()] == [second, first]
        assert ring.queue.reaped == 1

    def test_last_place_of_the_ring_is_read_alone(self) -> None:
        ring = Ring(base=15)
        head = ring.add()
        ring.queue.publish()
        ring.use(15, head, length=0, index=16)
        ring.use(0, 77, 77)
        assert ring.reap() == [(head, 0, b"")]

    def test_chain_added_while_reaping_does_not_disturb(self) -> None:
        ring = Ring()
        heads = [ring.add() for _ in range(SLOTS)]
        ring.queue.publish()
        for position, head in enumerate(heads):
            ring.use(position, head, length=0, index=position + 1)
        taken, added = [], []
        for head, _, _ in ring.queue.reap():
            taken.append(head)
            if ring.queue.free:
                added.append(ring.add())
        assert taken == heads
        assert added == heads[:-1]
        assert (ring.queue.free, ring.queue.outstanding) == (1, 4)


class TestForms:
    """Slots that keep a request of which some words change."""

    def test_slot_has_the_request_and_its_chain(self) -> None:
        ring = Ring()
        head = ring.queue.take(Form(b"sixteen bytes...", 24))
        assert ring.memory[ROOMS : ROOMS + 16] == b"sixteen bytes..."
        assert [record[16:] for record in ring.chain(head)] == [
            "1000000001000100",
            "1800000002000000",
        ]
        assert (ring.queue.free, ring.queue.outstanding) == (SLOTS - 1, 1)

    def test_target_is_told_of_each_request(self) -> None:
        ring, form = Ring(), Form(b"sixteen bytes...", 16, has_target=True)
        for turn, length in enumerate((1, 77, 0xFFFF_FFFF)):
            head = ring.queue.take(form)
            assert head == 0
            ring.queue.aim(head, TARGET + turn, length)
            assert ring.chain(head)[1][16:] == "1000000003000200"
            target = (TARGET + turn).to_bytes(8, "little") + length.to_bytes(4, "little")
            assert ring.chain(head)[2] == target.hex() + "02000000"
            ring.queue.publish()
            used = min(length + 16, 0xFFFF_FFFF)
            ring.use(turn, head, used, index=turn + 1)
            assert [each[:2] for each in ring.reap()] == [(head, used)]

    def test_each_slot_has_a_target_of_its_own(self) -> None:
        ring, form = Ring(), Form(b"sixteen bytes...", 16, has_target=True)
        heads = [ring.queue.take(form) for _ in range(SLOTS)]
        for head in heads:
            ring.queue.aim(head, TARGET + head, 100 + head)
        for head in heads:
            target = (TARGET + head).to_bytes(8, "little") + (100 + head).to_bytes(4, "little")
            assert ring.chain(head)[2] == target.hex() + "02000000"

    def test_used_length_is_checked_against_the_target_of_now(self) -> None:
        ring, form = Ring(), Form(b"read", 16, has_target=True)
        for turn, length in enumerate((40, 20)):
            head = ring.queue.take(form)
            ring.queue.aim(head, TARGET, length)
            ring.queue.publish()
            ring.use(turn, head, 16 + 40, index=turn + 1)
            if turn:
                with pytest.raises(MalformedError, match="used length 56 of 36"):
                    ring.reap()
            else:
                assert len(ring.reap()) == 1

    @pytest.mark.parametrize("length", [-1, 0, 1 << 32])
    def test_target_of_no_possible_length_is_refused(self, length: int) -> None:
        ring = Ring()
        head = ring.queue.take(Form(b"read", 16, has_target=True))
        with pytest.raises(ValueError, match=f"a target of {length} bytes"):
            ring.queue.aim(head, TARGET, length)

    def test_slot_serves_its_form_again_and_the_request_is_not_written_anew(self) -> None:
        ring, form = Ring(), Form(b"sixteen bytes...", 16)
        for turn in range(20):
            head = ring.queue.take(form)
            assert head == 0
            begin = ring.queue.first_words[head]
            if turn:
                assert ring.queue.words[begin + 1] == turn - 1
            ring.queue.words[begin + 1] = turn
            assert ring.memory[ROOMS : ROOMS + 8] == b"sixteen "
            ring.queue.publish()
            ring.use(turn % 16, head, length=16, index=turn + 1)
            assert [used[:2] for used in ring.reap()] == [(head, 16)]
            assert ring.queue.free == SLOTS

    def test_words_of_a_slot_are_its_request(self) -> None:
        ring, form = Ring(), Form(b"sixteen bytes...", 16)
        heads = [ring.queue.take(form) for _ in range(SLOTS)]
        for head in heads:
            ring.queue.words[ring.queue.first_words[head]] = int.from_bytes(
                b"of %05d" % head, "little"
            )
        for head in heads:
            room = ROOMS + 112 * (head // 3)
            assert ring.memory[room : room + 16] == b"of %05dbytes..." % head

    def test_other_requests_take_the_slots_that_they_need(self) -> None:
        ring = Ring()
        first, second = Form(b"first", 16), Form(b"second", 16)
        heads = [ring.queue.take(first) for _ in range(SLOTS - 1)]
        heads.append(ring.queue.take(second))
        for form in (first, second):
            with pytest.raises(RingFullError):
                ring.queue.take(form)
        with pytest.raises(RingFullError):
            ring.add()
        assert (ring.queue.free, ring.queue.outstanding) == (0, SLOTS)
        ring.queue.publish()
        for position, head in enumerate(heads):
            ring.use(position, head, 16, index=position + 1)
        ring.reap()
        assert ring.queue.free == SLOTS
        plain = [ring.add(b"other") for _ in range(2)]
        again = [ring.queue.take(second) for _ in range(3)]
        assert sorted(plain + again) == sorted(heads)
        for head in again:
            room = ROOMS + 112 * (head // 3)
            assert ring.memory[room : room + 6] == b"second"
        assert ring.queue.free == 0

    def test_slot_that_another_request_took_has_the_form_no_more(self) -> None:
        ring, form = Ring(), Form(b"form", 16)
        heads = [ring.queue.take(form) for _ in range(SLOTS)]
        ring.queue.publish()
        for position, head in enumerate(heads):
            ring.use(position, head, 16, index=position + 1)
        ring.reap()
        for position in range(SLOTS, 2 * SLOTS):
            head = ring.add(b"other")
            ring.queue.publish()
            ring.use(position, head, 16, index=position + 1)
            ring.reap()
        for _ in range(SLOTS):
            room = ROOMS + 112 * (ring.queue.take(form) // 3)
            assert ring.memory[room : room + 4] == b"form"

    @pytest.mark.parametrize("form", [Form(b"", 16), Form(b"x" * 65, 16), Form(b"x", 49)])
    def test_form_that_fits_no_slot_is_refused(self, form: Form) -> None:
        ring = Ring()
        with pytest.raises(ValueError, match="a request of"):
            ring.queue.take(form)
        assert (ring.queue.free, ring.queue.outstanding) == (SLOTS, 0)

    def test_next_device_finds_all_of_it_laid_anew(self) -> None:
        """The one before may have written over anything."""
        ring, form = Ring(), Form(b"sixteen bytes...", 24)
        head = ring.queue.take(form)
        ring.queue.publish()
        ring.use(0, head, 16, index=1)
        ring.reap()
        ring.write(0, b"\xff" * 256)
        ring.memory[ROOMS : ROOMS + 64] = b"\xff" * 64
        ring.queue.hand_over()
        assert ring.queue.take(form) == head
        assert ring.memory[ROOMS : ROOMS + 16] == b"sixteen bytes..."
        assert [record[16:] for record in ring.chain(head)] == [
            "1000000001000100",
            "1800000002000000",
        ]

    def test_rooms_begin_at_words(self) -> None:
        placed, layout = GuestRegion(Shared(), GUEST), RingLayout.for_size(16)
        for rooms in (Rooms(ROOMS + 4, 64, 48), Rooms(ROOMS, 64, 44)):
            with pytest.raises(ValueError, match=f"rooms of {rooms.size} bytes"):
                Virtqueue(mmap.mmap(-1, mmap.PAGESIZE), placed, RING, layout, rooms)


class TestFences:
    """A fence stands between a ring's entries and its index, in both directions (2.7.13.3)."""

    def test_chains_are_in_memory_before_the_index_that_offers_them(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ring = Ring()
        at_fence: list[bytes] = []
        monkeypatch.setattr(ring.queue, "_fence", lambda: at_fence.append(ring.whole))
        ring.add()
        head = ring.add(b"request")
        assert at_fence == []
        ring.queue.publish()
        (before,) = at_fence
        assert before[258:260] == bytes.fromhex("0000")
        assert before[262:264] == head.to_bytes(2, "little")
        assert before[16 * head + 8 : 16 * head + 16].hex() == "0700000001000400"
        assert ring.available_index == "0200"

    def test_elements_are_read_after_the_index_that_announces_them(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ring = Ring()
        head = ring.add(reply=16)
        ring.queue.publish()
        ring.set_used_index(1)
        # What stood there before the fence is not the device's last word.
        ring.use(0, 0xFFFF_FFFF, length=0xFFFF_FFFF)
        ring.answer(head, b"not the last one")

        def fence() -> None:
            ring.use(0, head, length=16)
            ring.answer(head, b"the last word is")

        monkeypatch.setattr(ring.queue, "_fence", fence)
        assert ring.reap() == [(head, 16, b"the last word is")]

    def test_index_is_read_before_the_fence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ring = Ring()
        head = ring.add()
        ring.queue.publish()
        monkeypatch.setattr(ring.queue, "_fence", lambda: ring.use(0, head, length=0, index=1))
        assert ring.reap() == []
        assert ring.reap() == [(head, 0, b"")]


class TwoChains(Ring):
    """Published: "forget", which has no reply, and "read", which has 16 and 16 bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.forget = self.add(b"forget", reply=0)
        self.read_ = self.add(b"read", length=16)
        self.queue.publish()

    def refuses(self, complaint: str) -> None:
        """Check that nothing is taken from the used ring."""
        with pytest.raises(MalformedError, match=complaint):
            self.reap()
        assert (self.queue.free, self.queue.outstanding) == (SLOTS - 2, 2)


class TestLies:
    """What the used ring may say that cannot be."""

    @pytest.mark.parametrize(
        ("index", "step"),
        [
            pytest.param(3, 3, id="one more than is outstanding"),
            pytest.param(0x8000, 0x8000, id="half way round"),
            pytest.param(65535, 65535, id="one back"),
        ],
    )
    def test_index_moves_no_further_than_what_is_outstanding(self, index: int, step: int) -> None:
        ring = TwoChains()
        ring.set_used_index(index)
        ring.refuses(f"moved by {step} with 2 outstanding")

    def test_index_is_checked_whole_however_little_is_asked_for(self) -> None:
        ring = TwoChains()
        ring.use(0, ring.forget, length=0, index=3)
        with pytest.raises(MalformedError, match="moved by 3 with 2 outstanding"):
            list(ring.queue.reap(1))

    def test_index_stands_while_nothing_is_outstanding(self) -> None:
        ring = Ring()
        ring.set_used_index(1)
        with pytest.raises(MalformedError, match="moved by 1 with 0 outstanding"):
            ring.reap()

    @pytest.mark.parametrize(
        "head",
        [
            pytest.param(15, id="a descriptor of no slot"),
            pytest.param(16, id="the size of the ring"),
            pytest.param(0xFFFFFFFF, id="all ones"),
        ],
    )
    def test_id_is_a_descriptor_of_the_ring(self, head: int) -> None:
        ring = TwoChains()
        ring.use(0, head, length=0, index=1)
        ring.refuses(f"used id {head} is not the head")

    def test_id_is_all_32_bits_of_it(self) -> None:
        ring = TwoChains()
        ring.use(0, 0x10000 + ring.forget, length=0, index=1)
        ring.refuses(f"used id {0x10000 + ring.forget} is not the head")

    @pytest.mark.parametrize("place", [1, 2], ids=["the middle", "the end"])
    def test_id_is_the_head_of_a_chain_and_no_other_part(self, place: int) -> None:
        ring = TwoChains()
        ring.use(0, ring.read_ + place, length=0, index=1)
        ring.refuses(f"used id {ring.read_ + place} is not the head")

    def test_id_of_a_free_slot_is_refused(self) -> None:
        ring = Ring()
        ring.add()
        ring.queue.publish()
        ring.use(0, 3, length=0, index=1)
        with pytest.raises(MalformedError, match="used id 3 is not the head"):
            ring.reap()

    def test_chain_is_used_once(self) -> None:
        ring = TwoChains()
        ring.use(0, ring.forget, length=0)
        ring.use(1, ring.forget, length=0, index=2)
        reaped = ring.queue.reap()
        assert next(reaped) == (ring.forget, 0, b"")
        with pytest.raises(MalformedError, match=f"used id {ring.forget} is not the head"):
            next(reaped)

    def test_chain_is_used_once_over_two_calls(self) -> None:
        ring = TwoChains()
        ring.use(0, ring.forget, length=0, index=1)
        assert ring.reap() == [(ring.forget, 0, b"")]
        ring.use(1, ring.forget, length=0, index=2)
        with pytest.raises(MalformedError, match=f"used id {ring.forget} is not the head"):
            ring.reap()

    def test_chain_that_was_not_published_is_not_used(self) -> None:
        ring = Ring()
        head = ring.add()
        assert ring.queue.outstanding == 1
        ring.use(0, head, length=0, index=1)
        with pytest.raises(MalformedError, match="moved by 1 with 0 outstanding"):
            ring.reap()

    def test_id_of_a_chain_that_was_not_published_is_refused(self) -> None:
        ring = TwoChains()
        ring.use(0, ring.read_, length=0, index=1)
        assert ring.reap() == [(ring.read_, 0, b"")]
        head = ring.add()
        ring.use(1, head, length=0, index=2)
        with pytest.raises(MalformedError, match=f"used id {head} is not the head"):
            ring.reap()

    def test_duplicate_is_no_answer_to_the_chain_added_in_between(self) -> None:
        ring = TwoChains()
        third = ring.add()
        ring.queue.publish()
        ring.use(0, ring.forget, length=0)
        ring.use(1, ring.read_, length=0)
        ring.use(2, ring.forget, length=0, index=3)
        reaped = ring.queue.reap()
        assert next(reaped) == (ring.forget, 0, b"")
        assert next(reaped) == (ring.read_, 0, b"")
        assert ring.add() == ring.forget != third
        with pytest.raises(MalformedError, match=f"used id {ring.forget} is not the head"):
            next(reaped)

    def test_length_is_0_where_nothing_is_writable(self) -> None:
        ring = TwoChains()
        ring.use(0, ring.forget, length=1, index=1)
        ring.refuses("length 1 of 0 writable")

    @pytest.mark.parametrize("length", [33, 0xFFFFFFFF], ids=["one more", "all ones"])
    def test_length_is_no_larger_than_the_writable_bytes(self, length: int) -> None:
        ring = TwoChains()
        ring.use(0, ring.read_, length, index=1)
        ring.refuses(f"length {length} of 32 writable")

    def test_length_is_that_of_the_request_that_has_the_slot_now(self) -> None:
        ring = TwoChains()
        ring.use(0, ring.read_, 32, index=1)
        assert ring.reap() == [(ring.read_, 32, bytes(16))]
        assert ring.add(reply=20) == ring.read_
        ring.queue.publish()
        ring.use(1, ring.read_, 21, index=2)
        ring.refuses("length 21 of 20 writable")

    def test_chains_before_the_lie_are_delivered(self) -> None:
        ring = TwoChains()
        ring.use(0, ring.read_, length=32)
        ring.use(1, 7, length=0, index=2)
        reaped = ring.queue.reap()
        assert next(reaped) == (ring.read_, 32, bytes(16))
        with pytest.raises(MalformedError, match="used id 7"):
            next(reaped)
        assert (ring.queue.free, ring.queue.outstanding) == (SLOTS - 1, 1)


class TestHandOver:
    @pytest.mark.parametrize("base", [0, 0x1234, 0xFFFF])
    def test_another_device_goes_on_where_the_one_before_stopped(self, base: int) -> None:
        ring = Ring(base)
        assert ring.queue.hand_over() == base
        for number in range(2):
            head = ring.add()
            ring.queue.publish()
            ring.use((base + number) % 16, head, 0, index=(base + number + 1) % 0x10000)
            assert ring.reap() == [(head, 0, b"")]
        assert ring.queue.hand_over() == (base + 2) % 0x10000

    def test_used_index_is_what_was_reaped_whatever_was_written(self) -> None:
        ring = Ring(0x1234)
        ring.set_used_index(0x4321)
        assert ring.queue.hand_over() == 0x1234
        assert ring.read(296, 4) == bytes.fromhex("0000 3412")
        assert ring.queue.hand_over() == 0x1234
        assert ring.reap() == []

    @pytest.mark.parametrize("replies", [True, False])
    def test_chains_are_laid_anew_whatever_was_written(self, *, replies: bool) -> None:
        ring = Ring(replies=replies)
        laid = ring.read(0, 256)
        ring.write(0, b"\xff" * 256)
        ring.queue.hand_over()
        for head in range(0, 15, 3 if replies else 1):
            assert ring.read(16 * head, 8) == laid[16 * head : 16 * head + 8]
            if replies:
                assert ring.read(16 * head + 16, 8) == laid[16 * head + 16 : 16 * head + 24]
        head = ring.add(reply=16 if replies else 0)
        assert len(ring.chain(head)) == (2 if replies else 1)

    @pytest.mark.parametrize("published", [True, False])
    def test_not_while_chains_are_outstanding(self, *, published: bool) -> None:
        ring = Ring()
        ring.add()
        ring.set_used_index(7)
        if published:
            ring.queue.publish()
        with pytest.raises(ValueError, match="a ring with 1 chains outstanding"):
            ring.queue.hand_over()
        assert ring.read(298, 2) == bytes.fromhex("0700")


class TestEnd:
    def test_nothing_is_outstanding_after_abandon_and_no_slot_free_for_it(self) -> None:
        ring = Ring()
        for _ in range(2):
            ring.add()
        ring.queue.publish()
        ring.add()
        ring.queue.abandon()
        assert (ring.queue.free, ring.queue.outstanding) == (SLOTS - 3, 0)
        assert ring.queue.is_idle
        assert ring.queue.publish() is False
        ring.queue.abandon()

    def test_nothing_comes_back_after_abandon(self) -> None:
        ring = Ring()
        head = ring.add()
        ring.queue.publish()
        ring.queue.abandon()
        ring.use(0, head, length=0, index=1)
        with pytest.raises(MalformedError, match="with 0 outstanding"):
            ring.reap()

    def test_chain_of_before_is_not_believed_beside_one_of_after(self) -> None:
        ring = Ring()
        before = ring.add()
        ring.queue.publish()
        ring.queue.abandon()
        ring.add()
        ring.queue.publish()
        ring.use(0, before, length=0, index=1)
        with pytest.raises(MalformedError, match=f"used id {before} is not the head"):
            ring.reap()

    def test_closed_ring_holds_no_memory(self) -> None:
        ring = Ring()
        with pytest.raises(BufferError):
            ring.memory.close()
        ring.queue.close()
        ring.queue.close()
        ring.memory.close()

    def test_closed_ring_is_not_used_again(self) -> None:
        ring = Ring()
        ring.add()
        ring.queue.close()
        with pytest.raises(ValueError, match="released memoryview"):
            ring.queue.publish()
        with pytest.raises(ValueError, match="released memoryview"):
            ring.reap()


class TestAnyPlace:
    """A ring and rooms whose offsets and sizes have bits in common, so that no sum is an or."""

    AT: Final = 96
    ROOMS: Final = Rooms(0x5B8, 56, 40)

    def queue(self, memory: mmap.mmap) -> Virtqueue:
        layout = RingLayout.for_size(16)
        assert self.AT & layout.size
        return Virtqueue(memory, GuestRegion(Shared(), GUEST), self.AT, layout, self.ROOMS)

    def test_the_ring_alone_is_zeroed(self) -> None:
        memory = mmap.mmap(-1, mmap.PAGESIZE)
        memory[:] = b"\xff" * mmap.PAGESIZE
        self.queue(memory)
        assert memory[: self.AT] == b"\xff" * self.AT
        assert memory[self.AT + 256 : self.AT + SIZE] == bytes(SIZE - 256)
        assert memory[self.AT + SIZE :] == b"\xff" * (mmap.PAGESIZE - self.AT - SIZE)

    def test_each_slot_has_a_request_and_a_reply_of_its_own(self) -> None:
        memory = mmap.mmap(-1, mmap.PAGESIZE)
        queue = self.queue(memory)
        rooms = self.ROOMS
        assert rooms.size == 96
        heads = [queue.add(bytes([number]) * 56, 40) for number in range(SLOTS)]
        assert queue.publish()
        elements = b""
        for number, head in enumerate(heads):
            descriptor = memory[self.AT + 16 * head : self.AT + 16 * head + 32]
            request = int.from_bytes(descriptor[:8], "little") - GUEST
            reply = int.from_bytes(descriptor[16:24], "little") - GUEST
            assert (request, reply) == (rooms.offset + 96 * number, request + 56)
            assert memory[request : request + 56] == bytes([number]) * 56
            memory[reply : reply + 40] = bytes([100 + number]) * 40
            elements += head.to_bytes(4, "little") + (40).to_bytes(4, "little")
        used = self.AT + 296
        memory[used + 4 : used + 4 + len(elements)] = elements
        memory[used + 2] = SLOTS
        assert list(queue.reap()) == [
            (head, 40, bytes([100 + number]) * 40) for number, head in enumerate(heads)
        ]

    def test_words_are_those_of_the_rooms_and_no_others(self) -> None:
        memory = mmap.mmap(-1, mmap.PAGESIZE)
        words, begin = self.queue(memory).words, self.ROOMS.offset
        end = begin + SLOTS * self.ROOMS.size
        around = memory[:begin], memory[end:]
        for place in range(len(words)):
            words[place] = 0xFFFF_FFFF_FFFF_FFFF
        assert memory[begin:end] == b"\xff" * (end - begin)
        assert (memory[:begin], memory[end:]) == around

    def test_a_closed_queue_keeps_no_memory(self) -> None:
        queue = self.queue(mmap.mmap(-1, mmap.PAGESIZE))
        queue.close()
        assert not any(isinstance(kept, mmap.mmap) for kept in vars(queue).values())
