"""A small tree with everything that an archive may hold, and readers of archives that are ours."""

import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

#: Above what is asked for ahead, and what one page takes.
LARGE: Final = (3 << 20) + 5


def make(root: Path) -> Path:
    """Make the tree below ``root``; return where it is."""
    tree = root / "tree"
    tree.mkdir(mode=0o755)
    top = os.fsencode(tree)

    def path(name: bytes) -> bytes:
        return os.path.join(top, name)

    for name, content in (
        (b"init", b"#!/bin/sh\n"),
        (b"empty", b""),
        (b"TRAILER!!!", b"not the end\n"),
        (b"new\nline", b"a"),
        (b" -dash and blanks ", b"ab"),
        (b"caf\xe9-latin1", b"abc"),
        ("дерево".encode(), b"abcd"),
        (b"n" * 255, b"abcde"),
        (b"large", os.urandom(1 << 20) * 3 + b"12345"),
        (b"setuid", b"x" * 4097),
    ):
        Path(os.fsdecode(path(name))).write_bytes(content)
        os.utime(path(name), ns=(10**18, 1_234_567_890_123_456_789))
    os.chmod(path(b"init"), 0o755)
    os.chmod(path(b"setuid"), 0o4711)
    with open(path(b"sparse"), "wb") as sparse:
        sparse.seek(600_000)
        sparse.write(b"end")
    deep = path(b"/".join([b"d" * 100] * 3))
    os.makedirs(deep)
    os.link(path(b"setuid"), os.path.join(deep, b"the same"))
    os.link(path(b"setuid"), path(b"again"))
    os.link(path(b"large"), path(b"large again"))
    os.mkdir(path(b"empty directory"), 0o700)
    for target, name in ((b"init", b"link"), (b"/nowhere", b"dangling"), (b"x" * 4095, b"longest")):
        os.symlink(target, path(name))
    os.mkfifo(path(b"fifo"), 0o640)
    with socket.socket(socket.AF_UNIX) as server:
        descriptor = os.open(top, os.O_PATH)
        try:
            server.bind(f"/proc/self/fd/{descriptor}/socket")
        finally:
            os.close(descriptor)
    if os.geteuid() == 0:
        os.mknod(path(b"null"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(path(b"disk"), stat.S_IFBLK | 0o600, os.makedev(259, 70000))
        os.chown(path(b"init"), 1234, 5678)
    return tree


class Member(NamedTuple):
    """A member of a newc archive."""

    number: int
    mode: int
    uid: int
    gid: int
    names: int
    mtime: int
    rdev: int
    content: bytes


def read_newc(archive: bytes) -> dict[bytes, Member]:
    """Read an archive by its format's description; check order, padding and end."""
    found: dict[bytes, Member] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        number, mode, uid, gid, names, mtime, size, _, _, major, minor, length, check = (
            int(archive[at + 6 + 8 * field : at + 14 + 8 * field], 16) for field in range(13)
        )
        assert check == 0
        name = archive[at + 110 : at + 109 + length]
        assert archive[at + 109 + length] == 0
        at += 110 + length
        at += -at % 4
        content = archive[at : at + size]
        at += size
        at += -at % 4
        if name == b"TRAILER!!!":
            assert not any(archive[at:])
            assert len(archive) % 512 == 0
            inside = [each.removeprefix(b"./") for each in found]
            assert inside == [b".", *sorted(inside[1:])]
            return found
        assert name not in found
        found[name] = Member(
            number, mode, uid, gid, names, mtime, os.makedev(major, minor), content
        )


def host_view(tree: Path) -> dict[bytes, os.stat_result]:
    """Return what is below a directory, by path."""
    top = os.fsencode(tree)
    return {
        os.path.relpath(os.path.join(folder, name), top): os.lstat(os.path.join(folder, name))
        for folder, folders, files in os.walk(top)
        for name in (*folders, *files)
    }


def tool(name: str) -> str | None:
    """Return a program of this machine, if it is there."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin")


def run(*command: str | Path, archive: bytes, folder: Path) -> bytes:
    """Give a program an archive; return what it prints."""
    done = subprocess.run(
        command, cwd=folder, input=archive, stdout=subprocess.PIPE, check=True, timeout=60
    )
    return done.stdout
