"""Every listing, stat, link and byte of a tree of oddities is the same as the host's own view."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.host_tree import host_stat, make_tree
from tests.e2e.openat2 import stat_in_root
from tests.running import REPOSITORY, RunningDaemon, find_backend
from vuserd.client import Client, calls
from vuserd.client.errors import RemoteError
from vuserd.client.records import Stat

_PART = 8 << 20


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """Give a folder where others get: any run of pytest takes that back from its own."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def tree(place: Path) -> Path:
    (place / "tree").mkdir()
    make_tree(place / "tree")
    return place / "tree"


@pytest.fixture(scope="module")
def client(
    tree: Path, virtiofsd: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    socket = tmp_path_factory.mktemp("tree-daemon") / "s"
    with RunningDaemon({"tree": tree}, socket, virtiofsd), Client.connect(str(socket)) as client:
        yield client


def walk(tree: Path) -> Iterator[tuple[bytes, list[os.DirEntry[bytes]]]]:
    """Yield each directory's path inside the tree, and its entries."""
    waiting = [b""]
    while waiting:
        here = waiting.pop()
        with os.scandir(os.path.join(os.fsencode(tree), here)) as entries:
            found = list(entries)
        yield here, found
        waiting += [
            os.path.join(here, entry.name) for entry in found if entry.is_dir(follow_symlinks=False)
        ]


def shown(status: Stat) -> dict[str, object]:
    fields = status._asdict()
    assert fields.pop("submount") is False
    del fields["atime_ns"]
    return fields


def test_listings_without_attributes_are_the_hosts(client: Client, tree: Path) -> None:
    for path, entries in walk(tree):
        listed = {entry.name: (entry.type, entry.ino) for entry in client.iterdir("tree", path)}
        assert listed == {
            os.fsdecode(entry.name): (
                host_stat(entry.stat(follow_symlinks=False))["type"],
                entry.inode(),
            )
            for entry in entries
        }


def test_listings_with_attributes_are_the_hosts(client: Client, tree: Path) -> None:
    for path, entries in walk(tree):
        listed = {}
        for entry in client.iterdir("tree", path, attrs=True):
            assert entry.stat is not None
            listed[entry.name] = shown(entry.stat)
        assert listed == {
            os.fsdecode(entry.name): host_stat(entry.stat(follow_symlinks=False))
            for entry in entries
        }


def test_stats_and_links_are_the_hosts(client: Client, tree: Path) -> None:
    links = 0
    for path, entries in walk(tree):
        inside = [os.path.join(path, entry.name) for entry in entries]
        begun = [client.begin(calls.stat("tree", name, follow=False)) for name in inside]
        for name, entry, call in zip(inside, entries, begun, strict=True):
            status = client.finish(call)
            assert shown(status) == host_stat(entry.stat(follow_symlinks=False))
            if status.type == "symlink":
                links += 1
                assert client.readlink("tree", name) == os.fsdecode(os.readlink(entry.path))
    assert links > 50


def test_bytes_are_the_hosts(client: Client, tree: Path) -> None:
    files = 0
    buffer = bytearray(_PART)
    for path, entries in walk(tree):
        for entry in entries:
            if not entry.is_file(follow_symlinks=False):
                continue
            files += 1
            inside = os.path.join(path, entry.name)
            with open(entry.path, "rb") as host:
                offset = 0
                while True:
                    expected = host.read(_PART)
                    got = client.read_into("tree", inside, offset, buffer)
                    assert memoryview(buffer)[:got] == expected, (inside, offset)
                    offset += got
                    if got < _PART:
                        break
    assert files > 3000


@pytest.mark.parametrize("follow", [True, False])
def test_paths_lead_where_the_kernel_says(client: Client, tree: Path, follow: bool) -> None:
    odd = [b"odd/" + name for name in os.listdir(os.fsencode(tree / "odd"))]
    suffixes = [b"", b"/", b"/.", b"/..", b"/../..", b"//", b"/nothing", b"/../odd/sparse"]
    paths = [path + suffix for path in odd for suffix in suffixes]
    paths += [b"", b"/", b".", b"..", b"../..", b"/../etc/passwd", b"//odd///sparse", b"n" * 256]
    paths += [b"odd/link to the root/odd/link to the root/odd/sparse", b"x/" * 2047, b"a" * 4096]
    for path in paths:
        try:
            expected: object = host_stat(stat_in_root(str(tree), path, follow=follow))
        except OSError as error:
            expected = errno.errorcode[error.errno or 0]
        try:
            got: object = shown(client.stat("tree", path, follow=follow))
        except RemoteError as remote:
            got = remote.code
        assert got == expected, path


def test_what_is_no_regular_file_is_refused_by_its_name(client: Client) -> None:
    words = {"fifo": "fifo", "socket": "socket", "dir": "directory", "char": "character device"}
    words["block"] = "block device"
    seen = set()
    for entry in client.iterdir("tree", "odd"):
        if entry.type in words:
            with pytest.raises(RemoteError, match=words[entry.type]) as refused:
                client.read("tree", f"odd/{entry.name}", 0, 1)
            assert refused.value.code == ("EISDIR" if entry.type == "dir" else "EINVAL")
            seen.add(entry.type)
    assert seen >= {"fifo", "socket", "dir"}


def test_statfs_is_the_hosts(client: Client, tree: Path) -> None:
    ours, host = client.statfs("tree"), os.statvfs(tree)
    assert (ours.blocks, ours.files, ours.frsize, ours.namelen) == (
        host.f_blocks,
        host.f_files,
        host.f_frsize,
        host.f_namemax,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_unprivileged_daemon_sees_what_its_user_may(tree: Path, place: Path) -> None:
    program = find_backend("rust")
    if program is None:
        pytest.skip("no rust virtiofsd on this machine: make backends")
    nobody = 65534
    own = place / "virtiofsd"
    if Path(program).is_relative_to(REPOSITORY):  # where nobody may not look
        shutil.copytree(Path(program).parent, own, symlinks=True)
        program = str(own / Path(program).name)
    folder = place / "nobody"
    folder.mkdir()
    tree.chmod(0o755)
    os.chown(folder, nobody, nobody)
    socket = folder / "s"
    with (
        RunningDaemon({"tree": tree}, socket, program, user=nobody),
        Client.connect(str(socket)) as client,
    ):
        assert client.exports()[0].state == "up"
        listed = {entry.name for entry in client.iterdir("tree", "")}
        assert listed == set(os.listdir(tree))
        os.chmod(tree / "odd", 0o755)
        assert client.read("tree", "odd/sparse", 48 << 20, 10) == b"end"
        with pytest.raises(RemoteError) as refused:
            client.read("tree", "odd/unreadable", 0, 1)
        assert refused.value.code == "EACCES"
