"""The files that all contenders read, and the proof that they read them right.

The clock stops when the client has touched one byte of every page of what it was given
(:meth:`BigFile.touch`), in Python by one strided copy. Before each round those bytes are made wrong
in the client's buffer and after it they are compared with the file's; in the first round and the
last one all bytes are hashed besides. Both happen outside the clock.
"""

import contextlib
import hashlib
import mmap
import os
import random
from collections.abc import Sequence
from typing import Final, NamedTuple

from benchmarks.contender import Unavailable, WrongBytesError

MIB: Final = 1 << 20
PAGE: Final = mmap.PAGESIZE
_FLIP: Final = bytes(255 - value for value in range(256))


class BigFile(NamedTuple):
    """A file of ``size`` bytes; no two of its pages are equal."""

    directory: str
    name: str
    size: int
    digest: bytes
    column: bytes  #: the first byte of each page

    @property
    def path(self) -> str:
        """Where it is on the host."""
        return os.path.join(self.directory, self.name)

    @staticmethod
    def touch(view: memoryview) -> bytes:
        """Read one byte of every page."""
        return view[::PAGE].tobytes()

    def spoil(self, view: memoryview) -> None:
        """Make a client's buffer wrong in every page."""
        view[::PAGE] = self.column.translate(_FLIP)

    def prove(self, column: bytes, view: memoryview | None) -> None:
        """Compare what was touched; with ``view`` hash all bytes.

        Raises:
            WrongBytesError: they are not the file's.

        """
        if column != self.column:
            raise WrongBytesError(f"{self.name}: the touched bytes are not the file's")
        if view is not None and hashlib.sha256(view).digest() != self.digest:
            raise WrongBytesError(f"{self.name}: the hash is not the file's")


def make_big_file(directory: str, name: str, size: int) -> BigFile:
    """Write the file and read it into the page cache by that."""
    filling = random.Random(size).randbytes(MIB)
    digest, column = hashlib.sha256(), bytearray()
    with open(os.path.join(directory, name), "wb") as file:
        for index in range(size // MIB):
            block = index.to_bytes(8, "little") + filling[8:]
            file.write(block)
            digest.update(block)
            column += block[::PAGE]
        file.flush()
        os.fsync(file.fileno())  # so that its pages can be dropped and no write-back disturbs
    return BigFile(directory, name, size, digest.digest(), bytes(column))


class SmallFile(NamedTuple):
    """One of many: its path below their directory, and its size."""

    path: str
    size: int


class SmallFiles(NamedTuple):
    """Files of 4 to 16 kB, a hundred in a directory."""

    directory: str
    files: Sequence[SmallFile]
    total: int  #: bytes
    digest: bytes  #: of all bytes in the order of ``files``

    def prove(self, parts: Sequence[memoryview | bytes], *, thorough: bool) -> None:
        """Compare sizes and, when ``thorough``, a hash of everything.

        Raises:
            WrongBytesError: they are not the files'.

        """
        if [len(part) for part in parts] != [file.size for file in self.files]:
            raise WrongBytesError("the small files have other sizes")
        if thorough:
            digest = hashlib.sha256()
            for part in parts:
                digest.update(part)
            if digest.digest() != self.digest:
                raise WrongBytesError("the small files have another hash")


#: What the largest of the small files fits in.
SLOT: Final = 16 << 10
#: What is asked for by those who know no size: the answer is short, as the file ends.
SMALL_READ: Final = 64 << 10


def make_small_files(directory: str, count: int) -> SmallFiles:
    """Write the files."""
    dice = random.Random(count)
    filling = dice.randbytes(MIB)
    digest, files = hashlib.sha256(), []
    for index in range(count):
        folder = f"d{index // 100:03}"
        if index % 100 == 0:
            os.makedirs(os.path.join(directory, folder))
        size, start = dice.randint(4000, 16000), dice.randrange(MIB - SLOT)
        content = filling[start : start + size]
        digest.update(content)
        files.append(SmallFile(f"{folder}/f{index:05}.bin", size))
        with open(os.path.join(directory, files[-1].path), "wb") as file:
            file.write(content)
    return SmallFiles(directory, files, sum(file.size for file in files), digest.digest())


class Listing(NamedTuple):
    """A directory or a tree: how many names are in it, and the sum of its files' sizes."""

    directory: str
    entries: int
    total: int  #: bytes

    def prove(self, entries: int, size: int | None = None) -> None:
        """Compare the count and, where attributes came too, the sizes.

        Raises:
            WrongBytesError: it is not this directory's.

        """
        if entries != self.entries or (size is not None and size != self.total):
            raise WrongBytesError(
                f"{entries} entries of {size} bytes, not {self.entries} of {self.total}"
            )


def make_wide_directory(directory: str, count: int) -> Listing:
    """Make a directory of ``count`` sparse files."""
    os.mkdir(directory)
    return Listing(directory, count, _fill_directory(directory, count))


def make_tree(directory: str, directories: int, files: int) -> Listing:
    """Make a tree of directories, fifty to a directory, with ``files`` sparse files in each."""
    os.mkdir(directory)
    folders = [directory]
    made = 0
    while made < directories:
        parent = folders.pop(0)
        for _ in range(min(50, directories - made)):
            folder = os.path.join(parent, f"d{made:05}")
            os.mkdir(folder)
            folders.append(folder)
            made += 1
    total = 0
    for path, _, _ in os.walk(directory):
        if path != directory:
            total += _fill_directory(path, files)
    return Listing(directory, directories + directories * files, total)


def _fill_directory(directory: str, count: int) -> int:
    """Make sparse files of different sizes; return their sum."""
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for index in range(count):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            file = os.open(f"file-{index:06}.dat", flags, 0o644, dir_fd=folder)
            os.ftruncate(file, index % 1000)
            os.close(file)
    finally:
        os.close(folder)
    return sum(index % 1000 for index in range(count))


def drop_from_page_cache(path: str) -> None:
    """Make the next reader of a file go to the disk, and check that it has to.

    Raises:
        Unavailable: the pages stay, as those of tmpfs do.

    """
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        probe = bytearray(1)
        for offset in range(0, os.fstat(file).st_size, 16 * MIB):
            with contextlib.suppress(BlockingIOError):
                os.preadv(file, [probe], offset, os.RWF_NOWAIT)
                raise Unavailable("the file stays in the page cache")
    finally:
        os.close(file)


def warm_buffer(size: int) -> memoryview:
    """Return memory of the client's, every page of it there before the first round."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    return memoryview(mmap.mmap(-1, size, flags=flags))
