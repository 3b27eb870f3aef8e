"""A short call needs no task: it has the outcome of one that has a task, and loses nothing.

A call that is given a time of its own is made in a task, whatever it asks for.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.running import RunningDaemon
from vuserd.client import Client, calls
from vuserd.client.calls import Call, within
from vuserd.client.errors import RemoteError
from vuserd.client.records import Stat

PATHS: Final = (
    *("", "/", ".", "..", "a", "a/", "a/b", "a/b/c", "a/b/c/", "/a//b/./c", "a/../a/b/c"),
    *("../../a/b/c", "a/b/../../a/b/c", "a/b/c/..", "a/b/c/x", "a/x/c", "x", "x/y/z", "a/b/."),
    *("link", "link/", "link/c", "a/up", "a/up/a/b/c", "a/b/end", "a/b/end/", "dangling", "loop"),
    *("loop/x", "a/out", "empty", "fifo", "a/b/" + "n" * 255, "a/b/" + "n" * 256, "n/" * 2100),
)
#: Longer than any of these calls takes.
AMPLE: Final = 300.0


@pytest.fixture(scope="module")
def client(virtiofsd: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("short")
    files = folder / "files"
    inner = files / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "c").write_bytes(b"content of c")
    (files / "empty").touch()
    os.mkfifo(files / "fifo")
    for name, target in (
        ("link", "a/b"),
        ("a/up", "../."),
        ("a/b/end", "c"),
        ("dangling", "nowhere"),
        ("loop", "loop"),
        ("a/out", "../../../../etc/hostname"),
    ):
        (files / name).symlink_to(target)
    for path in (*inner.iterdir(), *files.iterdir()):
        os.utime(path, (1_000_000_000.123456789,) * 2, follow_symlinks=False)
    with (
        RunningDaemon({"files": files}, folder / "s", virtiofsd),
        Client.connect(str(folder / "s")) as connected,
    ):
        yield connected


def outcome(client: Client, call: Call[Any]) -> object:
    """Return what a call gives, or its error; but for the times of access, which calls change."""
    try:
        found = client.call(call)
    except RemoteError as error:
        return error.code, str(error)
    return found._replace(atime_ns=0) if isinstance(found, Stat) else found


def stat(path: str) -> Call[Any]:
    return calls.stat("files", path)


def lstat(path: str) -> Call[Any]:
    return calls.stat("files", path, follow=False)


def part(path: str, offset: int, length: int) -> Call[Any]:
    return Call("read", ["files", path, offset, length], bytes)


def read(path: str) -> Call[Any]:
    return part(path, 0, 4096)


def read_a_part(path: str) -> Call[Any]:
    return part(path, 8, 3)


def read_behind(path: str) -> Call[Any]:
    return part(path, 100, 1)


@pytest.mark.parametrize("make", [stat, lstat, read, read_a_part, read_behind])
def test_it_gives_what_a_call_in_a_task_gives(
    client: Client, make: Callable[[str], Call[Any]]
) -> None:
    """Once where nothing is known of the way, once where all is, and once by another's way."""
    found = {path: outcome(client, make(path)) for path in PATHS}
    for path in PATHS:
        assert outcome(client, within(AMPLE, make(path))) == found[path], path
        assert outcome(client, make(path)) == found[path], path
    assert any(isinstance(one, tuple) and one[0] == "ENOENT" for one in found.values())


def fetch(client: Client, path: str, seconds: float | None = None) -> tuple[bytes, bool] | str:
    """Return an image's bytes, and whether it was kept; or the error."""
    call = calls.fetch("files", path)
    try:
        with client.call(call if seconds is None else within(seconds, call)) as image:
            return bytes(image.buffer()), image.cached
    except RemoteError as error:
        return str(error)


def test_an_image_that_is_kept_is_the_one_of_a_call_in_a_task(client: Client) -> None:
    assert fetch(client, "a/b/c", AMPLE) in [(b"content of c", known) for known in (True, False)]
    for path in PATHS:
        found = fetch(client, path)
        assert fetch(client, path, AMPLE) in [found, (found[0], True)], path
        if not isinstance(found, str):
            assert fetch(client, path) == (found[0], True), path


def test_a_file_in_the_place_of_another_is_the_one_that_is_found(
    virtiofsd: str, tmp_path: Path
) -> None:
    """Directories, files and symlinks take each other's places between two calls."""
    files = tmp_path / "files"
    (files / "d" / "e").mkdir(parents=True)
    (files / "d" / "e" / "f").write_bytes(b"first")
    (files / "other" / "e").mkdir(parents=True)
    (files / "other" / "e" / "f").write_bytes(b"the second")
    (files / "third").write_bytes(b"third, by a link")
    with (
        RunningDaemon({"files": files}, tmp_path / "s", virtiofsd),
        Client.connect(str(tmp_path / "s")) as client,
    ):

        def seen() -> tuple[bytes, int]:
            content = bytes(client.read("files", "d/e/f", 0, 100))
            return content, client.stat("files", "d/e/f").size

        for _ in range(2):
            assert seen() == (b"first", 5)
        (files / "d").rename(files / "aside")
        (files / "other").rename(files / "d")
        for _ in range(2):
            assert seen() == (b"the second", 10)
        (files / "d" / "e" / "f").unlink()
        (files / "d" / "e" / "f").symlink_to("../../third")
        for _ in range(2):
            assert seen() == (b"third, by a link", 16)
        (files / "d" / "e").rename(files / "e")
        (files / "d" / "e").symlink_to("../aside/e")
        for _ in range(2):
            assert seen() == (b"first", 5)
        (files / "d" / "e").unlink()
        with pytest.raises(FileNotFoundError):
            client.stat("files", "d/e/f")
        (files / "d" / "e").touch()
        with pytest.raises(NotADirectoryError):
            client.read("files", "d/e/f", 0, 100)
        with pytest.raises(NotADirectoryError):
            client.stat("files", "d/e/f")
