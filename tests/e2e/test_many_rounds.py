"""Many rounds of work leave nothing behind: descriptors, mappings, nodes, buffers, memory."""

import itertools
import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.e2e.processes import family, memfd_mappings
from tests.e2e.rounds import repeated, rounds
from tests.running import RunningDaemon, wait_until
from vuserd.client import Client, calls

SIZE: Final = 300_001
CLIENTS: Final = 100
#: What the daemon may open; the Rust backend keeps 610 of them for itself.
DESCRIPTORS: Final = 1200
#: Bytes that a process's resident memory may differ by: allocators keep some of what was freed.
_SLACK: Final = 4 << 20


class Standing(NamedTuple):
    """What one process has: of each no more after than before."""

    descriptors: int
    memfd_mappings: int
    resident: int

    @classmethod
    def of(cls, process: int) -> "Standing":
        """Take stock of a process."""
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines()
        )
        return cls(
            len(os.listdir(f"/proc/{process}/fd")),
            memfd_mappings(process),
            # Shared memory is counted in the process that made it: arena and images.
            int(status["RssAnon"].split()[0]) << 10,
        )


@pytest.fixture(scope="module")
def content() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture(scope="module")
def running(
    virtiofsd: str, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningDaemon]:
    folder = tmp_path_factory.mktemp("rounds")
    (folder / "files").mkdir()
    (folder / "files" / "file").write_bytes(content)
    with RunningDaemon({"files": folder / "files"}, folder / "s", virtiofsd) as running:
        yield running


@pytest.fixture
def client(running: RunningDaemon) -> Iterator[Client]:
    with Client.connect(running.socket) as client:
        yield client


@pytest.fixture
def file(running: RunningDaemon) -> Path:
    """Return the host's own name of what is exported as ``file``."""
    return Path(running.socket).parent / "files" / "file"


def owed(client: Client) -> dict[str, Any]:
    """Return what the daemon says that it holds, once no RELEASE or FORGET is on its way."""
    for _ in range(1000):
        status = client.status()
        export = status["exports"][0]
        if not export["in_flight"]:
            break
    held = {key: export[key] for key in ("nodes", "lookups", "in_flight", "payloads")}
    images = {key: status["images"][key] for key in ("count", "bytes")}
    return {**held, **images, "connections": status["connections"]}


def done_many_times(
    running: RunningDaemon, client: Client, once: Callable[[], object], times: int = 100
) -> None:
    """Repeat something; check that from a third of the way on it leaves nothing behind.

    Until then allocators and Python's collector of cycles find out how much they want to keep.
    """
    for _ in range(rounds(times) // 2):
        once()
    processes = list(family(running.process.pid))
    assert len(processes) > 1
    before = owed(client), [Standing.of(process) for process in processes]
    for _ in range(rounds(times)):
        once()
    assert owed(client) == before[0]
    for process, earlier in zip(processes, before[1], strict=True):

        def is_within(process: int = process, earlier: Standing = earlier) -> bool:
            now = Standing.of(process)
            return (
                now.descriptors <= earlier.descriptors
                and now.memfd_mappings <= earlier.memfd_mappings
            )

        wait_until(is_within)  # a backend may be about to close what the last calls had open
        now = Standing.of(process)
        assert now.resident - earlier.resident < _SLACK
        print(process, f"RssAnon {earlier.resident >> 10} kB, then {now.resident >> 10} kB")


@repeated
def test_fetches_of_what_is_cached(running: RunningDaemon, client: Client, content: bytes) -> None:
    def once() -> None:
        with client.fetch("files", "file") as image:
            assert os.pread(image.fileno(), 100, SIZE - 100) == content[-100:]

    done_many_times(running, client, once)
    with client.fetch("files", "file") as image:
        assert image.cached


@repeated
def test_fetches_of_what_is_not(virtiofsd: str, tmp_path: Path) -> None:
    """Every image is a new one, and there is room for four: the oldest go, with all they had."""
    files = tmp_path / "files"
    files.mkdir()
    numbers = itertools.count()
    pages = SIZE + -SIZE % mmap.PAGESIZE
    budget = ("--image-cache", str(4 * pages))
    with (
        RunningDaemon({"files": files}, tmp_path / "s", virtiofsd, *budget) as running,
        Client.connect(running.socket) as client,
    ):

        def once() -> None:
            number = next(numbers)
            name = str(number % 10)
            (files / name).write_bytes(b"%08d" % number + bytes(SIZE - 8))
            with client.fetch("files", name) as image, image.buffer() as buffer:
                assert buffer[:8] == b"%08d" % number
                assert not image.cached

        done_many_times(running, client, once, 50)
        images = client.status()["images"]
        assert (images["count"], images["bytes"]) == (4, 4 * pages)


@repeated
def test_attaching_loading_detaching(
    running: RunningDaemon, client: Client, content: bytes
) -> None:
    def once() -> None:
        with client.attach(size=1 << 20) as memory:
            assert memory.load("files", "file", 4096) == SIZE
            assert os.pread(memory.fileno(), SIZE, 4096) == content

    done_many_times(running, client, once)


@repeated
def test_loading_into_what_stays_attached(
    running: RunningDaemon, client: Client, content: bytes
) -> None:
    with client.attach(size=1 << 20) as memory:

        def once() -> None:
            assert memory.load("files", "file", 4096) == SIZE

        done_many_times(running, client, once)
        assert memory.buffer[4096 : 4096 + SIZE] == content


@repeated
def test_clients_that_go_without_a_word(
    daemon: RunningDaemon, tmp_path: Path, content: bytes
) -> None:
    """Their memory is detached, their requests are given up, and the backend goes on."""
    (tmp_path / "files" / "file").write_bytes(content)
    with Client.connect(daemon.socket) as client:

        def once() -> None:
            with Client.connect(daemon.socket) as hasty:
                memory = hasty.attach(size=1 << 20)
                hasty.begin(calls.fetch("files", "file"))
                hasty.begin(calls.load(memory.id, 0, "files", "file"))
                memory._memory.close()
            while client.status()["connections"] > 1:
                assert client.exports()[0].state == "up"
                time.sleep(0.001)
            # How far they came is a matter of chance: now the node and the image are known.
            client.fetch("files", "file").close()

        done_many_times(daemon, client, once)


def characters_read(process: int) -> int:
    """Return the bytes that a process has had from read(2) and its like, so far."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{process}/io").read_text().splitlines())
    return int(fields["rchar"])


def test_many_who_ask_at_once_are_given_one_image(
    running: RunningDaemon, client: Client, file: Path
) -> None:
    size = 16 << 20
    file.write_bytes(os.urandom(size))
    crowd = [Client.connect(running.socket) for _ in range(CLIENTS)]
    images = []
    try:
        backend = list(family(running.process.pid))[1:]
        before, read_before = client.status()["images"], sum(map(characters_read, backend))
        asked = [each.begin(calls.fetch("files", "file")) for each in crowd]
        images = [each.finish(call) for each, call in zip(crowd, asked, strict=True)]
        after, read_after = client.status()["images"], sum(map(characters_read, backend))
        assert after["misses"] == before["misses"] + 1
        assert after["bytes"] == size  # that of what the file was before is gone
        assert size <= read_after - read_before < size + (1 << 20)
        assert len({os.fstat(image.fileno()).st_ino for image in images}) == 1
        assert images[-1].buffer() == file.read_bytes()
    finally:
        for image in images:
            image.close()
        for each in crowd:
            each.close()


@pytest.mark.slow
def test_many_small_images_do_not_use_up_the_descriptors(virtiofsd: str, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    for number in range(DESCRIPTORS + 200):
        (files / str(number)).write_bytes(b"%d" % number)
    with (
        RunningDaemon(
            {"files": files}, tmp_path / "s", virtiofsd, descriptors=DESCRIPTORS
        ) as running,
        Client.connect(running.socket) as client,
    ):
        for begin in range(0, DESCRIPTORS + 200, 20):
            numbers = range(begin, begin + 20)
            asked = [client.begin(calls.fetch("files", str(number))) for number in numbers]
            for number, call in zip(numbers, asked, strict=True):
                with client.finish(call) as image:
                    assert image.buffer() == b"%d" % number
        with Client.connect(running.socket) as later:
            assert later.stat("files", "0").size == 1
