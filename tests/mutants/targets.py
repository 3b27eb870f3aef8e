"""The modules that are changed, and the tests that are to notice."""

from typing import Final

#: Each module and its tests, those that find most first.
TARGETS: Final = {
    "protocol/dirent.py": ("tests/unit/test_dirent.py", "tests/property/test_dirent.py"),
    "protocol/dirent_columns.py": (
        "tests/unit/test_dirent_columns.py",
        "tests/unit/test_dirent.py",
        "tests/property/test_dirent.py",
    ),
    "protocol/fuse.py": ("tests/unit/test_fuse.py", "tests/property/test_fuse.py"),
    "protocol/vhost_user.py": (
        "tests/unit/test_vhost_user.py",
        "tests/property/test_vhost_user.py",
    ),
    "protocol/virtio_fs.py": ("tests/unit/test_virtio_fs.py", "tests/property/test_vhost_user.py"),
    "protocol/virtio_ring.py": ("tests/unit/test_virtio_ring.py",),
    "memory/form.py": ("tests/unit/test_virtqueue.py", "tests/property/test_ring_and_arena.py"),
    "memory/virtqueue.py": (
        "tests/unit/test_virtqueue.py",
        "tests/property/test_ring_and_arena.py",
    ),
}
