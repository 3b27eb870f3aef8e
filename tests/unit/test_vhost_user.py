"""The vhost-user codec: bytes worked out from QEMU's docs/interop/vhost-user.rst."""

import sys
from collections.abc import Callable

import pytest

from protocol import MalformedError, vhost_user
from protocol.vhost_user import (
    HEADER_SIZE,
    MAX_DESCRIPTORS,
    MAX_PAYLOAD,
    REPLIED,
    VRING_NO_DESCRIPTOR,
    DeviceStateReply,
    Header,
    MemoryRegion,
    MessageFlag,
    ProtocolFeature,
    Request,
    TransferDirection,
    TransferPhase,
    VringAddress,
    VringState,
    decode_device_state_reply,
    decode_reply_header,
    decode_u64,
    encode_device_state,
    encode_memory_region,
    encode_memory_table,
    encode_message,
    encode_u64,
    encode_vring_descriptor,
)

pytestmark = pytest.mark.skipif(
    sys.byteorder != "little", reason="the expected bytes are those of a little-endian machine"
)

# "Front-end message types" of vhost-user.rst, by id.
FRONT_END_MESSAGES = {
    1: "GET_FEATURES",
    2: "SET_FEATURES",
    3: "SET_OWNER",
    4: "RESET_OWNER",
    5: "SET_MEM_TABLE",
    6: "SET_LOG_BASE",
    7: "SET_LOG_FD",
    8: "SET_VRING_NUM",
    9: "SET_VRING_ADDR",
    10: "SET_VRING_BASE",
    11: "GET_VRING_BASE",
    12: "SET_VRING_KICK",
    13: "SET_VRING_CALL",
    14: "SET_VRING_ERR",
    15: "GET_PROTOCOL_FEATURES",
    16: "SET_PROTOCOL_FEATURES",
    17: "GET_QUEUE_NUM",
    18: "SET_VRING_ENABLE",
    19: "SEND_RARP",
    20: "NET_SET_MTU",
    21: "SET_BACKEND_REQ_FD",
    22: "IOTLB_MSG",
    23: "SET_VRING_ENDIAN",
    24: "GET_CONFIG",
    25: "SET_CONFIG",
    26: "CREATE_CRYPTO_SESSION",
    27: "CLOSE_CRYPTO_SESSION",
    28: "POSTCOPY_ADVISE",
    29: "POSTCOPY_LISTEN",
    30: "POSTCOPY_END",
    31: "GET_INFLIGHT_FD",
    32: "SET_INFLIGHT_FD",
    33: "GPU_SET_SOCKET",
    34: "RESET_DEVICE",
    35: "VRING_KICK",
    36: "GET_MAX_MEM_SLOTS",
    37: "ADD_MEM_REG",
    38: "REM_MEM_REG",
    39: "SET_STATUS",
    40: "GET_STATUS",
    41: "GET_SHARED_OBJECT",
    42: "SET_DEVICE_STATE_FD",
    43: "CHECK_DEVICE_STATE",
    44: "GET_SHMEM_CONFIG",
}

# "Protocol features" of the same, by bit.
PROTOCOL_FEATURES = {
    0: "MQ",
    1: "LOG_SHMFD",
    2: "RARP",
    3: "REPLY_ACK",
    4: "MTU",
    5: "BACKEND_REQ",
    6: "CROSS_ENDIAN",
    7: "CRYPTO_SESSION",
    8: "PAGEFAULT",
    9: "CONFIG",
    10: "BACKEND_SEND_FD",
    11: "HOST_NOTIFIER",
    12: "INFLIGHT_SHMFD",
    13: "RESET_DEVICE",
    14: "INBAND_NOTIFICATIONS",
    15: "CONFIGURE_MEM_SLOTS",
    16: "STATUS",
    17: "XEN_MMAP",
    18: "SHARED_OBJECT",
    19: "DEVICE_STATE",
}


class TestPublishedNumbers:
    def test_front_end_messages_are_those_of_the_specification(self) -> None:
        assert {request.value: request.name for request in Request} == FRONT_END_MESSAGES

    def test_protocol_features_are_those_of_the_specification_up_to_bit_19(self) -> None:
        expected = {1 << bit: name for bit, name in PROTOCOL_FEATURES.items()}
        assert {feature.value: feature.name for feature in ProtocolFeature} == expected

    def test_offer_of_the_c_backend_reads_as_measured(self) -> None:
        assert (
            ProtocolFeature(0x8C2B)
            == ProtocolFeature.MQ
            | ProtocolFeature.LOG_SHMFD
            | ProtocolFeature.REPLY_ACK
            | ProtocolFeature.BACKEND_REQ
            | ProtocolFeature.BACKEND_SEND_FD
            | ProtocolFeature.HOST_NOTIFIER
            | ProtocolFeature.CONFIGURE_MEM_SLOTS
        )

    def test_header_is_three_words_with_version_reply_and_need_reply(self) -> None:
        assert HEADER_SIZE == 12
        assert vhost_user.VERSION == 0x1
        assert MessageFlag.REPLY.value == 0x4
        assert MessageFlag.NEED_REPLY.value == 0x8

    def test_limits_are_those_of_the_specification(self) -> None:
        assert MAX_DESCRIPTORS == 8
        assert VRING_NO_DESCRIPTOR == 0x100
        assert TransferDirection.SAVE.value == 0
        assert TransferDirection.LOAD.value == 1
        assert TransferPhase.STOPPED.value == 0

    def test_every_getter_has_a_reply_of_its_own(self) -> None:
        getters = {request for request in Request if request.name.startswith("GET_")}
        assert getters | {Request.SET_DEVICE_STATE_FD, Request.CHECK_DEVICE_STATE} == REPLIED


class TestMessage:
    def test_message_without_payload_is_its_header(self) -> None:
        # request 1 | flags: version 1 | size 0
        assert encode_message(Request.GET_FEATURES) == bytes.fromhex("01000000 01000000 00000000")

    def test_message_that_wants_an_acknowledgement_has_bit_3(self) -> None:
        # request 2 | flags: version 1, NEED_REPLY | size 8 | VERSION_1 and PROTOCOL_FEATURES
        expected = bytes.fromhex("02000000 09000000 08000000 0000004001000000")
        payload = encode_u64(1 << 32 | 1 << 30)
        assert encode_message(Request.SET_FEATURES, payload, need_reply=True) == expected

    def test_header_encodes_its_three_words(self) -> None:
        # request 0x2a | flags: version 1, REPLY | size 0x1234
        assert Header(42, 5, 0x1234).encode() == bytes.fromhex("2a000000 05000000 34120000")
        assert Header(*[2**32 - 1] * 3).encode() == bytes.fromhex("ffffffff ffffffff ffffffff")


class TestReplyHeader:
    def test_reply_tells_the_size_of_its_payload(self) -> None:
        # request 1 | flags: version 1, REPLY | size 8
        header = bytes.fromhex("01000000 05000000 08000000")
        assert decode_reply_header(header, Request.GET_FEATURES) == 8

    def test_reply_may_repeat_the_need_reply_flag(self) -> None:
        header = bytes.fromhex("01000000 0d000000 08000000")
        assert decode_reply_header(header, Request.GET_FEATURES) == 8

    def test_largest_payload_is_accepted(self) -> None:
        assert MAX_PAYLOAD == 4096
        header = bytes.fromhex("01000000 05000000 00100000")
        assert decode_reply_header(header, Request.GET_FEATURES) == 4096

    @pytest.mark.parametrize(
        ("header", "complaint"),
        [
            pytest.param("", "0 bytes", id="nothing at all"),
            pytest.param("01000000 05000000 080000", "11 bytes", id="one byte too few"),
            pytest.param("01000000 05000000 08000000 00", "13 bytes", id="one byte too many"),
            pytest.param("02000000 05000000 08000000", "request 2", id="reply to another request"),
            pytest.param("00000000 05000000 08000000", "request 0", id="reply to no request"),
            pytest.param("00000001 05000000 08000000", "16777216", id="request in wrong order"),
            pytest.param("01000000 04000000 08000000", "version 0", id="version 0"),
            pytest.param("01000000 06000000 08000000", "version 2", id="version 2"),
            pytest.param("01000000 07000000 08000000", "version 3", id="version 3"),
            pytest.param("01000000 01000000 08000000", "no REPLY flag", id="no reply flag"),
            pytest.param("01000000 09000000 08000000", "no REPLY flag", id="only NEED_REPLY"),
            pytest.param("01000000 05000000 01100000", "4097 bytes", id="payload one too large"),
            pytest.param("01000000 05000000 ffffffff", "4294967295", id="payload of all ones"),
        ],
    )
    def test_malformed_header_is_refused(self, header: str, complaint: str) -> None:
        with pytest.raises(MalformedError, match=complaint):
            decode_reply_header(bytes.fromhex(header), Request.GET_FEATURES)


class TestPayloads:
    def test_u64(self) -> None:
        assert encode_u64(0x0102030405060708) == bytes.fromhex("0807060504030201")
        assert decode_u64(bytes.fromhex("0807060504030201")) == 0x0102030405060708
        assert encode_u64(2**64 - 1) == bytes.fromhex("ffffffffffffffff")
        assert decode_u64(bytes.fromhex("ffffffffffffffff")) == 2**64 - 1

    def test_vring_descriptor_names_the_queue_in_bits_0_to_7(self) -> None:
        assert encode_vring_descriptor(0) == bytes.fromhex("0000000000000000")
        assert encode_vring_descriptor(255) == bytes.fromhex("ff00000000000000")

    def test_vring_descriptor_says_none_in_bit_8(self) -> None:
        assert encode_vring_descriptor(1, descriptor=False) == bytes.fromhex("0101000000000000")

    @pytest.mark.parametrize("queue", [-1, 256])
    def test_vring_descriptor_takes_no_other_queue(self, queue: int) -> None:
        with pytest.raises(ValueError, match=f"queue index {queue}"):
            encode_vring_descriptor(queue)

    def test_vring_state(self) -> None:
        # queue 1 | num 256
        wire = bytes.fromhex("01000000 00010000")
        assert VringState(1, 256).encode() == wire
        assert VringState.decode(wire) == VringState(1, 256)

    def test_vring_state_of_all_ones(self) -> None:
        assert VringState(2**32 - 1, 2**32 - 1).encode() == bytes.fromhex("ffffffff ffffffff")
        assert VringState.decode(bytes.fromhex("ffffffff ffff0000")) == (2**32 - 1, 2**16 - 1)

    def test_vring_address(self) -> None:
        address = VringAddress(1, 0, 0x7F0000001000, 0x7F0000003000, 0x7F0000002000, 0)
        assert address.encode() == bytes.fromhex(
            "01000000 00000000"  # queue 1 | flags 0
            "00100000007f0000"  # descriptor table
            "00300000007f0000"  # used ring, before the available one
            "00200000007f0000"  # available ring
            "0000000000000000"  # log
        )

    def test_vring_address_of_all_ones(self) -> None:
        assert VringAddress(*[2**32 - 1] * 2, *[2**64 - 1] * 4).encode() == b"\xff" * 40

    def test_memory_table_of_one_region_whose_numbers_have_no_sign(self) -> None:
        assert encode_memory_table([MemoryRegion(*[2**64 - 1] * 4)]) == bytes.fromhex(
            "01000000 00000000"  # one region | padding
            + "ff" * 32
        )

    def test_memory_table_of_two_regions(self) -> None:
        table = encode_memory_table(
            [
                MemoryRegion(0x100000000, 0x200000, 0x100100000000, 0),
                MemoryRegion(0x100300000, 0x1000, 0x100100300000, 0x2000),
            ]
        )
        assert table == bytes.fromhex(
            "02000000 00000000"  # two regions | padding
            "0000000001000000 0000200000000000"  # guest address | size
            "0000000001100000 0000000000000000"  # user address | mmap offset
            "0000300001000000 0010000000000000"
            "0000300001100000 0020000000000000"
        )

    @pytest.mark.parametrize("count", [0, 9])
    def test_memory_table_holds_one_to_eight_regions(self, count: int) -> None:
        with pytest.raises(ValueError, match=f"{count} regions"):
            encode_memory_table([MemoryRegion(0, 4096, 0, 0)] * count)

    def test_memory_table_of_eight_regions_has_264_bytes(self) -> None:
        assert len(encode_memory_table([MemoryRegion(0, 4096, 0, 0)] * 8)) == 8 + 8 * 32

    def test_single_memory_region_has_padding_first(self) -> None:
        region = MemoryRegion(0x100000000, 0x200000, 0x100100000000, 0x3000)
        assert encode_memory_region(region) == bytes.fromhex(
            "0000000000000000"  # padding
            "0000000001000000 0000200000000000"  # guest address | size
            "0000000001100000 0030000000000000"  # user address | mmap offset
        )
        assert encode_memory_region(MemoryRegion(*[2**64 - 1] * 4)) == bytes(8) + b"\xff" * 32

    def test_device_state_parameters(self) -> None:
        # direction 1 (load) | phase 0 (stopped)
        expected = bytes.fromhex("01000000 00000000")
        assert encode_device_state(TransferDirection.LOAD, TransferPhase.STOPPED) == expected

    @pytest.mark.parametrize(
        ("reply", "meaning"),
        [
            pytest.param("0001000000000000", DeviceStateReply(True, False), id="use yours"),
            pytest.param("0000000000000000", DeviceStateReply(True, True), id="use mine"),
            pytest.param("0101000000000000", DeviceStateReply(False, False), id="failed with 1"),
            pytest.param("ff01000000000000", DeviceStateReply(False, False), id="failed with 255"),
            pytest.param("0002000000000000", DeviceStateReply(True, True), id="bit 9 says nothing"),
            pytest.param("0003000000000000", DeviceStateReply(True, False), id="nor beside bit 8"),
        ],
    )
    def test_device_state_reply(self, reply: str, meaning: DeviceStateReply) -> None:
        assert decode_device_state_reply(bytes.fromhex(reply)) == meaning

    @pytest.mark.parametrize(
        ("decode", "payload"),
        [
            pytest.param(decode_u64, "", id="a u64 of no bytes"),
            pytest.param(decode_u64, "00000000000000", id="a u64 of 7 bytes"),
            pytest.param(decode_u64, "000000000000000000", id="a u64 of 9 bytes"),
            pytest.param(VringState.decode, "", id="a vring state of no bytes"),
            pytest.param(VringState.decode, "01000000", id="half a vring state"),
            pytest.param(VringState.decode, "01000000 00010000 00", id="a vring state and more"),
            pytest.param(decode_device_state_reply, "", id="a device state reply of no bytes"),
            pytest.param(decode_device_state_reply, "00010000", id="half a device state reply"),
        ],
    )
    def test_payload_of_another_length_is_refused(
        self, decode: Callable[[bytes], object], payload: str
    ) -> None:
        with pytest.raises(MalformedError, match="bytes where 8 belong"):
            decode(bytes.fromhex(payload))


@pytest.mark.parametrize(
    ("reply", "value"),
    [("0100000000000000", "0x1"), ("ff00000000000000", "0xff"), ("0102000000000000", "0x201")],
)
def test_a_failed_state_transfer_brings_no_descriptor(reply: str, value: str) -> None:
    """A failure (bits 0-7 are not 0) whose bit 8 says that a descriptor came along."""
    with pytest.raises(MalformedError, match=rf"failed \({value}\) with a descriptor"):
        decode_device_state_reply(bytes.fromhex(reply))


def test_a_split_ring_has_an_index_of_16_bits() -> None:
    assert VringState.decode(bytes.fromhex("01000000ffff0000")) == (1, 0xFFFF)
    with pytest.raises(MalformedError, match="index 65536"):
        VringState.decode(bytes.fromhex("0100000000000100"))
    with pytest.raises(MalformedError, match="index 4294967295"):
        VringState.decode(bytes.fromhex("01000000ffffffff"))
