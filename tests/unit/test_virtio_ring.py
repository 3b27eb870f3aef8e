"""The split ring's layout and numbers, from VIRTIO 1.2, section 2.7 and chapter 6."""

import re
from pathlib import Path

import pytest

from protocol.virtio_ring import (
    AVAILABLE_ALIGNMENT,
    DESCRIPTOR,
    DESCRIPTOR_ALIGNMENT,
    MAX_RING_SIZE,
    USED_ALIGNMENT,
    USED_ELEMENT,
    DescriptorFlag,
    Feature,
    RingLayout,
)

RING_HEADER = Path("/usr/include/linux/virtio_ring.h")
CONFIG_HEADER = Path("/usr/include/linux/virtio_config.h")


def defines(header: Path) -> dict[str, int]:
    return {
        name: int(value)
        for name, value in re.findall(r"#define\s+(\w+)\s+(\d+)\b", header.read_text())
    }


class TestPublishedNumbers:
    def test_descriptor_is_address_length_flags_next(self) -> None:
        assert DESCRIPTOR.size == 16
        assert DESCRIPTOR.pack(0x0102030405060708, 0x11121314, 0x2122, 0x3132) == bytes.fromhex(
            "0807060504030201 14131211 2221 3231"
        )
        assert DESCRIPTOR.pack(2**64 - 1, 2**32 - 1, 2**16 - 1, 2**16 - 1) == b"\xff" * 16

    def test_used_element_is_id_and_length(self) -> None:
        assert USED_ELEMENT.size == 8
        assert USED_ELEMENT.pack(0x01020304, 0x11121314) == bytes.fromhex("04030201 14131211")
        assert USED_ELEMENT.unpack(b"\xff" * 8) == (2**32 - 1, 2**32 - 1)

    def test_descriptor_flags(self) -> None:
        assert {flag.name: flag.value for flag in DescriptorFlag} == {
            "NEXT": 1,
            "WRITE": 2,
            "INDIRECT": 4,
        }

    def test_largest_ring_has_32768_descriptors(self) -> None:
        assert MAX_RING_SIZE == 32768

    def test_alignments(self) -> None:
        assert (DESCRIPTOR_ALIGNMENT, AVAILABLE_ALIGNMENT, USED_ALIGNMENT) == (16, 2, 4)

    def test_features(self) -> None:
        assert {feature.name: feature.value for feature in Feature} == {
            "NOTIFY_ON_EMPTY": 0x0_0100_0000,
            "LOG_ALL": 0x0_0400_0000,
            "INDIRECT_DESC": 0x0_1000_0000,
            "EVENT_IDX": 0x0_2000_0000,
            "PROTOCOL_FEATURES": 0x0_4000_0000,
            "VERSION_1": 0x1_0000_0000,
            "ACCESS_PLATFORM": 0x2_0000_0000,
            "RING_PACKED": 0x4_0000_0000,
            "IN_ORDER": 0x8_0000_0000,
        }

    def test_offer_of_the_rust_backend_reads_as_measured(self) -> None:
        assert (
            Feature(0x174000000)
            == Feature.LOG_ALL
            | Feature.INDIRECT_DESC
            | Feature.EVENT_IDX
            | Feature.PROTOCOL_FEATURES
            | Feature.VERSION_1
        )

    @pytest.mark.skipif(not RING_HEADER.exists(), reason=f"{RING_HEADER} is not installed")
    def test_numbers_are_those_of_the_kernels_ring_header(self) -> None:
        published = defines(RING_HEADER)
        assert {flag.name: flag.value for flag in DescriptorFlag} == {
            name: published[f"VRING_DESC_F_{name}"] for name in ("NEXT", "WRITE", "INDIRECT")
        }
        assert published["VRING_DESC_ALIGN_SIZE"] == DESCRIPTOR_ALIGNMENT
        assert published["VRING_AVAIL_ALIGN_SIZE"] == AVAILABLE_ALIGNMENT
        assert published["VRING_USED_ALIGN_SIZE"] == USED_ALIGNMENT
        assert 1 << published["VIRTIO_RING_F_INDIRECT_DESC"] == Feature.INDIRECT_DESC
        assert 1 << published["VIRTIO_RING_F_EVENT_IDX"] == Feature.EVENT_IDX

    @pytest.mark.skipif(not CONFIG_HEADER.exists(), reason=f"{CONFIG_HEADER} is not installed")
    def test_numbers_are_those_of_the_kernels_config_header(self) -> None:
        published = defines(CONFIG_HEADER)
        for feature in (
            Feature.NOTIFY_ON_EMPTY,
            Feature.VERSION_1,
            Feature.ACCESS_PLATFORM,
            Feature.RING_PACKED,
            Feature.IN_ORDER,
        ):
            assert 1 << published[f"VIRTIO_F_{feature.name}"] == feature


class TestRingLayout:
    @pytest.mark.parametrize(
        ("num", "available", "used", "size"),
        [
            # 16 num | 6 + 2 num, then up to a multiple of 4 | 6 + 8 num
            pytest.param(2, 32, 32 + 10 + 2, 44 + 22, id="the smallest ring"),
            pytest.param(4, 64, 64 + 14 + 2, 80 + 38, id="a ring of 4"),
            pytest.param(256, 4096, 4096 + 518 + 2, 4616 + 2054, id="a ring of 256"),
            pytest.param(32768, 524288, 524288 + 65542 + 2, 589832 + 262150, id="the largest"),
        ],
    )
    def test_parts_follow_each_other_aligned(
        self, num: int, available: int, used: int, size: int
    ) -> None:
        assert RingLayout.for_size(num) == RingLayout(num, 0, available, used, size)

    @pytest.mark.parametrize("num", [-4, 0, 1, 3, 5, 6, 10, 12, 255, 24576, 32769, 65536])
    def test_no_other_size_is_a_ring(self, num: int) -> None:
        with pytest.raises(ValueError, match="power of two"):
            RingLayout.for_size(num)
