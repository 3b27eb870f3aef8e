"""Whatever a backend sends over the vhost-user socket is a value or MalformedError."""

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import MalformedError
from protocol.vhost_user import (
    HEADER_SIZE,
    MAX_PAYLOAD,
    VERSION,
    Header,
    MessageFlag,
    Request,
    VringState,
    decode_device_state_reply,
    decode_reply_header,
    decode_u64,
    encode_u64,
)

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
requests = st.sampled_from(Request)


def bytes_about(size: int) -> st.SearchStrategy[bytes]:
    """Any bytes at all, half of them of the size that belongs."""
    return st.binary(max_size=2 * size + 2) | st.binary(min_size=size, max_size=size)


# Words that are near to what belongs, so that every check is reached.
near_headers = st.tuples(
    st.integers(0, 50) | u32, st.integers(0, 15) | u32, st.integers(0, 5000) | u32
).map(lambda words: b"".join(word.to_bytes(4, "little") for word in words))


@given(bytes_about(HEADER_SIZE) | near_headers, requests)
@settings(deadline=None)
def test_any_header_is_a_size_or_refused(header: bytes, request: Request) -> None:
    try:
        size = decode_reply_header(header, request)
    except MalformedError:
        return
    assert 0 <= size <= MAX_PAYLOAD


@given(requests, st.integers(0, MAX_PAYLOAD), st.booleans())
@settings(deadline=None)
def test_every_correct_reply_header_is_accepted(
    request: Request, size: int, repeats_need_reply: bool
) -> None:
    flags = VERSION | MessageFlag.REPLY
    if repeats_need_reply:
        flags |= MessageFlag.NEED_REPLY
    assert decode_reply_header(Header(request, flags, size).encode(), request) == size


@given(bytes_about(8))
@settings(deadline=None)
def test_any_u64_payload_is_a_number_or_refused(payload: bytes) -> None:
    try:
        number = decode_u64(payload)
    except MalformedError:
        assert len(payload) != 8
        return
    assert encode_u64(number) == payload


@given(bytes_about(8))
@settings(deadline=None)
def test_any_vring_state_is_two_numbers_or_refused(payload: bytes) -> None:
    try:
        state = VringState.decode(payload)
    except MalformedError:
        assert len(payload) != 8 or any(payload[6:])
        return
    assert state.encode() == payload


@given(bytes_about(8))
@settings(deadline=None)
def test_any_device_state_reply_is_two_answers_or_refused(payload: bytes) -> None:
    try:
        reply = decode_device_state_reply(payload)
    except MalformedError:
        assert len(payload) != 8 or (payload[0] and not payload[1] & 1)
        return
    assert reply.accepted is (payload[0] == 0)
    assert reply.own_descriptor is (payload[1] & 1 == 0)
