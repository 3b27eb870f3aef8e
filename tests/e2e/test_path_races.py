"""Paths whose parts are exchanged while they are walked never lead out of the export.

Beside the export lies what must not be reached: files of known content, inodes and names.  Inside,
symlinks that would lead there take the places of directories and files, and directories those of
each other, as fast as one process can do it.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.attacks.threats import Who, threat
from tests.e2e.rounds import repeated, rounds
from tests.e2e.swapper import swapping
from tests.running import RunningDaemon
from vuserd.client import Client
from vuserd.client.errors import RemoteError

_SECRET: Final = b"nobody may read this\n" * 40
_INSIDE: Final = b"this one may be read\n" * 40
#: Of files that stand inside the export where a symlink that leads out would lead, if its root
#: were the export's: so it is resolved there.
_DECOY: Final = b"the export's own one\n" * 40
_SECRET_NAME: Final = "secret-and-outside"

#: What may be said of a path whose parts come and go.
_REFUSALS: Final = frozenset(
    {"ENOENT", "ENOTDIR", "ELOOP", "EISDIR", "EINVAL", "ESTALE", "CHANGED"}
)
#: More than any walk here has.
_PAGES: Final = 20

#: Walked over and over; each of them crosses something that is exchanged.
_PATHS: Final = (
    "turn/f",
    "turn/sub/f",
    "turn/secret-and-outside",
    "turn/sub/../secret-and-outside",
    "turn/../../outside/secret-and-outside",
    "leaf",
    "up/leaf",
    "one/deep/er/f",
    "one/deep/er/../../../../secret-and-outside",
    "one/deep/er/../../../../outside/secret-and-outside",
    "one/deep/../turn/f",
    "two/../turn/sub/f",
)
_DIRECTORIES: Final = ("turn", "turn/sub", "up", "one", "one/deep", "one/deep/../..", "two/..", "")


class Place(NamedTuple):
    """An export and what lies beside it."""

    export: Path
    outside: Path
    pairs: list[tuple[Path, Path]]

    def outside_inodes(self) -> set[int]:
        """Return the inode numbers of all that must not be reached."""
        found = {os.lstat(self.outside).st_ino, os.lstat(self.outside.parent).st_ino}
        for path in self.outside.rglob("*"):
            found.add(os.lstat(path).st_ino)
        return found


def _fill(directory: Path, content: bytes, *names: str) -> None:
    (directory / "sub").mkdir(parents=True)
    for name in names:
        (directory / name).write_bytes(content)
        (directory / "sub" / name).write_bytes(content)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    outside = tmp_path / "outside"
    _fill(outside, _SECRET, "f", "leaf", _SECRET_NAME)
    export = tmp_path / "files"
    _fill(export / "turn", _INSIDE, "f", "leaf")
    # Where "../outside" and the absolute path lead, once the export is the root.
    _fill(export / "outside", _DECOY, "f", "leaf")
    _fill(export / str(outside).lstrip("/"), _DECOY, "f", "leaf")
    spare = export / "spare"
    spare.mkdir()
    (spare / "turn").symlink_to("../outside")
    (spare / "turn-absolute").symlink_to(outside)
    (export / "leaf").write_bytes(_INSIDE)
    (spare / "leaf").symlink_to(outside / "leaf")
    (export / "up").symlink_to("turn")
    (spare / "up").symlink_to("../../outside")
    for name in ("one", "two"):
        _fill(export / name / "deep" / "er", _INSIDE, "f")
        (export / name / "leaf").write_bytes(_INSIDE)
    pairs = [
        (export / "turn", spare / "turn"),
        (export / "leaf", spare / "leaf"),
        (export / "one" / "deep", export / "two"),  # a directory for one of another depth
        (export / "up", spare / "up"),
        (export / "turn", spare / "turn-absolute"),
        # One leaves the export and another comes in, so ".." on the host is another directory.
        (export / "one" / "leaf", export / "two"),
    ]
    return Place(export, outside, pairs)


class Reader:
    """Asks for paths in each way, and looks for anything of what lies outside in the answers."""

    def __init__(self, client: Client, forbidden: set[int]) -> None:
        self._client = client
        self._forbidden = forbidden
        self.came: Counter[str] = Counter()

    def stat(self, path: str) -> None:
        self._check_inode(self._client.stat("files", path).ino)

    def stat_link(self, path: str) -> None:
        self._check_inode(self._client.stat("files", path, follow=False).ino)

    def read(self, path: str) -> None:
        self._check_content(self._client.read("files", path, 0, 4096))

    def fetch(self, path: str) -> None:
        with self._client.fetch("files", path) as image, image.buffer() as buffer:
            self._check_content(bytes(buffer))

    def readdir(self, path: str) -> None:
        for entry in self._client.readdir("files", path, attrs=True).entries:
            self._check_name(entry.name)
            self._check_inode(entry.ino)
            if entry.stat is not None:
                self._check_inode(entry.stat.ino)

    def walk(self, path: str) -> None:
        after = None
        for _ in range(_PAGES):
            page = self._client.walk("files", path, attrs=True, limit=100, after=after)
            for entry in page.entries:
                self._check_name(entry.path)
                self._check_inode(entry.ino)
            assert {problem.error.code for problem in page.problems} <= _REFUSALS
            if (after := page.next) is None:
                return

    def ask(self, way: Callable[[str], None], path: str) -> None:
        came = "an answer"
        try:
            way(path)
        except RemoteError as refusal:
            came = refusal.code
        assert came == "an answer" or came in _REFUSALS, (way.__name__, path, came)
        self.came[came] += 1

    def _check_inode(self, inode: int) -> None:
        assert inode not in self._forbidden

    def _check_name(self, name: str) -> None:
        assert _SECRET_NAME not in name

    def _check_content(self, content: bytes) -> None:
        assert content in (_INSIDE, _DECOY), content[:100]
        self.came["inside" if content == _INSIDE else "decoy"] += 1


@pytest.fixture
def running(place: Place, virtiofsd: str, tmp_path: Path) -> Iterator[RunningDaemon]:
    old = 1_000_000_000
    for path in place.export.rglob("*"):
        os.utime(path, (old, old), follow_symlinks=False)
    with RunningDaemon({"files": place.export}, tmp_path / "s", virtiofsd) as running:
        yield running


@threat(
    "path-races",
    who=Who.FILE_OWNER,
    against="files outside of the export",
    does="exchanges names, links and directories while they are walked, listed and read",
    promise="no path leads out of the export",
)
@repeated
@pytest.mark.slow
def test_nothing_outside_is_reached(place: Place, running: RunningDaemon) -> None:
    forbidden = place.outside_inodes()
    with Client.connect(running.socket) as client:
        reader = Reader(client, forbidden)
        of_files = (reader.stat, reader.stat_link, reader.read, reader.fetch)
        of_directories = (reader.stat, reader.readdir, reader.walk)
        with swapping(place.pairs) as swapper:
            for _ in range(rounds(6)):
                for path in _PATHS:
                    for way in of_files:
                        reader.ask(way, path)
                for path in _DIRECTORIES:
                    for way in of_directories:
                        reader.ask(way, path)
        assert reader.came["an answer"] > 0
        assert place.outside_inodes() == forbidden
        export = client.status()["exports"][0]
        assert (export["in_flight"], export["payloads"]) == (0, 0)
        assert export["backend"] is not None
        assert export["backend"]["generation"] == 1
    print(f"{swapper.swaps} exchanges; {dict(reader.came)}")
