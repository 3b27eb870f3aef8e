"""Properties of the codec: nothing but FramingError comes out, however the bytes are cut."""

import itertools
from typing import Any

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from vuserd.wire.bin_head import encode_bin_response_head, parse_bin_response_head
from vuserd.wire.codec import (
    NEED_DATA,
    FramingError,
    InvalidMessage,
    Limits,
    Message,
    MessageDecoder,
    Notification,
    Request,
    Response,
    decode_value,
    encode_notification,
    encode_request,
    encode_response,
    name_bytes,
    split_request,
    wire_name,
)

LIMITS = Limits(frame_bytes=400, depth=6, values=60)

msgids = st.integers(0, 2**32 - 1)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text()
values = st.recursive(
    scalars | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
foreign = st.recursive(
    scalars | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(scalars, inner, max_size=4),
    max_leaves=12,
)
requests = st.builds(Request, msgids, st.text(), st.lists(values, max_size=4), st.just(b""))
notifications = st.builds(Notification, st.text(), st.lists(values, max_size=4))
responses = st.builds(Response, msgids, values, values)


def encode(message: Request | Notification | Response) -> bytes:
    match message:
        case Request():
            return encode_request(message.msgid, message.method, message.params)
        case Notification():
            return encode_notification(*message)
        case Response():
            return encode_response(*message)


def run(frames: bytes, cuts: list[int], limits: Limits) -> tuple[list[Message], str | None]:
    """Decode ``frames`` fed in pieces that begin at ``cuts``: the messages, how it failed."""
    decoder = MessageDecoder(limits)
    messages: list[Message] = []
    edges = sorted({0, len(frames), *(cut % (len(frames) + 1) for cut in cuts)})
    try:
        for start, stop in itertools.pairwise(edges):
            decoder.feed(frames[start:stop])
            while (message := decoder.next_message()) is not NEED_DATA:
                messages.append(message)
            assert decoder.buffered <= limits.frame_bytes
    except FramingError as error:
        return messages, error.code
    return messages, None


cut_lists = st.lists(st.integers(0, 10_000), max_size=20)


@given(st.lists(requests | notifications | responses, max_size=4), cut_lists)
def test_what_is_encoded_is_decoded_however_it_is_cut(messages: list[Any], cuts: list[int]) -> None:
    frames = b"".join(map(encode, messages))
    assert run(frames, cuts, Limits()) == (messages, None)


@given(st.binary(max_size=600), cut_lists)
def test_arbitrary_bytes(data: bytes, cuts: list[int]) -> None:
    messages, failure = run(data, cuts, LIMITS)
    assert failure in (None, "BAD_REQUEST", "TOO_LARGE")
    assert repr((messages, failure)) == repr(run(data, [], LIMITS))  # repr: nan is not itself


@given(
    requests | notifications | responses,
    st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=3)), min_size=1, max_size=4),
    cut_lists,
)
def test_mutated_frames(message: Any, edits: list[tuple[int, bytes]], cuts: list[int]) -> None:
    frame = encode(message)
    for where, replacement in edits:
        at = where % (len(frame) + 1)
        frame = frame[:at] + replacement + frame[at + 1 :]
    assert repr(run(frame, cuts, LIMITS)) == repr(run(frame, [], LIMITS))


@given(st.lists(foreign, max_size=5) | foreign)
def test_any_messagepack_value_is_a_message_or_told_as_none(value: Any) -> None:
    frame: bytes = msgpack.packb(value)
    messages, failure = run(frame + encode_request(1, "next", []), [], Limits())
    assert failure is None
    assert len(messages) == 2
    assert isinstance(messages[0], Request | Response | Notification | InvalidMessage)
    assert messages[1] == Request(1, "next", [])


@given(msgids, st.integers(0, 2**32 - 1))
def test_bin_head_round_trip(msgid: int, length: int) -> None:
    head = encode_bin_response_head(msgid, length)
    assert parse_bin_response_head(head) == (msgid, len(head), length)


@given(st.binary(max_size=20))
def test_bin_head_of_arbitrary_bytes(data: bytes) -> None:
    head = parse_bin_response_head(b"\x94\x01" + data)
    if head is not None and head is not NEED_DATA:
        assert 0 < head.head_size <= len(data) + 2


@given(st.binary())
def test_names_round_trip(name: bytes) -> None:
    assert name_bytes(wire_name(name)) == name
    decoded: Any = msgpack.unpackb(msgpack.packb(wire_name(name)))
    assert name_bytes(decoded) == name


@given(st.lists(requests, min_size=1, max_size=4), st.binary(max_size=20))
def test_the_quick_way_ends_where_the_decoder_does(sent: list[Request], rest: bytes) -> None:
    """What is unpacked at once is what the decoder makes of the same bytes."""
    stream = b"".join(map(encode, sent)) + rest
    decoder = MessageDecoder()
    while (found := split_request(stream)) is not None:
        request, rest = found
        decoder.feed(stream[: len(stream) - len(rest)])
        assert decoder.next_message() == request._replace(said=b"")
        if request.said:
            assert decode_value(b"\x92" + request.said) == [request.method, request.params]
        assert decoder.buffered == 0
        stream = rest
