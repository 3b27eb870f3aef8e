"""Listings in pages of directories that lose entries meanwhile.

What is there all the time is listed exactly once, or the caller is told CHANGED. An overlay's
merged directory has offsets that only mean something in the open directory that gave them.
"""

import io
import os
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from tests.e2e.ways import Served
from tests.running import RunningDaemon
from tests.systems.mounting import mounted, overlay, shared_folder
from vuserd.client import Client, TrioClient
from vuserd.client.errors import RemoteError
from vuserd.ctl import main

_OLD: Final = 1500
_NEW: Final = 2000
#: How many names are taken between two clearances, and how many of them are looked at then.
_STEP: Final = 200
_RECENT: Final = 120
#: Listings that one client has going on at a time: more than a daemon keeps directories open for.
_AT_ONCE: Final = 24


@pytest.fixture(scope="module")
def served(virtiofsd: str, _root: None) -> Iterator[Served]:
    with shared_folder("vanishing") as base, mounted("-t", "tmpfs", "tmpfs", base):
        export, socket = base / "export", base / "socket"
        export.mkdir()
        with (
            RunningDaemon({"files": export}, socket, virtiofsd),
            Client.connect(str(socket)) as client,
        ):
            yield Served(client, str(socket))


@pytest.fixture
def directory(served: Served) -> Iterator[Path]:
    """Yield a directory in the export, with old files in its lower layer and new ones above."""
    base = Path(served.socket).parent
    place = Path(tempfile.mkdtemp(dir=base / "export"))
    with overlay(base / f"layers-{place.name}", place) as (lower, _):
        make_files(lower, "old", _OLD)
        make_files(place, "new", _NEW)
        yield place


def make_files(folder: Path, prefix: str, count: int) -> None:
    for number in range(count):
        os.mknod(folder / f"{prefix}{number:05}")


class Clearance:
    """A user who removes new files that were listed a moment ago."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._before = set(os.listdir(directory))
        self.seen: list[str] = []
        assert len(self._before) == _OLD + _NEW

    def saw(self, name: str) -> None:
        """Take a name that was listed."""
        self.seen.append(os.path.basename(name))
        if len(self.seen) % _STEP == 0:
            for recent in self.seen[-_RECENT:]:
                if recent.startswith("new"):
                    (self._directory / recent).unlink(missing_ok=True)

    def check(self) -> None:
        """Expect all that is still there to have been listed, and nothing twice."""
        counted = Counter(self.seen)
        stayed = self._before & set(os.listdir(self._directory))
        assert len(stayed) < _OLD + _NEW
        assert sorted(stayed - counted.keys()) == []
        assert [name for name, times in counted.items() if times > 1] == []


@contextmanager
def unless_told() -> Iterator[None]:
    """Accept an error of the daemon's that says CHANGED."""
    try:
        yield
    except RemoteError as error:
        if error.code != "CHANGED":
            raise


def by_readdir(served: Served, path: str, *, attrs: bool = False) -> Iterator[str]:
    after: Any = None
    while True:
        page = served.client.readdir("files", path, attrs=attrs, limit=90, after=after)
        for entry in page.entries:
            yield entry.name
        after = page.next
        if after is None:
            return


def by_readdir_with_attributes(served: Served, path: str) -> Iterator[str]:
    return by_readdir(served, path, attrs=True)


def by_iterdir(served: Served, path: str) -> Iterator[str]:
    for entry in served.client.iterdir("files", path):
        yield entry.name


def by_iterdir_with_attributes(served: Served, path: str) -> Iterator[str]:
    for entry in served.client.iterdir("files", path, attrs=True):
        yield entry.name


def by_walk(served: Served, path: str) -> Iterator[str]:
    after: Any = None
    while True:
        page = served.client.walk("files", path, attrs=True, limit=90, after=after)
        for problem in page.problems:
            raise problem.error
        for entry in page.entries:
            yield entry.path
        after = page.next
        if after is None:
            return


def by_iterwalk(served: Served, path: str) -> Iterator[str]:
    for entry in served.client.iterwalk("files", path):
        yield entry.path


@pytest.mark.parametrize(
    "listing",
    [
        by_readdir,
        by_readdir_with_attributes,
        by_iterdir,
        by_iterdir_with_attributes,
        by_walk,
        by_iterwalk,
    ],
    ids=lambda listing: listing.__name__,
)
def test_what_stays_is_listed_once(
    served: Served, directory: Path, listing: Callable[[Served, str], Iterator[str]]
) -> None:
    clearance = Clearance(directory)
    with unless_told():
        for name in listing(served, directory.name):
            clearance.saw(name)
        clearance.check()


async def trio_iterdir(client: TrioClient, path: str) -> AsyncIterator[str]:
    async for entry in client.iterdir("files", path):
        yield entry.name


async def trio_iterwalk(client: TrioClient, path: str) -> AsyncIterator[str]:
    async for entry in client.iterwalk("files", path, attrs=True):
        yield entry.path


@pytest.mark.parametrize("listing", [trio_iterdir, trio_iterwalk], ids=lambda one: one.__name__)
def test_to_the_trio_client(
    served: Served, directory: Path, listing: Callable[[TrioClient, str], AsyncIterator[str]]
) -> None:
    clearance = Clearance(directory)

    async def listed() -> None:
        async with TrioClient.connect(served.socket) as client:
            async for name in listing(client, directory.name):
                clearance.saw(name)

    with unless_told():
        trio.run(listed)
        clearance.check()


def test_many_listings_of_one_client(served: Served, directory: Path) -> None:
    """Page by page in turn: where the daemon cannot keep them all, it says so."""
    clearances = [Clearance(directory) for _ in range(_AT_ONCE)]
    listings = {number: by_readdir(served, directory.name) for number in range(_AT_ONCE)}
    whole = 0
    while listings:
        for number, listing in list(listings.items()):
            try:
                for _ in range(330):
                    clearances[number].saw(next(listing))
            except StopIteration:
                del listings[number]
                clearances[number].check()
                whole += 1
            except RemoteError as error:
                assert error.code == "CHANGED"  # noqa: PT017 - only some of them are
                del listings[number]
    assert whole  # some directories are kept open


@contextmanager
def clearing(directory: Path) -> Iterator[set[str]]:
    """Remove new files during the block; after it the set has what was there all the time."""
    stayed = set[str]()
    ended = threading.Event()

    def clear() -> None:
        for number in range(_NEW):
            (directory / f"new{number:05}").unlink()
            if number % 20 == 0 and ended.wait(0.001):
                return

    thread = threading.Thread(target=clear)
    thread.start()
    try:
        yield stayed
    finally:
        ended.set()
        thread.join()
        stayed.update(os.listdir(directory))


@pytest.mark.parametrize("command", ["ls", "ls -l", "get -r"])
def test_by_vuserctl(served: Served, directory: Path, tmp_path: Path, command: str) -> None:
    output, said = io.StringIO(), io.StringIO()
    arguments = ["--socket", served.socket, *command.split(), f"files:{directory.name}"]
    if command == "get -r":
        arguments.append(str(tmp_path / "copy"))
    with redirect_stdout(output), redirect_stderr(said), clearing(directory) as stayed:
        status = main.run(arguments)
    if "(CHANGED)" in said.getvalue():
        assert status == 1
        return
    if command == "get -r":
        names = os.listdir(tmp_path / "copy")
    else:
        assert status == 0, said.getvalue()
        names = [line.split()[-1] for line in output.getvalue().splitlines()]
    assert sorted(stayed - set(names)) == []
    assert len(names) == len(set(names))
