"""The virtio-fs device's numbers and configuration space, from VIRTIO 1.2, section 5.11."""

import re
from pathlib import Path

import pytest

from protocol import MalformedError, virtio_fs
from protocol.virtio_fs import CONFIG_SIZE, DeviceConfig, DeviceFeature

IDS_HEADER = Path("/usr/include/linux/virtio_ids.h")

# tag, 36 bytes padded with NUL | one request queue | notify_buf_size 0
TAG = b"kernels" + bytes(29)
CONFIG = TAG + bytes.fromhex("01000000 00000000")


class TestPublishedNumbers:
    def test_device_is_number_26(self) -> None:
        assert virtio_fs.DEVICE_ID == 26

    @pytest.mark.skipif(not IDS_HEADER.exists(), reason=f"{IDS_HEADER} is not installed")
    def test_device_is_the_kernels_number(self) -> None:
        found = re.search(r"#define\s+VIRTIO_ID_FS\s+(\d+)", IDS_HEADER.read_text())
        assert found is not None
        assert int(found[1]) == virtio_fs.DEVICE_ID

    def test_hiprio_is_queue_0_and_requests_begin_at_1(self) -> None:
        assert virtio_fs.HIPRIO_QUEUE == 0
        assert virtio_fs.REQUEST_QUEUE == 1
        assert virtio_fs.QUEUES == (0, 1)

    def test_notification_queue_is_feature_bit_0(self) -> None:
        assert DeviceFeature.NOTIFICATION.value == 1

    def test_configuration_has_36_bytes_of_tag_and_two_words(self) -> None:
        assert CONFIG_SIZE == 36 + 4 + 4


class TestDeviceConfig:
    def test_fields_are_decoded(self) -> None:
        assert DeviceConfig.decode(CONFIG) == DeviceConfig(b"kernels", 1, 0)

    def test_numbers_are_little_endian(self) -> None:
        decoded = DeviceConfig.decode(TAG + bytes.fromhex("02010000 00100000"))
        assert decoded == DeviceConfig(b"kernels", 0x102, 0x1000)

    def test_numbers_have_no_sign(self) -> None:
        decoded = DeviceConfig.decode(TAG + bytes.fromhex("ffffffff ffffffff"))
        assert decoded == DeviceConfig(b"kernels", 2**32 - 1, 2**32 - 1)

    def test_tag_that_fills_its_field_has_no_nul(self) -> None:
        tag = bytes(range(1, 37))
        assert DeviceConfig.decode(tag + CONFIG[36:]).tag == tag

    def test_tag_ends_at_its_first_nul(self) -> None:
        assert DeviceConfig.decode(b"a\0b" + bytes(33) + CONFIG[36:]).tag == b"a"

    @pytest.mark.parametrize(
        ("payload", "complaint"),
        [
            pytest.param(b"", "of 0 bytes", id="nothing"),
            pytest.param(CONFIG[:-1], "of 43 bytes", id="one byte short"),
            pytest.param(CONFIG + b"\0", "of 45 bytes", id="one byte too long"),
            pytest.param(TAG + bytes(8), "without a request queue", id="no request queue"),
        ],
    )
    def test_malformed_configuration_is_refused(self, payload: bytes, complaint: str) -> None:
        with pytest.raises(MalformedError, match=complaint):
            DeviceConfig.decode(payload)
