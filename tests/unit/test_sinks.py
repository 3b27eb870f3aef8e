"""Where both clients' ``download`` writes a file, and where it refuses to."""

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from tests.fake.rpc_server import IMAGE, FakeDaemon, Node
from tests.unit.faces import Taker
from vuserd.client.files import sinks

OLDER = b"older " * 1000
_F_SEAL_FUTURE_WRITE = 0x10


@contextmanager
def descriptor(fileno: int) -> Iterator[int]:
    """Close a descriptor in the end."""
    try:
        yield fileno
    finally:
        os.close(fileno)


def sealed(*seals: int) -> int:
    """Return a memfd with older content and these seals."""
    memfd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.write(memfd, OLDER)
    for seal in seals:
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, seal)
    return memfd


def opened(flags: int) -> Callable[[Path], int]:
    return lambda path: os.open(path, flags)


UNFIT = [
    pytest.param(opened(os.O_RDONLY), errno.EBADF, id="read-only"),
    pytest.param(opened(os.O_PATH), errno.EBADF, id="O_PATH"),
    pytest.param(opened(os.O_ACCMODE), errno.EBADF, id="neither read nor written"),
    pytest.param(opened(os.O_WRONLY | os.O_APPEND), errno.EINVAL, id="append"),
    pytest.param(opened(os.O_RDWR | os.O_APPEND), errno.EINVAL, id="read and append"),
    pytest.param(lambda path: os.open(path.parent, os.O_RDONLY), errno.EISDIR, id="directory"),
    pytest.param(lambda _: sealed(fcntl.F_SEAL_WRITE), errno.EPERM, id="F_SEAL_WRITE"),
    pytest.param(lambda _: sealed(fcntl.F_SEAL_GROW), errno.EPERM, id="F_SEAL_GROW"),
    pytest.param(lambda _: sealed(fcntl.F_SEAL_SHRINK), errno.EPERM, id="F_SEAL_SHRINK"),
    pytest.param(lambda _: sealed(_F_SEAL_FUTURE_WRITE), errno.EPERM, id="F_SEAL_FUTURE_WRITE"),
    pytest.param(
        lambda _: sealed(fcntl.F_SEAL_GROW, fcntl.F_SEAL_SEAL), errno.EPERM, id="several seals"
    ),
]


class TestRefused:
    """Nothing is asked of the daemon then, and nothing that was there is lost."""

    @pytest.mark.parametrize(("make", "code"), UNFIT)
    def test_files(
        self,
        fake_daemon: FakeDaemon,
        taker: Taker,
        tmp_path: Path,
        make: Callable[[Path], int],
        code: int,
    ) -> None:
        path = tmp_path / "copy"
        path.write_bytes(OLDER)
        with descriptor(make(path)) as fileno:
            self.refuse(fake_daemon, taker, fileno, code)
            if fcntl.fcntl(fileno, fcntl.F_GETFL) & os.O_PATH == 0 and code == errno.EPERM:
                assert os.pread(fileno, len(OLDER) + 1, 0) == OLDER
        assert path.read_bytes() == OLDER

    def test_o_direct(self, fake_daemon: FakeDaemon, taker: Taker, tmp_path: Path) -> None:
        path = tmp_path / "copy"
        path.write_bytes(OLDER)
        try:
            fileno = os.open(path, os.O_WRONLY | os.O_DIRECT)
        except OSError as error:
            pytest.skip(f"no O_DIRECT here: {error}")
        with descriptor(fileno):
            self.refuse(fake_daemon, taker, fileno, errno.EINVAL)
        assert path.read_bytes() == OLDER

    def test_huge_pages(self, fake_daemon: FakeDaemon, taker: Taker) -> None:
        """They are mapped and never written to."""
        try:
            fileno = os.memfd_create("huge", os.MFD_HUGETLB)
        except OSError as error:
            pytest.skip(f"no huge pages here: {error}")
        with descriptor(fileno):
            os.ftruncate(fileno, 1 << 30)
            self.refuse(fake_daemon, taker, fileno, errno.EINVAL)
            assert os.fstat(fileno).st_size == 1 << 30

    def test_pipes_and_sockets(self, fake_daemon: FakeDaemon, taker: Taker, tmp_path: Path) -> None:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        with ExitStack() as stack:
            reader, writer = os.pipe()
            ours, theirs = socket.socketpair()
            ends = [reader, writer, os.open(fifo, os.O_RDWR | os.O_NONBLOCK)]
            ends += [os.open("/dev/null", os.O_WRONLY)]
            for end in ends:
                stack.enter_context(descriptor(end))
            for connected in (ours, theirs):
                stack.enter_context(closing(connected))
            for fileno in (*ends, ours.fileno()):
                self.refuse(fake_daemon, taker, fileno, errno.ESPIPE)
            os.set_blocking(reader, False)
            with pytest.raises(BlockingIOError):
                os.read(reader, 1)
            theirs.setblocking(False)
            with pytest.raises(BlockingIOError):
                theirs.recv(1)

    @pytest.mark.parametrize("fileno", [-1, 999_999])
    def test_no_descriptor(self, fake_daemon: FakeDaemon, taker: Taker, fileno: int) -> None:
        self.refuse(fake_daemon, taker, fileno, errno.EBADF)

    def refuse(self, fake_daemon: FakeDaemon, taker: Taker, fileno: int, code: int) -> None:
        with pytest.raises(OSError, match=r".") as caught:
            taker.download("image", fileno)
        assert caught.value.errno == code
        assert fake_daemon.requests == []


class TestTaken:
    @pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_SYNC])
    def test_files(self, taker: Taker, tmp_path: Path, flags: int) -> None:
        path = tmp_path / "copy"
        path.write_bytes(IMAGE * 2)
        with descriptor(os.open(path, flags)) as fileno:
            os.lseek(fileno, 77, os.SEEK_SET)  # it has no say
            taker.download("image", fileno)
            assert os.lseek(fileno, 0, os.SEEK_CUR) == 77
        assert path.read_bytes() == IMAGE

    @pytest.mark.parametrize("seals", [(), (fcntl.F_SEAL_SEAL,)])
    def test_memfds(self, taker: Taker, seals: tuple[int, ...]) -> None:
        with descriptor(sealed(*seals)) as memfd:
            taker.download("image", memfd)
            assert os.pread(memfd, len(IMAGE) + 1, 0) == IMAGE


_MIB = 1 << 20


def allocated(fileno: int) -> int:
    return os.fstat(fileno).st_blocks * 512


def sparse(content: bytes, data: list[tuple[int, int]]) -> Node:
    """Return a file that says where it has data."""
    blocks = sum(length for _, length in data) // 512
    return Node(content=content, blocks=blocks, extents=data)


@pytest.fixture
def memfd() -> Iterator[int]:
    with descriptor(os.memfd_create("copy")) as fileno:
        yield fileno


class TestHoles:
    """In a memfd, whose file system has them everywhere."""

    def test_those_that_are_told_are_not_read(
        self, fake_daemon: FakeDaemon, taker: Taker, memfd: int
    ) -> None:
        content = bytearray(64 * _MIB)
        parts = [(1 * _MIB, 4096), (20 * _MIB, 2 * _MIB), (50 * _MIB, 1)]
        for begin, length in parts:
            content[begin : begin + length] = os.urandom(length)
        fake_daemon.root.children[b"image"] = sparse(bytes(content), parts)
        fake_daemon.extents_limit = 2
        told: list[tuple[int, int]] = []
        stat = taker.download("image", memfd, progress=lambda *there: told.append(there))
        assert os.pread(memfd, len(content) + 1, 0) == content
        assert allocated(memfd) <= 3 * _MIB
        assert stat.size == len(content)
        assert told[-1] == (len(content), len(content))
        assert told == sorted(set(told))
        reads = [r.params[2:4] for r in fake_daemon.requests if r.method == "read"]
        assert sum(length for _, length in reads) <= 3 * _MIB
        assert sum(r.method == "extents" for r in fake_daemon.requests) == 2

    def test_one_that_is_all_of_it(self, fake_daemon: FakeDaemon, taker: Taker, memfd: int) -> None:
        fake_daemon.root.children[b"image"] = sparse(bytes(9 * _MIB), [])
        assert taker.download("image", memfd).size == 9 * _MIB
        assert os.pread(memfd, 10 * _MIB, 0) == bytes(9 * _MIB)
        assert allocated(memfd) == 0

    def test_blocks_of_zeros_are_left_out_where_nothing_is_told(
        self, fake_daemon: FakeDaemon, taker: Taker, memfd: int
    ) -> None:
        content = bytearray(9 * _MIB + 3)
        content[4 * _MIB : 4 * _MIB + 5] = b"bytes"
        content[-1:] = b"\n"
        fake_daemon.root.children[b"image"] = Node(content=bytes(content), blocks=8)
        taker.download("image", memfd)
        assert os.pread(memfd, len(content) + 1, 0) == content
        assert allocated(memfd) <= 256 << 10

    def test_zeros_of_a_file_without_holes_are_written(
        self, fake_daemon: FakeDaemon, taker: Taker, memfd: int
    ) -> None:
        fake_daemon.root.children[b"image"] = Node(content=bytes(_MIB))
        taker.download("image", memfd)
        assert allocated(memfd) == _MIB
        assert all(request.method != "extents" for request in fake_daemon.requests)

    def test_a_sparse_file_that_is_young(
        self, fake_daemon: FakeDaemon, taker: Taker, memfd: int
    ) -> None:
        """All of it is read, and compared; zeros are left out all the same."""
        content = bytearray(_MIB)
        content[:5] = b"bytes"
        fake_daemon.root.children[b"image"] = sparse(bytes(content), [(0, 4096)])
        fake_daemon.settled = False
        taker.download("image", memfd)
        assert os.pread(memfd, _MIB + 1, 0) == content
        assert allocated(memfd) <= 64 << 10

    def test_a_stream_has_them_as_zeros(self, fake_daemon: FakeDaemon, taker: Taker) -> None:
        content = b"begin" + bytes(_MIB) + b"end"
        fake_daemon.root.children[b"image"] = sparse(content, [(0, 4096), (_MIB, 8)])
        collected = bytearray()
        taker.stream("image", collected.extend)
        assert collected == content

    @pytest.mark.usefixtures("small_chunks")
    def test_over_a_restart(self, fake_daemon: FakeDaemon, taker: Taker, memfd: int) -> None:
        content = bytearray(400_000)
        parts = [(8_192, 20_000), (100_000, 120_000), (300_000, 50_000)]
        for begin, length in parts:
            content[begin : begin + length] = os.urandom(length)
        fake_daemon.root.children[b"image"] = sparse(bytes(content), parts)
        answered = 0

        def end(_: object) -> None:
            nonlocal answered
            answered += 1
            if answered in (9, 20):
                fake_daemon.end_connections()

        fake_daemon.before = end
        taker.download("image", memfd)
        assert os.pread(memfd, len(content) + 1, 0) == content
        assert fake_daemon.connections == 3


def test_large_payloads_are_written_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[int, int]] = []
    pwrite = os.pwrite

    def write(fileno: int, payload: memoryview, offset: int) -> int:
        written.append((offset, len(payload)))
        return pwrite(fileno, payload, offset)

    monkeypatch.setattr("os.pwrite", write)
    content = os.urandom((1 << 20) + 5)
    with open(tmp_path / "new", "wb") as file:
        sinks.write_at(file.fileno(), memoryview(content), 3)
    assert (tmp_path / "new").read_bytes() == bytes(3) + content
    piece = 256 << 10
    assert written == [(3 + at * piece, piece) for at in range(4)] + [(3 + (1 << 20), 5)]


@pytest.mark.parametrize("older", [b"", OLDER])
def test_only_a_file_with_something_in_it_is_emptied(
    taker: Taker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older: bytes
) -> None:
    """On ext4, close() of one that was emptied takes as long as writing it to the disk begins."""
    emptied: list[int] = []
    ftruncate = os.ftruncate

    def truncate(fileno: int, size: int) -> None:
        if not size:
            emptied.append(os.fstat(fileno).st_size)
        ftruncate(fileno, size)

    monkeypatch.setattr("os.ftruncate", truncate)
    (tmp_path / "copy").write_bytes(older)
    with descriptor(os.open(tmp_path / "copy", os.O_RDWR)) as fileno:
        taker.download("image", fileno)
    assert (tmp_path / "copy").read_bytes() == IMAGE
    assert emptied == [size for size in [len(older)] if size]
