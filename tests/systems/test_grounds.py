"""Listings, attributes and bytes of a tree are the host's, on every file system."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.host_tree import host_stat
from tests.e2e.ways import WAYS, Served, by_cat, by_get_r
from tests.systems.grounds import GROUNDS
from tests.systems.trees import SIZES, SPARSE_SIZE, described
from vuserd.ctl import main

#: One makes pages end in the middle of what a backend sends.
LIMITS: Final = (7, 1000)
_SLOW_WAYS: Final = (by_cat, by_get_r)


def directories(top: Path) -> Iterator[tuple[str, list[os.DirEntry[bytes]]]]:
    """Yield every directory by its path from the top, with what is in it."""
    base = os.fsencode(top)
    for folder, _, _ in os.walk(base):
        with os.scandir(folder) as entries:
            yield os.fsdecode(os.path.relpath(folder, base)), list(entries)


def told(stat: Any) -> dict[str, Any]:
    """Return what a stat of the client's says, but for atime, which reading moves."""
    fields: dict[str, Any] = stat._asdict()
    del fields["atime_ns"], fields["submount"]
    return fields


@pytest.mark.parametrize("name", GROUNDS)
def test_the_kernel_has_it(name: str) -> None:
    """Leave a file system out by its name, here and not in each test."""
    lacking = GROUNDS[name].lacking()
    if lacking is not None:
        pytest.skip(lacking)


@pytest.mark.parametrize("attrs", [False, True], ids=["names", "attributes"])
@pytest.mark.parametrize("limit", LIMITS)
def test_pages_of_a_directory(served: Served, ground: Path, limit: int, attrs: bool) -> None:
    for path, host in directories(ground):
        entries, after = [], None
        while True:
            page = served.client.readdir(served.export, path, attrs=attrs, limit=limit, after=after)
            assert len(page.entries) <= limit
            entries += page.entries
            after = page.next
            if after is None:
                break
        inodes = {entry.name: entry.inode() for entry in host}
        for entry in entries:
            name = os.fsencode(entry.name)
            status = os.lstat(os.path.join(os.fsencode(ground / path), name))
            # Where something is mounted, or a subvolume begins, a listing has another number.
            assert entry.ino in (inodes[name], status.st_ino)
            assert entry.type in (host_stat(status)["type"], "unknown")
            if attrs:
                assert told(entry.stat) == host_stat(status)
        assert sorted(os.fsencode(entry.name) for entry in entries) == sorted(inodes)


@pytest.mark.parametrize("attrs", [False, True], ids=["names", "attributes"])
def test_whole_listings(served: Served, ground: Path, attrs: bool) -> None:
    expected = []
    for path, host in directories(ground):
        names = sorted(os.fsdecode(entry.name) for entry in host)
        listed = served.client.iterdir(served.export, path, attrs=attrs)
        assert sorted(entry.name for entry in listed) == names
        expected += [os.path.normpath(os.path.join(path, name)) for name in names]
    walked = served.client.iterwalk(served.export, "/", attrs=attrs)
    assert sorted(entry.path for entry in walked) == sorted(expected)


@pytest.mark.parametrize("limit", [50])
def test_pages_of_a_tree(served: Served, ground: Path, limit: int) -> None:
    paths, after = [], None
    while True:
        page = served.client.walk(served.export, "/", attrs=True, limit=limit, after=after)
        assert not page.problems
        paths += [entry.path for entry in page.entries]
        after = page.next
        if after is None:
            break
    expected = {
        os.path.normpath(os.path.join(path, os.fsdecode(entry.name)))
        for path, host in directories(ground)
        for entry in host
    }
    assert len(paths) == len(expected)
    assert set(paths) == expected


def test_attributes(served: Served, ground: Path) -> None:
    for path, host in directories(ground):
        for entry in host[:25]:
            name = os.fsdecode(entry.name)
            found = served.client.stat(served.export, os.path.join(path, name), follow=False)
            assert told(found) == host_stat(os.lstat(ground / path / name))
            if found.type == "symlink":
                target = served.client.readlink(served.export, os.path.join(path, name))
                assert target == os.readlink(ground / path / name)
    assert told(served.client.stat(served.export, "/")) == host_stat(os.stat(ground))


def test_the_file_system_itself(served: Served, ground: Path) -> None:
    found, host = served.client.statfs(served.export), os.statvfs(ground)
    assert (found.bsize, found.frsize, found.blocks) == (host.f_bsize, host.f_frsize, host.f_blocks)
    assert (found.files, found.namelen) == (host.f_files % (1 << 64), host.f_namemax)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_bytes(served: Served, ground: Path, way: Callable[[Served, str], bytes]) -> None:
    if way in _SLOW_WAYS:
        paths = [f"sizes/{SIZES[-1]}"]
    else:
        paths = [*(f"sizes/{size}" for size in SIZES), "sparse", "bound", "odd/link up"]
    for path in (*paths, "subvolume/shared", "snapshot/shared"):
        if os.path.exists(ground / path):
            assert way(served, path) == (ground / path).read_bytes(), path


def test_a_part_of_a_sparse_file(served: Served, ground: Path) -> None:
    content = (ground / "sparse").read_bytes()
    assert len(content) == SPARSE_SIZE
    for offset in (0, 4095, (1 << 20) - 1, (2 << 20) + 1, SPARSE_SIZE - 1, SPARSE_SIZE):
        part = served.client.read(served.export, "sparse", offset, 5000)
        assert part == content[offset : offset + 5000]


def test_a_copy_of_it_all(served: Served, ground: Path, tmp_path: Path) -> None:
    said = io.StringIO()
    command = ["--socket", served.socket, "get", "-r", f"{served.export}:/"]
    with redirect_stderr(said):
        assert main.run([*command, str(tmp_path / "copy")]) == 0, said.getvalue()
    fifo = f"vuserctl: {served.export}:/odd/fifo: skipped, a fifo\n"
    assert said.getvalue() == (fifo if os.path.exists(ground / "odd/fifo") else "")
    copy, host = described(tmp_path / "copy"), described(ground)
    assert copy.keys() == host.keys()
    assert {path: copy[path] for path in host if copy[path] != host[path]} == {}
