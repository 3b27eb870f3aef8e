"""An ordinary tree to put on a file system, and what a copy of it has to have in common with it."""

import os
import random
import stat
from pathlib import Path
from typing import Final

#: Of files: around a page, the most that one READ gives, and more than one of those.
SIZES: Final = (0, 1, 4095, 4096, 4097, (1 << 20) - 1, (2 << 20) + 5)
#: The number of files in the directory that is listed in pages.
MANY: Final = 333
#: Where a sparse file has data.
ISLANDS: Final = (0, 1 << 20, (2 << 20) + 4096)
SPARSE_SIZE: Final = 3 << 20

_ODD_NAMES: Final = (
    b"caf\xe9-latin1",
    b"\xff\xfe\x01",
    b" leading and trailing ",
    b"new\nline",
    b"-dash",
    b"...",
    b"semi;colon:and*star",
)
_PLAIN_NAMES: Final = (b"two words", b"many.dots.in.it", "дерево".encode())
_DEEP: Final = 5


def fill(top: Path, *, posix: bool = True, longest: int = 255) -> None:
    """Make the tree; without ``posix`` only what FAT can hold: no links, modes or odd names.

    ``longest`` is the length of the longest name in it.
    """
    chance = random.Random(17)
    sizes, many, odd = top / "sizes", top / "many", top / "odd"
    for folder in (sizes, many, odd, top / "empty"):
        folder.mkdir()
    for size in SIZES:
        (sizes / str(size)).write_bytes(chance.randbytes(size))
    for number in range(MANY):
        (many / f"entry-{number:04}").write_bytes(b"%d\n" % number)
    for name in (b"n" * longest, *(_ODD_NAMES if posix else _PLAIN_NAMES)):
        path = os.path.join(os.fsencode(odd), name)
        with open(path, "wb") as file:
            file.write(chance.randbytes(100))
    deep = top.joinpath(*(f"deep-{level}" for level in range(_DEEP)))
    deep.mkdir(parents=True)
    (deep / "bottom").write_bytes(b"at the bottom")
    with open(top / "sparse", "wb") as sparse:
        for begin in ISLANDS:
            os.pwrite(sparse.fileno(), chance.randbytes(4096), begin)
        sparse.truncate(SPARSE_SIZE)
    if posix:
        _add_posix(odd)
    _set_times(top)


def _add_posix(folder: Path) -> None:
    for mode in (0o400, 0o600, 0o755, 0o555, 0o4711):
        file = folder / f"mode-{mode:o}"
        file.write_bytes(b"%o" % mode)
        os.chown(file, 1234, 5678)
        file.chmod(mode)
    (folder / "closed").mkdir(mode=0o700)
    os.link(folder / "mode-755", folder / "mode-755, again")
    for name, target in (
        ("link", b"mode-755"),
        ("link up", b"../sizes/4097"),
        ("link to a directory", b"../many"),
        ("dangling", b"nowhere"),
        ("outside", b"/etc/passwd"),
        ("odd target", b"\xff\xfe\x01"),
        ("long target", b"x" * 1000),
    ):
        os.symlink(target, os.fsencode(folder / name))
    os.mkfifo(folder / "fifo")


def _set_times(top: Path) -> None:
    """Give every file a time of its own, of the years 2001 to 2033."""
    number = 0
    for folder, directories, files in os.walk(os.fsencode(top), topdown=False):
        for name in (*files, *directories):
            number += 1
            time = 10**18 + number * 1_234_567_891_234_567
            path = os.path.join(folder, name)
            os.utime(path, ns=(10**18, time), follow_symlinks=False)


def described(top: Path | str) -> dict[bytes, tuple[object, ...]]:
    """Return what ``get -r`` keeps of a tree: by path, the types, bytes, modes, times and targets.

    What is no file, directory or symlink is left out, and so is the top.
    """
    found: dict[bytes, tuple[object, ...]] = {}
    base = os.fsencode(top)
    for folder, directories, files in os.walk(base):
        for path in (os.path.join(folder, name) for name in (*directories, *files)):
            status = os.lstat(path)
            mode = stat.S_IMODE(status.st_mode) & 0o777
            name = os.path.relpath(path, base)
            if stat.S_ISLNK(status.st_mode):
                found[name] = ("link", os.readlink(path))
            elif stat.S_ISDIR(status.st_mode):
                found[name] = ("dir", mode, status.st_mtime_ns)
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    found[name] = ("file", mode, status.st_mtime_ns, hash(file.read()))
    return found
