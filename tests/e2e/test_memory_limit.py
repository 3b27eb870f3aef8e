"""A daemon whose cgroup limits its memory refuses what does not fit, and lives."""

import contextlib
import errno
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.attacks.threats import Who, threat
from tests.running import RunningDaemon
from vuserd.client import Client, TrioClient
from vuserd.client.errors import RemoteError, TimedOut
from vuserd.wire.codec import encode_request

MIB: Final = 1 << 20
LIMIT: Final = 300 * MIB
#: Where hierarchies are mounted, and what their versions call the limit.
HIERARCHIES: Final = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
)
_JOIN: Final = 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"'


def make_cgroup() -> tuple[Path, Path]:
    """Make a cgroup that may be given a memory limit; return it and the limit's file."""
    for root, limit in HIERARCHIES:
        if not (root / "cgroup.procs").exists():  # no hierarchy, but what they are mounted in
            continue
        group = root / f"vuserd-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            if limit == "memory.max":
                (root / "cgroup.subtree_control").write_text("+memory")
            group.mkdir()
            if (group / limit).exists():
                return group, group / limit
            group.rmdir()
    pytest.skip("no cgroup with a memory limit can be made on this machine")


@pytest.fixture
def group() -> Iterator[Path]:
    """Yield a cgroup with a limit, and a child ``inner`` without one of its own."""
    made, limit = make_cgroup()
    limit.write_text(str(LIMIT))
    (made / "inner").mkdir()
    yield made
    for each in (made / "inner", made):
        remove(each)


def remove(group: Path) -> None:
    """Remove a cgroup, which stays busy for a moment after its last process has ended."""
    for _ in range(100):
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.02)
    group.rmdir()


@contextlib.contextmanager
def serving(group: Path, virtiofsd: str, tmp_path: Path, *options: str) -> Iterator[Client]:
    """Serve ``tmp_path/files`` with a daemon in a cgroup; yield a client that is outside of it."""
    program = ["/bin/sh", "-c", _JOIN, "sh", str(group), sys.executable, "-m", "vuserd.cli"]
    (tmp_path / "files").mkdir(exist_ok=True)
    with (
        RunningDaemon(
            {"files": tmp_path / "files"}, tmp_path / "s", virtiofsd, *options, program=program
        ) as daemon,
        Client.connect(daemon.socket, reconnect=0) as client,
    ):
        yield client
        assert daemon.process.poll() is None


def lower(limit: Path, size: int) -> None:
    """Lower a limit, as soon as what has been given up is free."""
    deadline = time.monotonic() + 30
    while True:
        try:
            limit.write_text(str(size))
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def make_file(path: Path, size: int) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        for _ in range(size // MIB):  # written, since a hole takes no memory
            file.write(bytes(MIB))
        os.fsync(file.fileno())


@threat(
    "too-large-images",
    who=Who.CLIENT,
    against="the daemon's memory",
    does="fetches more than its cgroup has room for",
    promise="that call is ENOMEM, and the daemon serves on",
)
@pytest.mark.parametrize("level", [".", "inner"])
@pytest.mark.slow
def test_a_file_that_does_not_fit_is_refused(
    group: Path, virtiofsd: str, tmp_path: Path, level: str
) -> None:
    make_file(tmp_path / "files/rootfs.img", LIMIT + 100 * MIB)
    make_file(tmp_path / "files/Image", 20 * MIB)
    with serving(group / level, virtiofsd, tmp_path) as client:
        with pytest.raises(RemoteError, match="do not fit into the") as refused:
            client.fetch("files", "rootfs.img")
        assert refused.value.code == "ENOMEM"
        with client.fetch("files", "Image") as image:
            assert image.size == 20 * MIB
        assert client.read("files", "Image", 0, 10) == bytes(10)


def test_a_clients_memory_that_has_no_pages_yet(
    group: Path, virtiofsd: str, tmp_path: Path
) -> None:
    # The backend touches them first, so they count against the daemon's limit.
    size = LIMIT + 100 * MIB
    make_file(tmp_path / "files/rootfs.img", size)
    with serving(group, virtiofsd, tmp_path) as client, client.attach(size=size) as memory:
        with pytest.raises(RemoteError, match="bytes of the attached memory do not") as refused:
            memory.load("files", "rootfs.img", 0)
        assert refused.value.code == "ENOMEM"
        os.posix_fallocate(memory.fileno(), 0, size)  # now they are the client's
        assert memory.load("files", "rootfs.img", 0) == size
        assert [export.backend.generation for export in client.exports() if export.backend] == [1]


@threat(
    "many-loads",
    who=Who.CLIENT,
    against="the daemon's memory",
    does="loads, all at once, more into memory without pages than the daemon's cgroup has room for",
    promise="what does not fit is ENOMEM, and the daemon serves on",
)
def test_many_loads_into_memory_that_has_no_pages_yet(
    group: Path, virtiofsd: str, tmp_path: Path
) -> None:
    # Each of them fits, and so do many: the backend takes their pages later.
    size, count = 4 * MIB, 2 * LIMIT // (4 * MIB)
    make_file(tmp_path / "files/Image", size)
    outcomes: Counter[int | str] = Counter()

    async def load_all() -> None:
        async with (
            TrioClient.connect(str(tmp_path / "s"), reconnect=0) as client,
            await client.attach(size=count * size) as memory,
            trio.open_nursery() as nursery,
        ):

            async def load(address: int) -> None:
                try:
                    outcomes[await memory.load("files", "Image", address)] += 1
                except RemoteError as refused:
                    outcomes[refused.code] += 1

            for number in range(count):
                nursery.start_soon(load, number * size)

    with serving(group, virtiofsd, tmp_path) as client:
        trio.run(load_all)
        assert outcomes.keys() == {size, "ENOMEM"}
        assert [export.backend.generation for export in client.exports() if export.backend] == [1]


def read_again_and_again(client: Client) -> None:
    while True:
        client.read("files", "Image", 0, 1, timeout=1)


@threat(
    "unread-replies-in-little-memory",
    who=Who.CLIENT,
    against="the daemon's memory",
    does="asks for more than the daemon's cgroup has room for, and reads none of it",
    promise="its replies are as many as may be in an eighth of that, and the daemon serves on",
)
def test_replies_that_nobody_reads(group: Path, virtiofsd: str, tmp_path: Path) -> None:
    make_file(tmp_path / "files/Image", 8 * MIB)
    asked = b"".join(
        encode_request(number, "read", ["files", "Image", 0, 8 * MIB]) for number in (1, 2)
    )
    with serving(group, virtiofsd, tmp_path) as client:
        with contextlib.ExitStack() as others:
            for _ in range(64):
                other = others.enter_context(socket.socket(socket.AF_UNIX))
                other.connect(str(tmp_path / "s"))
                other.sendall(asked)
            with pytest.raises(TimedOut):  # they have all that their user may have
                read_again_and_again(client)
        assert client.read("files", "Image", 0, 10) == bytes(10)


@threat(
    "unread-replies-of-a-crowd",
    who=Who.CLIENT,
    against="the daemon's memory",
    does="asks on each of many connections for what its socket holds, and reads none of it",
    promise="the kernel holds an eighth of the daemon's memory of it at most, and that serves on",
)
@pytest.mark.slow
def test_replies_that_a_crowd_does_not_read(
    group: Path, rust_virtiofsd: str, tmp_path: Path
) -> None:
    make_file(tmp_path / "files/Image", MIB)
    asked = encode_request(1, "read", ["files", "Image", 0, 200_000])
    with (
        serving(group, rust_virtiofsd, tmp_path) as client,
        contextlib.ExitStack() as others,
    ):
        for _ in range(2 * LIMIT // 200_000):
            other = others.enter_context(socket.socket(socket.AF_UNIX))
            other.connect(str(tmp_path / "s"))
            with contextlib.suppress(ConnectionError):  # the user may have fewer connections
                other.sendall(asked)
        with contextlib.suppress(TimedOut):  # they may have all that their user may
            client.read("files", "Image", 0, 1, timeout=5)


def test_a_limit_that_is_lowered_counts_for_the_next_call(
    group: Path, rust_virtiofsd: str, tmp_path: Path
) -> None:
    make_file(tmp_path / "files/Image", 100 * MIB)
    with serving(group, rust_virtiofsd, tmp_path, "--image-cache", "0") as client:
        client.fetch("files", "Image").close()
        for _, name in HIERARCHIES:
            if (group / name).exists():
                lower(group / name, 120 * MIB)
        with pytest.raises(RemoteError) as refused:
            client.fetch("files", "Image")
        assert refused.value.code == "ENOMEM"


def test_what_the_kernel_can_take_back_is_no_reason_to_refuse(
    group: Path, virtiofsd: str, tmp_path: Path
) -> None:
    # What the backend reads stays in the page cache, and counts against the limit.
    names = [f"{number}.img" for number in range(4)]
    for name in names:
        make_file(tmp_path / "files" / name, 90 * MIB)
    with serving(group, virtiofsd, tmp_path, "--image-cache", "0") as client:
        for name in names * 2:
            with client.fetch("files", name) as image:
                assert image.size == 90 * MIB
