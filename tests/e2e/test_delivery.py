"""Every way of fetching a file delivers the host's bytes, at every size near a boundary."""

import contextlib
import mmap
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.rounds import LONG
from tests.e2e.ways import ADDRESS, READ_MAX, WAYS, Served, by_fetch, by_load, by_read
from tests.loops import LOOPS, Loop
from tests.running import RunningDaemon
from vuserd.client import Client
from vuserd.client.errors import RemoteError

#: Around a page, the least READ of a backend, its usual one, and the most that one call gives.
SIZES: Final = (
    *(0, 1),
    *(bound + delta for bound in (4096, 256 << 10, 1 << 20, 8 << 20) for delta in (-1, 0, 1)),
)
SPARSE: Final = 5 << 30
#: Where the sparse file has data: around what 31 and 32 bits can count, and at its ends.
ISLANDS: Final = (0, (1 << 31) - 100, (1 << 32) - 100, (1 << 32) + (1 << 20), SPARSE - 200)
ISLAND: Final = 200


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("delivery")
    chance = random.Random(7)
    for size in SIZES:
        (folder / str(size)).write_bytes(chance.randbytes(size))
        (folder / f"only-{size}").mkdir()
        os.link(folder / str(size), folder / f"only-{size}" / "file")
    with open(folder / "sparse", "wb") as sparse:
        sparse.truncate(SPARSE)
        for begin in ISLANDS:
            os.pwrite(sparse.fileno(), chance.randbytes(ISLAND), begin)
    return folder


@pytest.fixture(scope="module")
def served(
    files: Path, virtiofsd: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    socket = tmp_path_factory.mktemp("delivery-daemon") / "s"
    with RunningDaemon({"files": files}, socket, virtiofsd), Client.connect(str(socket)) as client:
        yield Served(client, str(socket))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_bytes_are_the_hosts(
    served: Served, files: Path, way: Callable[[Served, str], bytes], size: int
) -> None:
    """From a directory that holds nothing else, for the way that takes a whole one."""
    assert way(served, f"only-{size}/file") == (files / str(size)).read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="no sandbox but root's is to be had in procfs")
@pytest.mark.parametrize("way", [by_read, by_fetch, by_load], ids=lambda way: way.__name__)
def test_a_file_of_procfs_is_the_hosts(
    virtiofsd: str, tmp_path: Path, way: Callable[[Served, str], bytes]
) -> None:
    """Its size is 0, and it has more than the page that procfs gives at once."""
    names = [b"@%s-%03d" % (os.urandom(8).hex().encode(), number) for number in range(300)]
    folder, socket_path = Path(f"/proc/{os.getpid()}/net"), tmp_path / "s"
    with (
        contextlib.ExitStack() as stack,
        RunningDaemon({"files": folder}, socket_path, virtiofsd),
        Client.connect(str(socket_path)) as client,
    ):
        for name in names:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(b"\0" + name[1:])
        assert client.stat("files", "unix").size == 0
        lines = way(Served(client, str(socket_path)), "unix").splitlines()
    assert lines[0].startswith(b"Num ")
    assert {line.split()[-1] for line in lines} >= set(names)


@pytest.mark.parametrize("loop", LOOPS.values(), ids=[*LOOPS])
def test_an_asynchronous_client_gives_the_same(served: Served, files: Path, loop: Loop) -> None:
    async def main() -> None:
        async with (
            loop.client.connect(served.socket) as client,
            await client.attach(size=16 << 20) as memory,
        ):
            for size in SIZES:
                host = (files / str(size)).read_bytes()
                with await client.fetch("files", str(size)) as image, image.buffer() as buffer:
                    assert buffer == host
                assert await memory.load("files", str(size), ADDRESS) == size
                assert memory.buffer[ADDRESS : ADDRESS + size] == host

    loop.run(main)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 0), (0, 1), (4095, 2), ((1 << 20) - 1, 2), (1, 8 << 20), (8 << 20, 5), (9 << 20, 5)],
)
def test_a_load_takes_any_part(served: Served, files: Path, offset: int, length: int) -> None:
    host = (files / str((8 << 20) + 1)).read_bytes()[offset : offset + length]
    with served.client.attach(size=16 << 20) as memory:
        count = memory.load("files", str((8 << 20) + 1), 0, offset=offset, length=length)
        assert memory.buffer[:count] == host
        assert not any(memory.buffer[count : count + 4096])


@pytest.mark.parametrize("size", SIZES)
def test_a_load_touches_nothing_else(served: Served, size: int) -> None:
    with served.client.attach(size=16 << 20) as memory:
        mine = b"mine" * 4096
        before, after = slice(0, ADDRESS), slice(ADDRESS + size, ADDRESS + size + len(mine))
        memory.buffer[before], memory.buffer[after] = mine[:ADDRESS], mine
        memory.load("files", str(size), ADDRESS)
        assert memory.buffer[before] == mine[:ADDRESS]
        assert memory.buffer[after] == mine


def test_a_load_goes_to_any_address(served: Served, files: Path) -> None:
    with served.client.attach(size=6 << 30) as memory:
        for address in ((1 << 31) - 2, (1 << 32) - 2, (6 << 30) - 4097):
            assert memory.load("files", "4097", address) == 4097
            loaded = os.pread(memory.fileno(), 4097, address)
            assert loaded == (files / "4097").read_bytes()
        with pytest.raises(RemoteError) as refused:
            memory.load("files", "4097", (6 << 30) - 4096)
        assert refused.value.code == "TOO_LARGE"


class TestSparse:
    """A file of 5 GiB, nearly all of it holes: what is read of it at which offset."""

    def test_its_size(self, served: Served) -> None:
        assert served.client.stat("files", "sparse").size == SPARSE

    @pytest.mark.parametrize("begin", [*ISLANDS, 1 << 30, SPARSE - 1, SPARSE, SPARSE + 5])
    @pytest.mark.parametrize("around", [0, 1, 4096, 3 << 20])
    def test_read_and_load(self, served: Served, files: Path, begin: int, around: int) -> None:
        offset = max(begin - around, 0)
        length = min(ISLAND + 2 * around, READ_MAX)
        with open(files / "sparse", "rb") as host:
            expected = os.pread(host.fileno(), length, offset)
        assert served.client.read("files", "sparse", offset, length) == expected
        with served.client.attach(size=8 << 20) as memory:
            count = memory.load("files", "sparse", 7, offset=offset, length=length)
            assert memory.buffer[7 : 7 + count] == expected

    def test_the_whole_of_it_is_too_much_for_a_smaller_memory(self, served: Served) -> None:
        with served.client.attach(size=1 << 20) as memory:
            with pytest.raises(RemoteError) as refused:
                memory.load("files", "sparse", 0)
            assert refused.value.code == "TOO_LARGE"
            assert not any(memory.buffer[:])

    def test_holes_take_no_memory_of_an_image(self, served: Served, files: Path) -> None:
        size = 2 * os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
        with open(files / "endless", "wb") as endless:
            endless.truncate(size)
            os.pwrite(endless.fileno(), b"a word", size // 2)
        with served.client.fetch("files", "endless") as image:
            assert image.size == size
            assert os.pread(image.fileno(), 6, size // 2) == b"a word"
            assert os.fstat(image.fileno()).st_blocks * 512 <= 1 << 20
        assert served.client.read("files", "endless", size - 1, 10) == b"\0"

    @pytest.mark.skipif(not LONG, reason="takes 5 GiB of memory: set VUSERD_TEST_ROUNDS")
    def test_as_an_image(self, served: Served, files: Path) -> None:
        with (
            served.client.fetch("files", "sparse") as image,
            image.buffer() as buffer,
            open(files / "sparse", "rb") as host,
        ):
            assert image.size == SPARSE
            for offset in range(0, SPARSE, READ_MAX):
                assert buffer[offset : offset + READ_MAX] == host.read(READ_MAX)
