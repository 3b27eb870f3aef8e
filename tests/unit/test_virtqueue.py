"""The driver's side of the split ring: its bytes in memory, and every check on the used ring.

A ring of 4 lies so (VIRTIO 1.2, section 2.7), which the tests write and read by hand::

     0  descriptors: addr u64 | len u32 | flags u16 | next u16, 16 bytes each
    64  available:   flags u16 | idx u16 | ring u16 * 4 | used_event u16
    80  used:        flags u16 | idx u16 | (id u32 | len u32) * 4 | avail_event u16
"""

import struct
from collections.abc import Sequence

import pytest

from memory.virtqueue import RingFullError, Span, Virtqueue
from protocol import MalformedError
from protocol.virtio_ring import RingLayout

SIZE = 118
REQUEST = Span(0x1_0000_2000, 0x30)
HEADER = Span(0x1_0000_3000, 16)
PAYLOAD = Span(0x1_0010_0000, 0x10_0000)


class Ring:
    """A ring of 4, its queue and its raw bytes."""

    def __init__(self, base: int = 0, rubbish: int = 0) -> None:
        self.bytes = bytearray([rubbish]) * SIZE
        self.queue: Virtqueue[str] = Virtqueue(memoryview(self.bytes), RingLayout.for_size(4), base)
        self._next = base

    def add(
        self, token: str, readable: Sequence[Span] = (REQUEST,), writable: Sequence[Span] = ()
    ) -> int:
        """Add a chain; return its head, which stands in the next place of the available ring."""
        self.queue.add(readable, writable, token)
        at = 68 + 2 * (self._next % 4)
        self._next += 1
        return int.from_bytes(self.bytes[at : at + 2], "little")

    def chain(self, head: int) -> tuple[list[int], list[str]]:
        """Follow a chain from descriptor to descriptor.

        Returns:
            Which descriptors they are, and the bytes of address, length and flags of each.

        """
        slots, records = [head], []
        while len(slots) <= 4:
            at = 16 * slots[-1]
            records.append(bytes(self.bytes[at : at + 14]).hex())
            if not self.bytes[at + 12] & 1:
                break
            slots.append(int.from_bytes(self.bytes[at + 14 : at + 16], "little"))
        return slots, records

    @property
    def available_index(self) -> str:
        return bytes(self.bytes[66:68]).hex()

    def use(self, position: int, head: int, length: int, index: int | None = None) -> None:
        """Write the used element at ``position``, and used.idx where one is told."""
        at = 84 + 8 * position
        self.bytes[at : at + 8] = head.to_bytes(4, "little") + length.to_bytes(4, "little")
        if index is not None:
            self.set_used_index(index)

    def set_used_index(self, index: int) -> None:
        self.bytes[82:84] = index.to_bytes(2, "little")


class TestNewRing:
    def test_memory_is_zeroed_whatever_stood_there(self) -> None:
        assert Ring(rubbish=0xFF).bytes == bytes(SIZE)

    def test_both_indices_begin_at_the_base(self) -> None:
        ring = Ring(base=0x1234, rubbish=0xFF)
        assert ring.bytes[64:68] == bytes.fromhex("0000 3412")
        assert ring.bytes[80:84] == bytes.fromhex("0000 3412")
        assert sum(ring.bytes) == 2 * (0x12 + 0x34)

    def test_base_is_0_where_none_is_told(self) -> None:
        memory = bytearray(b"\xff" * SIZE)
        queue: Virtqueue[str] = Virtqueue(memoryview(memory), RingLayout.for_size(4))
        assert memory == bytes(SIZE)
        queue.close()

    @pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1])
    def test_memory_of_another_size_is_refused(self, size: int) -> None:
        with pytest.raises(ValueError, match=f"{size} bytes for a ring of {SIZE}"):
            Virtqueue(memoryview(bytearray(size)), RingLayout.for_size(4))

    def test_everything_is_free_and_nothing_was_used(self) -> None:
        ring = Ring()
        assert (ring.queue.free, ring.queue.outstanding) == (4, 0)
        assert list(ring.queue.reap()) == []


class TestChains:
    """Each descriptor: addr | len | flags, as it stands in memory."""

    def test_chain_of_one_readable_span(self) -> None:
        ring = Ring()
        head = ring.add("forget", [REQUEST])
        assert ring.chain(head) == ([head], ["0020000001000000300000000000"])

    def test_chain_of_one_writable_span(self) -> None:
        ring = Ring()
        head = ring.add("only a reply", [], [HEADER])
        assert ring.chain(head) == ([head], ["0030000001000000100000000200"])  # WRITE

    def test_chain_of_readable_and_writable_spans_is_linked_in_order(self) -> None:
        ring = Ring()
        slots, records = ring.chain(ring.add("read", [REQUEST], [HEADER, PAYLOAD]))
        assert len(set(slots)) == 3
        assert records == [
            "0020000001000000300000000100",  # NEXT
            "0030000001000000100000000300",  # NEXT and WRITE
            "0000100001000000000010000200",  # WRITE, the last
        ]

    def test_readable_spans_are_linked_without_the_write_flag(self) -> None:
        ring = Ring()
        slots, records = ring.chain(ring.add("write", [REQUEST, HEADER]))
        assert len(set(slots)) == 2
        assert records == [
            "0020000001000000300000000100",
            "0030000001000000100000000000",
        ]

    def test_every_readable_span_has_a_descriptor_of_its_own(self) -> None:
        ring = Ring()
        slots, records = ring.chain(ring.add("write", [REQUEST, HEADER, PAYLOAD, REQUEST]))
        assert sorted(slots) == [0, 1, 2, 3]
        assert records == [
            "0020000001000000300000000100",
            "0030000001000000100000000100",
            "0000100001000000000010000100",
            "0020000001000000300000000000",
        ]

    @pytest.mark.parametrize(("readable", "writable"), [([REQUEST], []), ([REQUEST], [HEADER])])
    def test_next_of_the_last_descriptor_is_0(
        self, readable: Sequence[Span], writable: Sequence[Span]
    ) -> None:
        ring = Ring()
        last = ring.chain(ring.add("any", readable, writable))[0][-1]
        assert ring.bytes[16 * last + 14 : 16 * last + 16] == bytes(2)

    def test_second_chain_takes_descriptors_that_are_free(self) -> None:
        ring = Ring()
        first = ring.add("first", [REQUEST, REQUEST])
        second = ring.add("second", [], [PAYLOAD, HEADER])
        slots, records = ring.chain(second)
        assert sorted(ring.chain(first)[0] + slots) == [0, 1, 2, 3]
        assert records == [
            "0000100001000000000010000300",
            "0030000001000000100000000200",
        ]
        assert ring.chain(first)[1] == [
            "0020000001000000300000000100",
            "0020000001000000300000000000",
        ]

    def test_free_and_outstanding_are_counted(self) -> None:
        ring = Ring()
        ring.add("first", [REQUEST], [HEADER, HEADER])
        assert (ring.queue.free, ring.queue.outstanding) == (1, 1)
        ring.add("second")
        assert (ring.queue.free, ring.queue.outstanding) == (0, 2)

    @pytest.mark.parametrize(
        ("readable", "writable"),
        [
            pytest.param([], [], id="no span"),
            pytest.param([Span(0x1000, 0)], [HEADER], id="an empty readable span"),
            pytest.param([REQUEST], [HEADER, Span(0x1000, 0)], id="an empty writable span"),
            pytest.param([Span(0x1000, -1)], [], id="less than an empty span"),
        ],
    )
    def test_chain_that_kills_backends_is_refused(
        self, readable: Sequence[Span], writable: Sequence[Span]
    ) -> None:
        ring = Ring()
        with pytest.raises(ValueError, match="no or empty spans"):
            ring.add("bad", readable, writable)
        assert ring.bytes == bytes(SIZE)
        assert (ring.queue.free, ring.queue.outstanding) == (4, 0)

    @pytest.mark.parametrize("count", [2, 5], ids=["more than are free", "more than the ring has"])
    def test_chain_too_long_for_the_free_descriptors_changes_nothing(self, count: int) -> None:
        ring = Ring()
        ring.add("first", [REQUEST] * 3)
        before = bytes(ring.bytes)
        with pytest.raises(RingFullError, match=f"{count} descriptors wanted, 1 free"):
            ring.add("second", [REQUEST] * count)
        assert ring.bytes == before
        assert (ring.queue.free, ring.queue.outstanding) == (1, 1)

    @pytest.mark.parametrize(
        "span",
        [
            pytest.param(Span(0x1000, 1 << 32), id="a length of 33 bits"),
            pytest.param(Span(-1, 16), id="a negative address"),
        ],
    )
    def test_span_that_no_descriptor_holds_changes_nothing(self, span: Span) -> None:
        ring = Ring()
        with pytest.raises((ValueError, struct.error)):
            ring.add("bad", [REQUEST, span])
        assert (ring.queue.free, ring.queue.outstanding) == (4, 0)


class TestPublish:
    def test_device_sees_nothing_before(self) -> None:
        ring = Ring()
        ring.add("first")
        assert ring.available_index == "0000"

    def test_all_chains_added_are_shown_at_once(self) -> None:
        ring = Ring()
        heads = [ring.add("first", [REQUEST, REQUEST]), ring.add("second")]
        assert ring.queue.publish() is True
        assert ring.available_index == "0200"
        assert [ring.bytes[68], ring.bytes[70]] == heads
        assert ring.bytes[72:78] == bytes(6)

    def test_nothing_new_needs_no_kick(self) -> None:
        ring = Ring()
        assert ring.queue.publish() is False
        ring.add("first")
        assert ring.queue.publish() is True
        assert ring.queue.publish() is False
        assert ring.available_index == "0100"

    def test_flags_stay_0_and_the_devices_are_not_read(self) -> None:
        ring = Ring()
        ring.bytes[80:82] = b"\x01\x00"  # VIRTQ_USED_F_NO_NOTIFY
        ring.add("first")
        assert ring.queue.publish() is True
        assert ring.bytes[64:66] == b"\0\0"
        assert ring.bytes[76:78] == b"\0\0"

    def test_index_wraps_at_65536_and_the_ring_at_its_size(self) -> None:
        ring = Ring(base=65535)
        heads = [ring.add("first"), ring.add("second")]
        assert ring.queue.publish() is True
        assert ring.available_index == "0100"
        # 65535 is place 3 of 4, and 0 is place 0
        assert [ring.bytes[74], ring.bytes[68]] == heads

    def test_index_of_65535_is_followed_by_0(self) -> None:
        ring = Ring(base=65534)
        ring.add("first")
        ring.queue.publish()
        assert ring.available_index == "ffff"
        ring.add("second")
        ring.queue.publish()
        assert ring.available_index == "0000"


class TestReap:
    def test_token_and_length_of_a_used_chain(self) -> None:
        ring = Ring()
        head = ring.add("read", [REQUEST], [HEADER, HEADER])
        ring.queue.publish()
        assert list(ring.queue.reap()) == []
        ring.use(0, head, length=20, index=1)
        assert list(ring.queue.reap()) == [("read", 20)]
        assert (ring.queue.free, ring.queue.outstanding) == (4, 0)
        assert list(ring.queue.reap()) == []

    @pytest.mark.parametrize("length", [0, 1, 31, 32])
    def test_any_length_up_to_the_writable_bytes(self, length: int) -> None:
        ring = Ring()
        head = ring.add("read", [REQUEST], [HEADER, HEADER])
        ring.queue.publish()
        ring.use(0, head, length, index=1)
        assert list(ring.queue.reap()) == [("read", length)]

    def test_chains_come_back_in_the_devices_order(self) -> None:
        ring = Ring()
        first, second, third, fourth = map(ring.add, ("first", "second", "third", "fourth"))
        ring.queue.publish()
        for position, head in enumerate((third, first, fourth)):
            ring.use(position, head, 0)
        ring.set_used_index(3)
        assert list(ring.queue.reap()) == [("third", 0), ("first", 0), ("fourth", 0)]
        assert (ring.queue.free, ring.queue.outstanding) == (3, 1)
        ring.use(3, second, length=0, index=4)
        assert list(ring.queue.reap()) == [("second", 0)]

    def test_descriptors_of_a_used_chain_serve_again(self) -> None:
        ring = Ring()
        kept = ring.add("kept")
        for turn in range(10):
            head = ring.add(f"turn {turn}", [REQUEST], [HEADER, PAYLOAD])
            slots, records = ring.chain(head)
            assert sorted([kept, *slots]) == [0, 1, 2, 3]
            assert len(records) == 3
            ring.queue.publish()
            ring.use(turn % 4, head, length=16, index=turn + 1)
            assert list(ring.queue.reap()) == [(f"turn {turn}", 16)]
            assert ring.queue.free == 3

    def test_what_the_device_wrote_over_the_chain_does_not_matter(self) -> None:
        ring = Ring()
        head = ring.add("first", [REQUEST, REQUEST], [HEADER])
        ring.queue.publish()
        ring.bytes[:78] = b"\xff" * 78  # descriptors and the available ring
        ring.use(0, head, length=16, index=1)
        assert list(ring.queue.reap()) == [("first", 16)]
        assert ring.queue.free == 4

    def test_used_index_wraps_at_65536_and_the_ring_at_its_size(self) -> None:
        ring = Ring(base=65535)
        first, second = ring.add("first"), ring.add("second")
        ring.queue.publish()
        ring.use(3, second, length=0)
        ring.use(0, first, length=0, index=1)
        assert list(ring.queue.reap()) == [("second", 0), ("first", 0)]

    def test_chain_added_while_reaping_does_not_disturb(self) -> None:
        ring = Ring()
        heads = [ring.add(token, [REQUEST, REQUEST]) for token in ("first", "second")]
        ring.queue.publish()
        for position, head in enumerate(heads):
            ring.use(position, head, length=0, index=position + 1)
        tokens = []
        for token, _ in ring.queue.reap():
            tokens.append(token)
            ring.add(f"after {token}", [REQUEST, REQUEST])
        assert tokens == ["first", "second"]
        assert (ring.queue.free, ring.queue.outstanding) == (0, 2)


class TestFences:
    """A fence stands between a ring's entries and its index, in both directions (2.7.13.3)."""

    def test_chains_are_in_memory_before_the_index_that_offers_them(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ring = Ring()
        at_fence = []
        monkeypatch.setattr(ring.queue, "_fence", lambda: at_fence.append(bytes(ring.bytes)))
        head = ring.add("first")
        assert at_fence == []
        ring.queue.publish()
        (before,) = at_fence
        assert before[66:68] == bytes.fromhex("0000")
        assert before[68:70] == head.to_bytes(2, "little")
        assert before[16 * head : 16 * head + 14].hex() == "0020000001000000300000000000"
        assert ring.available_index == "0100"

    def test_elements_are_read_after_the_index_that_announces_them(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ring = Ring()
        head = ring.add("first", [REQUEST], [HEADER])
        ring.queue.publish()
        ring.set_used_index(1)
        # What stood there before the fence is not the device's last word.
        ring.use(0, 0xFFFF_FFFF, length=0xFFFF_FFFF)
        monkeypatch.setattr(ring.queue, "_fence", lambda: ring.use(0, head, length=16))
        assert list(ring.queue.reap()) == [("first", 16)]

    def test_index_is_read_before_the_fence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ring = Ring()
        head = ring.add("first")
        ring.queue.publish()
        monkeypatch.setattr(ring.queue, "_fence", lambda: ring.use(0, head, length=0, index=1))
        assert list(ring.queue.reap()) == []
        assert list(ring.queue.reap()) == [("first", 0)]


class TwoChains(Ring):
    """Published: "forget", a readable span, and "read", a readable one and 16 + 16 bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.forget = self.add("forget")
        self.read = self.add("read", [REQUEST], [HEADER, HEADER])
        self.queue.publish()

    def refuses(self, complaint: str) -> None:
        """Check that nothing is taken from the used ring."""
        with pytest.raises(MalformedError, match=complaint):
            list(self.queue.reap())
        assert (self.queue.free, self.queue.outstanding) == (0, 2)


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

    def test_index_stands_while_nothing_is_outstanding(self) -> None:
        ring = Ring()
        ring.set_used_index(1)
        with pytest.raises(MalformedError, match="moved by 1 with 0 outstanding"):
            list(ring.queue.reap())

    @pytest.mark.parametrize(
        "head",
        [
            pytest.param(4, id="the size of the ring"),
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
        slot = ring.chain(ring.read)[0][place]
        ring.use(0, slot, length=0, index=1)
        ring.refuses(f"used id {slot} is not the head")

    def test_id_of_a_free_descriptor_is_refused(self) -> None:
        ring = Ring()
        head = ring.add("forget")
        ring.queue.publish()
        ring.use(0, head ^ 1, length=0, index=1)
        with pytest.raises(MalformedError, match=f"used id {head ^ 1} is not the head"):
            list(ring.queue.reap())

    def test_chain_is_used_once(self) -> None:
        ring = TwoChains()
        ring.use(0, ring.forget, length=0)
        ring.use(1, ring.forget, length=0, index=2)
        reaped = ring.queue.reap()
        assert next(reaped) == ("forget", 0)
        with pytest.raises(MalformedError, match=f"used id {ring.forget} is not the head"):
            next(reaped)

    def test_chain_is_used_once_over_two_calls(self) -> None:
        ring = TwoChains()
        ring.use(0, ring.forget, length=0, index=1)
        assert list(ring.queue.reap()) == [("forget", 0)]
        ring.use(1, ring.forget, length=0, index=2)
        with pytest.raises(MalformedError, match=f"used id {ring.forget} is not the head"):
            list(ring.queue.reap())

    def test_chain_that_was_not_published_is_not_used(self) -> None:
        ring = Ring()
        head = ring.add("not published")
        assert ring.queue.outstanding == 1
        ring.use(0, head, length=0, index=1)
        with pytest.raises(MalformedError, match="moved by 1 with 0 outstanding"):
            list(ring.queue.reap())

    def test_id_of_a_chain_that_was_not_published_is_refused(self) -> None:
        ring = TwoChains()
        ring.use(0, ring.read, length=0, index=1)
        assert list(ring.queue.reap()) == [("read", 0)]
        head = ring.add("not published")
        ring.use(1, head, length=0, index=2)
        with pytest.raises(MalformedError, match=f"used id {head} is not the head"):
            list(ring.queue.reap())

    def test_duplicate_is_no_answer_to_the_chain_added_in_between(self) -> None:
        ring = TwoChains()
        ring.use(0, ring.forget, length=0)
        ring.use(1, ring.forget, length=0, index=2)
        reaped = ring.queue.reap()
        assert next(reaped) == ("forget", 0)
        assert ring.add("added in between") == ring.forget
        with pytest.raises(MalformedError, match=f"used id {ring.forget} is not the head"):
            next(reaped)

    def test_length_is_0_where_nothing_is_writable(self) -> None:
        ring = TwoChains()
        ring.use(0, ring.forget, length=1, index=1)
        ring.refuses("length 1 of 0 writable")

    @pytest.mark.parametrize("length", [33, 0xFFFFFFFF], ids=["one more", "all ones"])
    def test_length_is_no_larger_than_the_writable_bytes(self, length: int) -> None:
        ring = TwoChains()
        ring.use(0, ring.read, length, index=1)
        ring.refuses(f"length {length} of 32 writable")

    def test_chains_before_the_lie_are_delivered(self) -> None:
        ring = TwoChains()
        ring.use(0, ring.read, length=32)
        ring.use(1, 7, length=0, index=2)
        reaped = ring.queue.reap()
        assert next(reaped) == ("read", 32)
        with pytest.raises(MalformedError, match="used id 7"):
            next(reaped)
        assert (ring.queue.free, ring.queue.outstanding) == (3, 1)


class TestHandOver:
    @pytest.mark.parametrize("base", [0, 0x1234, 0xFFFF])
    def test_another_device_goes_on_where_the_one_before_stopped(self, base: int) -> None:
        ring = Ring(base)
        assert ring.queue.hand_over() == base
        for number, token in enumerate(("first", "second")):
            head = ring.add(token)
            ring.queue.publish()
            ring.use((base + number) % 4, head, 0, index=(base + number + 1) % 0x10000)
            assert list(ring.queue.reap()) == [(token, 0)]
        assert ring.queue.hand_over() == (base + 2) % 0x10000

    def test_used_index_is_what_was_reaped_whatever_was_written(self) -> None:
        ring = Ring(0x1234)
        ring.set_used_index(0x4321)
        assert ring.queue.hand_over() == 0x1234
        assert ring.bytes[80:84] == bytes.fromhex("0000 3412")
        assert ring.queue.hand_over() == 0x1234
        assert list(ring.queue.reap()) == []

    @pytest.mark.parametrize("published", [True, False])
    def test_not_while_chains_are_outstanding(self, *, published: bool) -> None:
        ring = Ring()
        ring.add("first")
        ring.set_used_index(7)
        if published:
            ring.queue.publish()
        with pytest.raises(ValueError, match="a ring with 1 chains outstanding"):
            ring.queue.hand_over()
        assert ring.bytes[82:84] == bytes.fromhex("0700")


class TestEnd:
    def test_abandon_gives_the_tokens_of_what_was_outstanding(self) -> None:
        ring = Ring()
        _, second, _ = map(ring.add, ("first", "second", "third"))
        ring.queue.publish()
        ring.use(0, second, length=0, index=1)
        assert list(ring.queue.reap()) == [("second", 0)]
        ring.add("not published")
        assert ring.queue.abandon() == ["first", "third", "not published"]
        assert ring.queue.outstanding == 0
        assert ring.queue.abandon() == []

    def test_nothing_comes_back_after_abandon(self) -> None:
        ring = Ring()
        head = ring.add("first")
        ring.queue.publish()
        ring.queue.abandon()
        ring.use(0, head, length=0, index=1)
        with pytest.raises(MalformedError, match="with 0 outstanding"):
            list(ring.queue.reap())

    def test_closed_ring_holds_no_memory(self) -> None:
        ring = Ring()
        with pytest.raises(BufferError):
            ring.bytes.extend(b"x")
        ring.queue.close()
        ring.queue.close()
        ring.bytes.extend(b"x")

    def test_closed_ring_is_not_used_again(self) -> None:
        ring = Ring()
        ring.add("first")
        ring.queue.close()
        with pytest.raises(ValueError, match="released memoryview"):
            ring.queue.publish()
        with pytest.raises(ValueError, match="released memoryview"):
            list(ring.queue.reap())
