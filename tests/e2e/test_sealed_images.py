"""No process can write a sealed image, and no other client sees a client's attached memory."""

import ctypes
import fcntl
import mmap
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgpack
import pytest

from tests.e2e.processes import family, mappings_of
from tests.running import RunningDaemon
from vuserd.client import Client
from vuserd.client.errors import RemoteError
from vuserd.client.image import Image

CONTENT: Final = os.urandom(300_001)
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_PAGE: Final = mmap.PAGESIZE
#: linux/falloc.h, asm-generic/mman-common.h, linux/fs.h
_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2
_FALLOC_FL_ZERO_RANGE: Final = 16
_MADV_REMOVE: Final = 9
_MAP_SHARED: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


@pytest.fixture(scope="module")
def running(virtiofsd: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    folder = tmp_path_factory.mktemp("sealed")
    (folder / "files").mkdir()
    (folder / "files" / "file").write_bytes(CONTENT)
    shutil.copy("/bin/true", folder / "files" / "program")
    with RunningDaemon({"files": folder / "files"}, folder / "s", virtiofsd) as running:
        yield running


@pytest.fixture
def client(running: RunningDaemon) -> Iterator[Client]:
    with Client.connect(running.socket) as client:
        yield client


@pytest.fixture
def other(running: RunningDaemon) -> Iterator[Client]:
    with Client.connect(running.socket) as client:
        yield client


@pytest.fixture
def image(client: Client) -> Iterator[Image]:
    with client.fetch("files", "file") as image:
        yield image


# -- sealed images -----------------------------------------------------------------------------


def checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def with_writable(attempt: Callable[[int], object]) -> Callable[[int], object]:
    """Make an attempt with a descriptor that is open for writing, where one is to be had."""

    def attempt_it(descriptor: int) -> None:
        writable = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
        try:
            attempt(writable)
        finally:
            os.close(writable)

    attempt_it.__name__ = f"{attempt.__name__}_reopened"
    return attempt_it


def write(descriptor: int) -> None:
    os.write(descriptor, b"evil")


def pwrite(descriptor: int) -> None:
    os.pwrite(descriptor, b"evil", 100)


def append(descriptor: int) -> None:
    os.pwrite(descriptor, b"evil", len(CONTENT))


def cut(descriptor: int) -> None:
    os.ftruncate(descriptor, 1)


def lengthen(descriptor: int) -> None:
    os.ftruncate(descriptor, 1 << 20)


def open_truncating(descriptor: int) -> None:
    os.close(os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_TRUNC))


def map_writable(descriptor: int) -> None:
    mmap.mmap(descriptor, len(CONTENT), mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def make_mapping_writable(descriptor: int) -> None:
    address = _libc.mmap(None, _PAGE, mmap.PROT_READ, _MAP_SHARED, descriptor, 0)
    try:
        checked(_libc.mprotect(address, _PAGE, mmap.PROT_READ | mmap.PROT_WRITE))
    finally:
        _libc.munmap(address, _PAGE)


def drop_mapped_pages(descriptor: int) -> None:
    address = _libc.mmap(None, _PAGE, mmap.PROT_READ, _MAP_SHARED, descriptor, 0)
    try:
        checked(_libc.madvise(address, _PAGE, _MADV_REMOVE))
    finally:
        _libc.munmap(address, _PAGE)


def write_as_a_debugger_does(descriptor: int) -> None:
    """/proc/self/mem writes where the page's protection forbids it, a debugger's breakpoints."""
    address = _libc.mmap(None, _PAGE, mmap.PROT_READ, _MAP_SHARED, descriptor, 0)
    memory = os.open("/proc/self/mem", os.O_RDWR)
    try:
        os.pwrite(memory, b"evil", address)
    finally:
        os.close(memory)
        _libc.munmap(address, _PAGE)


def punch_a_hole(descriptor: int) -> None:
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    checked(_libc.fallocate(descriptor, mode, 0, _PAGE))


def zero_a_range(descriptor: int) -> None:
    checked(_libc.fallocate(descriptor, _FALLOC_FL_ZERO_RANGE, 0, _PAGE))


def send_into(descriptor: int) -> None:
    with open("/dev/zero", "rb") as zero:
        os.sendfile(descriptor, zero.fileno(), None, 100)


def splice_into(descriptor: int) -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, b"evil")
        os.splice(reading, descriptor, 4, offset_dst=0)
    finally:
        os.close(reading)
        os.close(writing)


def copy_into(descriptor: int) -> None:
    with open(__file__, "rb") as source:
        os.copy_file_range(source.fileno(), descriptor, 100, 0, 0)


def seal_against_sealing(descriptor: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)


ATTEMPTS: Final = (
    write,
    pwrite,
    append,
    cut,
    lengthen,
    map_writable,
    make_mapping_writable,
    drop_mapped_pages,
    write_as_a_debugger_does,
    punch_a_hole,
    zero_a_range,
    send_into,
    splice_into,
    copy_into,
    seal_against_sealing,
)


def test_it_has_all_seals_and_is_open_for_reading_only(image: Image) -> None:
    assert fcntl.fcntl(image.fileno(), fcntl.F_GET_SEALS) == _SEALS
    assert fcntl.fcntl(image.fileno(), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


@pytest.mark.parametrize(
    "attempt",
    [*ATTEMPTS, open_truncating, *map(with_writable, ATTEMPTS)],
    ids=lambda attempt: attempt.__name__,
)
def test_no_client_can_write_it(
    client: Client, image: Image, attempt: Callable[[int], object]
) -> None:
    with pytest.raises(OSError, match="Errno"):
        attempt(image.fileno())
    assert os.pread(image.fileno(), len(CONTENT) + 1, 0) == CONTENT
    with client.fetch("files", "file") as again:
        assert again.buffer() == CONTENT


def test_a_private_mapping_is_its_owners_alone(client: Client, image: Image) -> None:
    mine = mmap.mmap(image.fileno(), len(CONTENT), mmap.MAP_PRIVATE, mmap.PROT_WRITE)
    mine[:4] = b"mine"
    mine.close()
    with client.fetch("files", "file") as again:
        assert again.buffer() == CONTENT


def test_two_clients_do_not_share_a_file_offset(client: Client, other: Client) -> None:
    with client.fetch("files", "file") as one, other.fetch("files", "file") as two:
        os.lseek(one.fileno(), 1000, os.SEEK_SET)
        assert os.lseek(two.fileno(), 0, os.SEEK_CUR) == 0
        assert os.fstat(one.fileno()).st_ino == os.fstat(two.fileno()).st_ino


def test_neither_the_daemon_nor_a_backend_maps_it_for_writing(
    running: RunningDaemon, image: Image
) -> None:
    with image.buffer():
        assert list(mappings_of(os.getpid(), image.fileno())) == ["r--s"]  # so they would be found
    processes = list(family(running.process.pid))
    assert len(processes) > 1
    for process in processes:
        assert not [found for found in mappings_of(process, image.fileno()) if "w" in found]


# -- attached memory ---------------------------------------------------------------------------


def refused(code: str, call: Callable[..., object], *arguments: Any) -> None:
    with pytest.raises(RemoteError) as answer:
        call(*arguments)
    assert answer.value.code == code


def test_ids_of_one_client_mean_nothing_to_another(client: Client, other: Client) -> None:
    with client.attach(size=1 << 20) as memory:
        for guess in (memory.id, 0, memory.id + 1, 2**31, 2**63):
            refused("BAD_REQUEST", other.load, guess, 0, "files", "file")
            refused("BAD_REQUEST", other.detach, guess)
        assert not any(memory.buffer[:])
        assert memory.load("files", "file", 0) == len(CONTENT)


def test_a_client_loads_into_its_own_memory_alone(client: Client, other: Client) -> None:
    with client.attach(size=1 << 20) as memory, other.attach(size=1 << 20) as others:
        assert others.load("files", "file", 0) == len(CONTENT)
        for address in (1 << 20, (1 << 20) + 1, 1 << 40, 2**63 - 1):
            refused("TOO_LARGE", other.load, others.id, address, "files", "file")
        for address in (-1, 2**63, 2**64 - 1):
            refused("BAD_REQUEST", other.load, others.id, address, "files", "file")
        assert others.buffer[: len(CONTENT)] == CONTENT
        assert not any(memory.buffer[:])
        assert memory.load("files", "file", 4096) == len(CONTENT)
        assert others.buffer[: len(CONTENT)] == CONTENT


def test_a_closed_clients_memory_is_nobodys(running: RunningDaemon, other: Client) -> None:
    with Client.connect(running.socket) as client:
        memory = client.attach(size=1 << 20)
        memory.load("files", "file", 0)
        kept = os.dup(memory.fileno())
        processes = list(family(running.process.pid))
        assert any("rw-s" in mappings_of(process, kept) for process in processes)
    try:
        memory._memory.close()
        # The connection's end is noticed in the daemon's own time: until then there are two.
        while other.status()["connections"] > 1:
            time.sleep(0.002)
        for process in processes:
            assert not list(mappings_of(process, kept))
        refused("BAD_REQUEST", other.load, memory.id, 0, "files", "file")
    finally:
        os.close(kept)


def test_no_descriptor_of_anothers_comes_to_a_client(
    running: RunningDaemon, client: Client
) -> None:
    with client.attach(size=1 << 20) as memory, socket.socket(socket.AF_UNIX) as hostile:
        memory.load("files", "file", 0)
        hostile.settimeout(20)
        hostile.connect(running.socket)
        options: dict[str, object] = {}
        requests: list[list[object]] = [
            [0, 1, "attach", [1 << 20]],
            [0, 2, "load", [memory.id, 0, "files", "file", options]],
            [0, 3, "detach", [memory.id]],
            [0, 4, "status", []],
            [0, 5, "fetch", ["files", "file"]],
        ]
        for request in requests:
            hostile.sendall(msgpack.packb(request))
            received, descriptors, _, _ = socket.recv_fds(hostile, 1 << 16, 8)
            _, msgid, error, _ = msgpack.unpackb(received)
            assert msgid == request[1]
            try:
                assert (error is None) == (request[2] in ("status", "fetch"))
                assert len(descriptors) == (request[2] == "fetch")
                for descriptor in descriptors:
                    assert not os.path.samestat(os.fstat(descriptor), os.fstat(memory.fileno()))
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)


def test_the_image_of_a_program_can_be_executed(client: Client) -> None:
    """A kernel may be one: User-mode Linux is."""
    with client.fetch("files", "program") as program:
        assert os.fstat(program.fileno()).st_mode & 0o7777 == 0o555
        name = f"/proc/self/fd/{program.fileno()}"
        subprocess.run([name], pass_fds=[program.fileno()], check=True)
    with client.fetch("files", "file") as image:
        assert os.fstat(image.fileno()).st_mode & 0o7777 == 0o444
