"""A tree with everything that a directory can contain, and the host's own view of it."""

import os
import random
import socket
from pathlib import Path
from typing import Any

DIRECTORIES = 200
FILES = 3000

#: Sizes around what one page, one READ and one call carry; the rest are small.
_NOTABLE_SIZES = (
    [0, 1, 4095, 4096, 4097]
    + [(1 << 20) + delta for delta in (-1, 0, 1)]
    + [(8 << 20) + delta for delta in (-1, 0, 1)]
    + [64 << 20]
)


def make_tree(root: Path, seed: int = 26, files: int = FILES) -> None:
    """Make 200 directories and 3,000 files of 0 bytes to 64 MiB, and every oddity of names."""
    chance = random.Random(seed)
    directories = [os.fsencode(root)]
    for number in range(DIRECTORIES):
        # One in three goes below the last one: paths of dozens of components.
        parent = directories[-1] if number % 3 else chance.choice(directories)
        directories.append(os.path.join(parent, b"dir-%d" % number))
        os.mkdir(directories[-1])
    block = chance.randbytes(1 << 20)
    for number in range(files):
        if number < len(_NOTABLE_SIZES):
            size = _NOTABLE_SIZES[number]
        else:
            size = int(chance.paretovariate(0.6)) * 7 % (256 << 10)
        _write(os.path.join(chance.choice(directories), b"file-%d" % number), block, size, number)
    _make_oddities(os.fsencode(root), block)


def _write(path: bytes, block: bytes, size: int, salt: int) -> None:
    with open(path, "wb") as file:
        start = salt % 4096
        while size:
            piece = block[start : start + size] if size < len(block) - start else block[start:]
            file.write(piece)
            size -= len(piece)
            start = (start + 997) % 4096
    os.utime(path, ns=(1_000_000_007 * salt, 1_234_567_891 * salt))


def _make_oddities(root: bytes, block: bytes) -> None:
    odd = os.path.join(root, b"odd")
    os.mkdir(odd, 0o750)

    def path(name: bytes) -> bytes:
        return os.path.join(odd, name)

    for name in (
        b"n" * 255,
        b"caf\xe9-latin1",
        b"\xff\xfe\x01",
        "дерево-ф-木".encode(),
        b" leading and trailing ",
        b"new\nline",
        b"-dash",
        b"...",
        b"semi;colon:and*star",
    ):
        _write(path(name), block, 100, 3)
    _write(path(b"unreadable"), block, 5000, 4)
    os.chmod(path(b"unreadable"), 0)
    _write(path(b"setuid"), block, 10, 5)
    os.chmod(path(b"setuid"), 0o4711)
    os.mkdir(path(b"empty directory"))
    os.mkdir(path(b"closed directory"), 0o000)
    with open(path(b"sparse"), "wb") as sparse:
        sparse.seek(48 << 20)
        sparse.write(b"end")
    os.link(path(b"sparse"), path(b"sparse, again"))
    _make_deep(odd, 60, block)
    for target, name in (
        (b"sparse", b"link relative"),
        (b"../odd/sparse", b"link relative up"),
        (b"/odd/sparse", b"link absolute"),
        (b"/", b"link to the root"),
        (b"empty directory/", b"link to a directory"),
        (b"nowhere", b"link dangling"),
        (b"link loop b", b"link loop a"),
        (b"link loop a", b"link loop b"),
        (b"link self", b"link self"),
        (b"/etc/passwd", b"link outside"),
        (b"../../../../../../etc/passwd", b"link outside relative"),
        (b"caf\xe9-latin1", b"link to latin1"),
        (b"x" * 4095, b"link of the longest target"),
        (b"sparse/", b"link to a file with a slash"),
    ):
        os.symlink(target, path(name))
    # Chains of 20 and of 42 links in all. Between the two the kernel's own answer varies: it counts
    # the links again when it has to walk a path a second time.
    os.mkdir(os.path.join(root, b"chain"))
    for step in range(41):
        target = b"%d" % (step + 1) if step < 40 else b"../odd/sparse"
        os.symlink(target, os.path.join(root, b"chain", b"%d" % step))
    os.symlink(b"../chain/22", path(b"link of 20"))
    os.symlink(b"../chain/0", path(b"link of 42"))
    os.mkfifo(path(b"fifo"))
    with socket.socket(socket.AF_UNIX) as server:
        descriptor = os.open(odd, os.O_PATH)
        try:
            server.bind(f"/proc/self/fd/{descriptor}/socket")
        finally:
            os.close(descriptor)
    if os.geteuid() == 0:
        os.mknod(path(b"character device"), 0o20600, os.makedev(1, 3))
        os.mknod(path(b"block device"), 0o60600, os.makedev(259, 70000))
        os.chown(path(b"setuid"), 1234, 5678)


def _make_deep(start: bytes, levels: int, block: bytes) -> None:
    bottom = os.path.join(start, *(b"deep-%02d" % level for level in range(levels)))
    os.makedirs(bottom)
    _write(os.path.join(bottom, b"at the bottom"), block, 1000, 6)


_TYPES = {
    0o100000: "file",
    0o040000: "dir",
    0o120000: "symlink",
    0o010000: "fifo",
    0o140000: "socket",
    0o020000: "char",
    0o060000: "block",
}


def host_stat(status: os.stat_result) -> dict[str, Any]:
    """Return the host's view of a file as the RPC shows it, but for atime, which reading moves."""
    return {
        "type": _TYPES[status.st_mode & 0o170000],
        "mode": status.st_mode,
        "size": status.st_size,
        "ino": status.st_ino,
        "nlink": status.st_nlink,
        "uid": status.st_uid,
        "gid": status.st_gid,
        "rdev": status.st_rdev,
        "blocks": status.st_blocks,
        "blksize": status.st_blksize,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
    }
