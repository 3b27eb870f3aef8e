"""The MessagePack-RPC codec: bytes worked out from the two specifications."""

import contextlib
import itertools
import tracemalloc

import msgpack
import pytest

from vuserd.wire.bin_head import (
    BIN_HEAD_MAX,
    BinHead,
    encode_bin_response_head,
    parse_bin_response_head,
)
from vuserd.wire.codec import (
    MSGID_MAX,
    NEED_DATA,
    PLAIN_MAX,
    FramingError,
    InvalidMessage,
    Limits,
    Message,
    MessageDecoder,
    Notification,
    Request,
    Response,
    decode_value,
    encode_column,
    encode_listing_response_head,
    encode_names,
    encode_notification,
    encode_request,
    encode_response,
    encode_response_of,
    encode_result,
    encode_values,
    name_bytes,
    split_request,
    wire_name,
)

# array of 4 | 0 | msgid 5 | "stat" | ["k", "/a"]
STAT = bytes.fromhex("94 00 05 a4") + b"stat" + bytes.fromhex("92 a1 6b a2 2f 61")


def decode(frame: bytes, limits: Limits | None = None) -> list[Message]:
    decoder = MessageDecoder(limits or Limits())
    decoder.feed(frame)
    messages = list(decoder)
    assert decoder.buffered == 0
    return messages


def decode_one(*elements: object) -> Message:
    packed: bytes = msgpack.packb(list(elements))
    [message] = decode(packed)
    return message


def refused(frame: bytes, limits: Limits | None = None) -> FramingError:
    decoder = MessageDecoder(limits or Limits())
    decoder.feed(frame)
    with pytest.raises(FramingError) as caught:
        list(decoder)
    return caught.value


class TestMessages:
    def test_request(self) -> None:
        assert encode_request(5, "stat", ["k", "/a"]) == STAT
        assert decode(STAT) == [Request(5, "stat", ["k", "/a"])]

    def test_notification(self) -> None:
        frame = bytes.fromhex("93 02 a2 68 69 90")
        assert encode_notification("hi", []) == frame
        assert decode(frame) == [Notification("hi", [])]

    def test_response(self) -> None:
        frame = bytes.fromhex("94 01 cd 01 2c c0 c3")
        assert encode_response(300, None, True) == frame
        assert decode(frame) == [Response(300, None, True)]

    def test_several_in_one_feed_and_one_in_several(self) -> None:
        decoder = MessageDecoder()
        decoder.feed(STAT + STAT + STAT[:3])
        assert len(list(decoder)) == 2
        assert decoder.buffered == 3
        for byte in STAT[3:-1]:
            decoder.feed(bytes([byte]))
            assert decoder.next_message() is NEED_DATA
        decoder.feed(STAT[-1:])
        assert isinstance(decoder.next_message(), Request)
        assert decoder.buffered == 0

    def test_method_as_bytes(self) -> None:
        assert decode_one(0, 1, b"stat", []) == Request(1, "stat", [])

    def test_text_that_is_not_utf8_is_taken_as_a_name(self) -> None:
        frame = bytes.fromhex("94 00 01 a1 6d 91 a2 61 ff")
        [message] = decode(frame)
        assert isinstance(message, Request)
        assert name_bytes(message.params[0]) == b"a\xff"

    def test_text_with_an_escaped_byte_is_still_utf8(self) -> None:
        frame = encode_response(1, {"message": "no export \udcff"}, None)
        assert msgpack.unpackb(frame)[2] == {"message": "no export \\udcff"}
        assert msgpack.unpackb(encode_response(1, None, "\udcff"))[3] == "\\udcff"

    @pytest.mark.parametrize("msgid", [0, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x10000, 0xFFFFFFFF])
    def test_msgids(self, msgid: int) -> None:
        assert decode(encode_request(msgid, "m", [])) == [Request(msgid, "m", [])]
        for result in (None, {"size": 300, "name": "\udcff"}, b"bytes"):
            whole = encode_response(msgid, None, result)
            assert encode_response_of(msgid, encode_result(result)) == whole


class TestInvalidMessages:
    @pytest.mark.parametrize(
        ("elements", "msgid"),
        [
            ([], None),
            ([3, 1, "m", []], None),
            ([True, 1, "m", []], None),
            ([-1, 1, "m", []], None),
            ([0.0, 1, "m", []], None),
            ([0], None),
            ([0, True, "m", []], None),
            ([0, -1, "m", []], None),
            ([0, 2**32, "m", []], None),
            ([0, "1", "m", []], None),
            ([0, 1], 1),
            ([0, 1, "m"], 1),
            ([0, 1, "m", [], 1], 1),
            ([0, 1, 2, []], 1),
            ([0, 1, None, []], 1),
            ([0, 1, b"\xff", []], 1),
            ([0, 1, "m", {}], 1),
            ([0, 1, "m", None], 1),
            ([0, 1, "m", "params"], 1),
            ([0, 1, "m", [msgpack.ExtType(4, b"x")]], 1),
            ([0, 1, "m", [msgpack.ExtType(4, b"x" * 17)]], 1),
            ([0, 1, "m", [msgpack.Timestamp(1, 1)]], 1),
            ([0, 1, "m", [{1: 2}]], 1),
            ([0, 1, "m", [{None: 2}]], 1),
            ([0, -1, "m", [{None: 2}]], None),
            ([msgpack.Timestamp(1), 1, "m", []], None),
            ([{1: 1}, 1, "m", []], None),
            ([1, 7, {5: 5}, None], 7),
            ([2, "m", [{5: 5}]], None),
            ([1, 7, None], 7),
            ([2, "m"], None),
            ([2, 5, []], None),
            ([2, "m", 5], None),
        ],
    )
    def test_is_told_with_its_msgid(self, elements: list[object], msgid: int | None) -> None:
        message = decode_one(*elements)
        assert isinstance(message, InvalidMessage)
        assert message.msgid == msgid
        assert message.reason

    @pytest.mark.parametrize("value", [None, 7, "text", {}, b""])
    def test_is_no_array(self, value: object) -> None:
        assert isinstance(decode(msgpack.packb(value))[0], InvalidMessage)

    def test_invalid_method_text(self) -> None:
        [message] = decode(bytes.fromhex("94 00 01 a1 ff 90"))
        assert message == InvalidMessage(1, "a method's name is a str in UTF-8")

    def test_a_map_whose_key_is_a_map(self) -> None:
        [message] = decode(bytes.fromhex("94 00 01 a1 6d 91 81 80 01"))
        assert isinstance(message, InvalidMessage)
        assert message.msgid == 1

    def test_a_timestamp_of_a_size_that_there_is_not(self) -> None:
        [message] = decode(bytes.fromhex("94 00 01 a1 6d 91 c7 01 ff 00"))
        assert isinstance(message, InvalidMessage)

    def test_the_next_message_follows(self) -> None:
        messages = decode(msgpack.packb([0, 1, "m", {}]) + STAT)
        assert [type(message) for message in messages] == [InvalidMessage, Request]


class TestLimits:
    def test_reserved_byte(self) -> None:
        assert refused(b"\xc1").code == "BAD_REQUEST"
        assert refused(b"\x94\x00\x01\xa1m\x91\xc1").code == "BAD_REQUEST"

    def test_messages_before_the_fault_are_given_out(self) -> None:
        decoder = MessageDecoder()
        decoder.feed(STAT + b"\xc1")
        assert isinstance(decoder.next_message(), Request)
        with pytest.raises(FramingError):
            decoder.next_message()

    def test_a_failed_decoder_stays_failed(self) -> None:
        decoder = MessageDecoder()
        decoder.feed(b"\xc1" + STAT)
        for _ in range(2):
            with pytest.raises(FramingError):
                decoder.next_message()
        with pytest.raises(FramingError):
            decoder.feed(STAT)

    def test_frame_size_to_the_byte(self) -> None:
        assert decode(STAT, Limits(frame_bytes=len(STAT)))
        error = refused(STAT, Limits(frame_bytes=len(STAT) - 1))
        assert error.code == "TOO_LARGE"

    def test_frame_size_is_a_frames_own(self) -> None:
        assert len(decode(STAT * 100, Limits(frame_bytes=len(STAT)))) == 100

    @pytest.mark.parametrize(
        "head",
        [
            "c6 ffffffff",  # bin
            "db 00100000",  # str
            "c9 ffffffff 00",  # ext
            "dd ffffffff",  # array
            "df ffffffff",  # map
        ],
    )
    def test_a_frame_too_large_is_refused_at_its_head(self, head: str) -> None:
        assert refused(bytes.fromhex("94 00 01 a1 6d 91" + head)).code == "TOO_LARGE"

    def test_a_frame_too_large_in_small_values(self) -> None:
        decoder = MessageDecoder(Limits(frame_bytes=1000))
        decoder.feed(bytes.fromhex("dc 00c8"))  # 200 values
        for _ in range(110):  # 993 bytes
            decoder.feed(bytes.fromhex("cf 0000000000000000"))
            assert decoder.next_message() is NEED_DATA
        decoder.feed(bytes.fromhex("cf 0000000000000000"))
        with pytest.raises(FramingError) as caught:
            decoder.next_message()
        assert caught.value.code == "TOO_LARGE"

    def test_depth(self) -> None:
        def nested(levels: int) -> bytes:
            return b"\x94\x00\x01\xa1m" + b"\x91" * (levels - 2) + b"\x90"

        assert decode(nested(16)) != []
        assert refused(nested(17)).code == "TOO_LARGE"
        assert refused(b"\x91" * 500_000).code == "TOO_LARGE"
        assert refused(b"\x81\xa1k" * 17).code == "TOO_LARGE"

    def test_number_of_values(self) -> None:
        frame = encode_request(1, "m", [[]] * 100)
        assert decode(frame, Limits(values=105))
        assert refused(frame, Limits(values=104)).code == "TOO_LARGE"


class TestNames:
    def test_wire_name(self) -> None:
        assert wire_name("ä".encode()) == "ä"
        assert wire_name(b"\xff") == b"\xff"

    def test_name_bytes(self) -> None:
        assert name_bytes("ä") == "ä".encode()
        assert name_bytes(b"\xff") == b"\xff"
        assert name_bytes("\udcff") == b"\xff"
        with pytest.raises(TypeError, match="not int"):
            name_bytes(3)
        with pytest.raises(ValueError, match="surrogates"):
            name_bytes("\ud800")


class TestBinHead:
    @pytest.mark.parametrize("msgid", [0, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x10000, 0xFFFFFFFF])
    @pytest.mark.parametrize("length", [0, 1, 0xFF, 0x100, 0xFFFF, 0x10000])
    def test_is_what_msgpack_writes(self, msgid: int, length: int) -> None:
        payload = bytes(length)
        head = encode_bin_response_head(msgid, length)
        assert head + payload == encode_response(msgid, None, payload)
        assert len(head) <= BIN_HEAD_MAX
        assert parse_bin_response_head(head) == BinHead(msgid, len(head), length)
        assert parse_bin_response_head(memoryview(head + payload)) == (msgid, len(head), length)
        for size in range(len(head)):
            assert parse_bin_response_head(head[:size]) is NEED_DATA

    def test_lengths(self) -> None:
        assert encode_bin_response_head(1, 0xFFFFFFFF)[-5:] == b"\xc6\xff\xff\xff\xff"
        for length in (-1, 2**32):
            with pytest.raises(ValueError, match="bytes"):
                encode_bin_response_head(1, length)

    @pytest.mark.parametrize(
        "frame",
        [
            STAT,
            b"\x93",
            b"\x94\x00",
            encode_response(1, None, "text"),
            encode_response(1, None, None),
            encode_response(300, {"code": "ENOENT"}, None),
            b"\x94\x01\xcf\x00\x00\x00\x00\x00\x00\x00\x01\xc0\xc4\x00",
            b"\x94\x01\xff\xc0\xc4\x00",
        ],
    )
    def test_anything_else(self, frame: bytes) -> None:
        assert parse_bin_response_head(frame) is None


class TestListing:
    def test_the_head_and_the_values_make_what_one_call_makes(self) -> None:
        entries = [{"name": "a", "ino": 1}, {"name": b"\xff", "ino": 2**40}]
        for msgid, count in itertools.product((0, 200, 70_000), (0, 1, 2)):
            head = encode_listing_response_head(
                msgid, {"next": None}, "entries", count, is_map=False
            )
            frame = head + encode_values(entries[:count])
            wanted = {"next": None, "entries": entries[:count]}
            assert frame == encode_response(msgid, None, wanted)

    def test_the_head_of_columns_likewise(self) -> None:
        columns = {"name": ["a", b"\xff"], "ino": [1, 2**40]}
        head = encode_listing_response_head(7, {"next": None}, "entries", 2, is_map=True)
        frame = head + b"".join(map(encode_values, columns.items()))
        assert frame == encode_response(7, None, {"next": None, "entries": columns})

    def test_bytes(self) -> None:
        assert encode_listing_response_head(1, {}, "entries", 20, is_map=False).hex(" ") == (
            "94 01 01 c0 81 a7 65 6e 74 72 69 65 73 dc 00 14"
        )
        assert encode_values([1, "a", None]).hex(" ") == "01 a1 61 c0"

    @pytest.mark.parametrize(
        "values",
        [
            [],
            [7],
            [33188] * 300,
            ["file"] * 20,
            [None] * 3,
            [1, 2, 1],
            [None, 5, None],
            [*range(300), 0],
        ],
    )
    def test_columns(self, values: list[object]) -> None:
        assert encode_column(values) == encode_values(values)

    @pytest.mark.parametrize("length", [1, 31, 32, 255, 256, 65_535, 65_536])
    @pytest.mark.parametrize("others", [[], [b"a"], ["ä".encode()], [b"\xff"], [b"\xc3", b"\xa4"]])
    def test_names(self, others: list[bytes], length: int) -> None:
        """What is UTF-8 by itself is a str, the others are bin: also where they join to UTF-8."""
        names = [*others, b"n" * length]
        packed = b"\xdd" + len(names).to_bytes(4, "big") + encode_names(names)
        found = decode_value(packed)
        assert found == [wire_name(name) for name in names]
        assert [*map(type, found)] == [type(wire_name(name)) for name in names]

    @pytest.mark.parametrize("count", [0, 15, 16, 70_000])
    def test_so_many_names(self, count: int) -> None:
        assert encode_names([b"ab"] * count) == b"\xa2ab" * count


class TestQuickWay:
    def test_requests_one_after_the_other(self) -> None:
        other = encode_request(6, "stat", ["k", b"\xff", {"follow": False}])
        stream = STAT + other + STAT[:3]
        request, stream = split_request(stream) or pytest.fail("not taken")
        assert request == Request(5, "stat", ["k", "/a"], STAT[3:])
        request, stream = split_request(stream) or pytest.fail("not taken")
        assert request == Request(6, "stat", ["k", b"\xff", {"follow": False}], other[3:])
        assert stream == STAT[:3]
        assert split_request(stream) is None

    @pytest.mark.parametrize("msgid", [0, 127, 128, 255, 256, 65535, 65536, MSGID_MAX])
    def test_what_is_said_is_all_behind_the_msgid(self, msgid: int) -> None:
        said = [
            split_request(encode_request(each, "stat", ["k", "/a"]) + rest)
            for each, rest in ((msgid, b""), (msgid, STAT), (5, b"\0"))
        ]
        assert {found[0].said for found in said if found} == {STAT[3:]}

    @pytest.mark.parametrize(
        "head",
        [
            pytest.param(b"\x94\x00\xcf\0\0\0\0\0\0\0\x05", id="a msgid of 64 bits"),
            pytest.param(b"\x94\xcc\x00\x05", id="a type that is no fixint"),
            pytest.param(b"\xdc\x00\x04\x00\x05", id="an array of 16 bits"),
        ],
    )
    def test_what_is_said_is_unknown_behind_an_odd_head(self, head: bytes) -> None:
        assert split_request(head + STAT[3:]) == (Request(5, "stat", ["k", "/a"]), b"")

    @pytest.mark.parametrize(
        "frame",
        [
            pytest.param(STAT[:-1], id="not whole"),
            pytest.param(encode_notification("stat", []), id="a notification"),
            pytest.param(encode_response(5, None, None), id="a response"),
            pytest.param(msgpack.packb([False, 5, "stat", []]), id="false for a kind"),
            pytest.param(msgpack.packb([0, True, "stat", []]), id="true for a msgid"),
            pytest.param(msgpack.packb([0, 2**32, "stat", []]), id="a msgid too large"),
            pytest.param(msgpack.packb([0, 5, b"stat", []]), id="a method in bytes"),
            pytest.param(encode_request(5, "st\u00e4t", []), id="a method beyond ASCII"),
            pytest.param(msgpack.packb([0, 5, "stat", {}]), id="a map of params"),
            pytest.param(encode_request(5, "stat", [[]]), id="a container in params"),
            pytest.param(encode_request(5, "stat", [{"a": []}]), id="a container in options"),
            pytest.param(msgpack.packb([0, 5, "stat", [msgpack.ExtType(1, b"")]]), id="ext"),
            pytest.param(b"\xc1", id="no MessagePack"),
            pytest.param(b"\x91" * 900 + b"\x00", id="deep"),
            pytest.param(STAT * (PLAIN_MAX // len(STAT) + 1), id="much at once"),
            pytest.param(b"", id="nothing"),
        ],
    )
    def test_all_else_is_left_to_the_decoder(self, frame: bytes) -> None:
        assert split_request(frame) is None


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"\xdb\xff\xff\xff\xff", id="str"),
        pytest.param(b"\xc6\xff\xff\xff\xff", id="bin"),
        pytest.param(b"\xc9\xff\xff\xff\xff\x05", id="ext"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="array"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="map"),
        pytest.param(b"\xdd\x00\x10\x00\x00", id="a million values"),
        pytest.param(b"\xdc\x03\x00", id="nearly as many as there are bytes"),
    ],
)
def test_what_a_frame_promises_takes_little_memory(head: bytes) -> None:
    """Room for an array may be made at each level, but for no more values than there are bytes."""
    frame = b"\x94\x00\x01\xa4stat" + head * ((PLAIN_MAX - 8) // len(head))
    tracemalloc.start()
    try:
        assert split_request(frame) is None
        decoder = MessageDecoder()
        decoder.feed(frame)
        with contextlib.suppress(FramingError):
            assert decoder.next_message() is NEED_DATA
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4 << 20
