"""The virtio-fs device's queues, from VIRTIO 1.2, section 5.11.2."""

from protocol import virtio_fs


def test_hiprio_is_queue_0_and_requests_begin_at_1() -> None:
    assert virtio_fs.HIPRIO_QUEUE == 0
    assert virtio_fs.REQUEST_QUEUE == 1
    assert virtio_fs.QUEUES == (0, 1)
