"""Descriptors stay with their messages, however the bytes are cut on their way."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vuserd.client.core.descriptor_stream import Arrivals, Outgoing


class Piece(NamedTuple):
    """What one system call sent: the kernel joins no two of them that have descriptors."""

    content: bytes
    descriptors: list[int]


class Wire:
    """A unix socket by the kernel's rules (net/unix/af_unix.c, unix_stream_read_generic)."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []

    def send(self, content: bytes, descriptors: list[int]) -> None:
        self._pieces.append(Piece(content, descriptors))

    def receive(self, most: int) -> tuple[bytes, list[int]]:
        """Receive up to ``most`` bytes: none beyond those that a descriptor came with."""
        received, descriptors = b"", list[int]()
        while self._pieces and len(received) < most and not descriptors:
            content, descriptors = self._pieces.pop(0)
            room = most - len(received)
            received += content[:room]
            if content[room:]:
                self._pieces.insert(0, Piece(content[room:], []))
        return received, descriptors


class Message(NamedTuple):
    """A message of some bytes, and whether a descriptor goes beside it."""

    size: int
    passes: bool
    lost: bool  #: the receiver has no room for its descriptor


messages = st.lists(
    st.builds(Message, st.integers(1, 40), st.booleans(), st.booleans()), max_size=12
)
cuts = st.lists(st.integers(1, 60), min_size=1)


def send_all(outgoing: Outgoing, wire: Wire, sizes: list[int]) -> None:
    turn = 0
    while outgoing:
        piece, descriptors = outgoing.next_piece()
        count = min(len(piece), sizes[turn % len(sizes)])
        wire.send(bytes(piece[:count]), list(descriptors))
        outgoing.sent(count)
        turn += 1


@given(messages, cuts, cuts)
def test_each_message_gets_its_own(
    sent: list[Message], send_sizes: list[int], receive_sizes: list[int]
) -> None:
    closed_here: list[int] = []
    closed_there: list[int] = []
    outgoing, wire, arrivals = Outgoing(closed_here.append), Wire(), Arrivals(closed_there.append)
    for number, message in enumerate(sent):
        outgoing.append(bytes([number]) * message.size, number if message.passes else None)
    send_all(outgoing, wire, send_sizes)
    passed = [number for number, message in enumerate(sent) if message.passes]
    assert closed_here == passed  # the sender's own, each once

    claimed: dict[int, int | None] = {}
    position = begin = number = turn = 0
    while number < len(sent):
        received, descriptors = wire.receive(receive_sizes[turn % len(receive_sizes)])
        kept = [descriptor for descriptor in descriptors if not sent[descriptor].lost]
        arrivals.add(position, position + len(received), kept)
        position += len(received)
        turn += 1
        while number < len(sent) and begin + sent[number].size <= position:
            if sent[number].passes:
                claimed[number] = arrivals.claim(begin)
            begin += sent[number].size
            number += 1
        arrivals.pass_by(begin)
    assert claimed == {number: None if sent[number].lost else number for number in passed}
    assert closed_there == []


@given(messages, cuts, st.sets(st.integers(0, 11)))
def test_what_nobody_claims_is_closed(
    sent: list[Message], receive_sizes: list[int], unwanted: set[int]
) -> None:
    closed: list[int] = []
    outgoing, wire, arrivals = Outgoing(lambda _: None), Wire(), Arrivals(closed.append)
    for number, message in enumerate(sent):
        outgoing.append(bytes(message.size), number if message.passes else None)
    send_all(outgoing, wire, [1000])
    position = begin = number = turn = 0
    claimed: list[int | None] = []
    while number < len(sent):
        received, descriptors = wire.receive(receive_sizes[turn % len(receive_sizes)])
        arrivals.add(position, position + len(received), descriptors)
        position += len(received)
        turn += 1
        while number < len(sent) and begin + sent[number].size <= position:
            if sent[number].passes and number not in unwanted:
                claimed.append(arrivals.claim(begin))
            begin += sent[number].size
            number += 1
        arrivals.pass_by(begin)
    passed = [number for number, message in enumerate(sent) if message.passes]
    assert claimed == [number for number in passed if number not in unwanted]
    assert closed == [number for number in passed if number in unwanted]


class TestOutgoing:
    def test_a_descriptor_goes_with_the_first_byte_of_its_message(self) -> None:
        closed: list[int] = []
        outgoing = Outgoing(closed.append)
        outgoing.append(b"one")
        outgoing.append(b"two", 7)
        outgoing.append(b"three")
        outgoing.append(b"four", 8)
        assert outgoing.next_piece() == (b"one", ())
        outgoing.sent(2)
        assert outgoing.next_piece() == (b"e", ())
        outgoing.sent(1)
        assert outgoing.next_piece() == (b"twothree", (7,))
        outgoing.sent(0)
        assert outgoing.next_piece() == (b"twothree", (7,))
        outgoing.sent(1)
        assert closed == [7]
        assert outgoing.next_piece() == (b"wothree", ())
        outgoing.sent(7)
        assert outgoing.next_piece() == (b"four", (8,))

    def test_what_is_not_sent_is_closed(self) -> None:
        closed: list[int] = []
        outgoing = Outgoing(closed.append)
        outgoing.append(b"one", 7)
        outgoing.append(b"two", 8)
        outgoing.sent(1)
        outgoing.clear()
        outgoing.clear()
        assert (closed, len(outgoing)) == ([7, 8], 0)
        outgoing.append(b"three", 9)
        assert outgoing.next_piece() == (b"three", (9,))


class TestArrivals:
    @pytest.mark.parametrize("position", [10, 15, 19])
    def test_a_message_that_begins_among_the_bytes_may_claim_it(self, position: int) -> None:
        arrivals = Arrivals(lambda _: None)
        arrivals.add(10, 20, [7])
        assert arrivals.claim(position) == 7
        assert arrivals.claim(position) is None

    def test_an_earlier_message_does_not_take_a_later_ones(self) -> None:
        closed: list[int] = []
        arrivals = Arrivals(closed.append)
        arrivals.add(10, 20, [7])
        assert arrivals.claim(9) is None
        assert closed == []
        assert arrivals.claim(20) is None
        assert closed == [7]

    def test_all_are_closed_at_the_end(self) -> None:
        closed: list[int] = []
        arrivals = Arrivals(closed.append)
        arrivals.add(0, 10, [7, 8])
        arrivals.add(10, 20, [9])
        arrivals.clear()
        assert closed == [7, 8, 9]
