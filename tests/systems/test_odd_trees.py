"""Whatever a file system shows through FUSE is passed on, or an error of that entry or call.

The session goes on, and nobody else notices: neither the ordinary files in the same directory nor
those of the export beside the odd file system.
"""

import errno
import io
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.attacks.threats import Who, threat
from tests.e2e.rounds import rounds
from tests.e2e.ways import Served, by_download, by_fetch, by_load, by_read, by_stream
from tests.running import RunningDaemon
from tests.systems.mounting import shared_folder
from tests.systems.odd_nodes import KINDS, odd_entries, told_apart
from tests.systems.oddtree import Entry, Node, OddFileSystem, directory, odd_file_system
from vuserd.client import Client
from vuserd.client.errors import RemoteError
from vuserd.ctl import main

_WAYS: Final = (by_read, by_stream, by_download, by_fetch, by_load)
#: What an error is not to be: a file system has said nothing of the kind.
_NO_ERRORS: Final = {"INTERNAL", "BACKEND_DOWN", "TIMEOUT", "BAD_REQUEST", "UNKNOWN_EXPORT"}
#: Errors that say that a file is not there any more.
_GONE: Final = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}
#: Sizes from here on are more than a local file or memory may have.
_ENORMOUS: Final = 1 << 30
_PLAIN: Final = {b"p%d" % number: b"plain %d\n" % number * 500 for number in range(3)}
_BESIDE: Final = b"beside the mount"
_MOST_READ: Final = 4 << 20


class Odd(NamedTuple):
    """The file system, and a daemon that exports it and the folder that it is mounted in."""

    system: OddFileSystem
    inside: Served
    beside: Served
    longest: int  #: name that this kernel lets through


@pytest.fixture(scope="module")
def odd(virtiofsd: str, _root: None) -> Iterator[Odd]:
    with shared_folder("odd") as base:
        export, socket = base / "export", str(base / "s")
        export.mkdir()
        (export / "beside").write_bytes(_BESIDE)
        with odd_file_system(export / "odd") as system:
            longest = longest_name(system)
            exports = {"odd": system.place, "files": export}
            with (
                RunningDaemon(exports, Path(socket), virtiofsd, "--timeout", "10"),
                Client.connect(socket) as client,
            ):
                inside = Served(client, socket, "odd", sized=False)
                yield Odd(system, inside, inside._replace(export="files"), longest)


def longest_name(system: OddFileSystem) -> int:
    """Return the longest name that is listed here: 1,024 bytes before Linux 6.15."""
    for length in (4095, 1024):
        system.show(directory({b"n" * length: Node()}))
        with suppress(OSError):
            os.listdir(system.place)
            return length
    return 255


def lives(served: Served) -> list[tuple[object, ...]]:
    """Return what shows of each export that its backend was lost."""
    return [
        (
            export["name"],
            export["state"],
            export["restarts"],
            None if export["backend"] is None else export["backend"]["generation"],
        )
        for export in served.client.status()["exports"]
    ]


def revive(odd: Odd) -> None:
    """Bring the exports up, whatever the previous tree has done to them."""
    odd.system.show(directory({}))
    for export in odd.inside.client.exports():
        if export.state == "failed":
            odd.inside.client.reload(export.name)
        odd.inside.client.stat(export.name, "/")  # waits for it


def acceptable(error: Exception) -> bool:
    """Return whether an error is one of that file, and not one of the service."""
    return isinstance(error, RemoteError) and error.code not in _NO_ERRORS


def on_host(place: Path, name: bytes, look: Callable[[bytes, int], object]) -> object:
    """Look at an entry as the host does; return its OSError where that is what comes."""
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)  # a long name is a path by itself
    try:
        return look(name, descriptor)
    except OSError as error:
        return error
    finally:
        os.close(descriptor)


def host_target(name: bytes, folder: int) -> bytes:
    return os.readlink(name, dir_fd=folder)


def host_content(name: bytes, folder: int) -> bytes:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    try:
        content = b""
        while part := os.read(descriptor, _MOST_READ):
            content += part
            assert len(content) <= _MOST_READ
        return content
    finally:
        os.close(descriptor)


def check_listing(odd: Odd, root: Node) -> None:
    """Expect every ordinary file to be listed once, with what the host lists, and nothing else.

    Offsets that do not grow may be refused: nothing else tells a listing that never ends.
    """
    if root.offsets is not None:
        try:
            list(odd.inside.client.iterdir("odd", "/"))
        except RemoteError as error:
            assert acceptable(error), error  # noqa: PT017
            return
    host = os.listdir(os.fsencode(odd.system.place))
    for attrs in (False, True):
        entries = list(odd.inside.client.iterdir("odd", "/", attrs=attrs))
        names = [os.fsencode(entry.name) for entry in entries]
        for name in _PLAIN:
            assert names.count(name) == 1
        # What an error says is gone need not be listed where its attributes were asked for.
        gone = {entry.name for entry in root.entries if _GONE & {*entry.node.errors.values()}}
        assert set(host) <= set(names) | (gone if attrs else set())
        assert set(names) <= {entry.name for entry in root.entries}
        for entry in entries:
            content = _PLAIN.get(os.fsencode(entry.name))
            if attrs and content is not None:
                assert entry.stat is not None
                assert entry.stat.size == len(content)
    walked = set()
    try:
        for found in odd.inside.client.iterwalk("odd", "/", attrs=True):
            walked.add(os.fsencode(found.path))
    except RemoteError as error:  # of a directory, after all that could be read
        assert acceptable(error), error  # noqa: PT017 - most trees have none
    assert set(_PLAIN) <= walked


def check_entry(odd: Odd, entry: Entry, way: Callable[[Served, str], bytes]) -> None:
    """Expect of an odd file what the host has, or an error of its own."""
    name, node = os.fsdecode(entry.name), entry.node
    client = odd.inside.client
    host = on_host(
        odd.system.place,
        entry.name,
        lambda path, fd: os.stat(path, dir_fd=fd, follow_symlinks=False),
    )
    # Of all that have the root's number the backend knows the first one.
    steady = not node.later_modes and node.ino != 1 and isinstance(host, os.stat_result)
    try:
        found = client.stat("odd", name, follow=False)
    except RemoteError as error:
        assert acceptable(error), error  # noqa: PT017
    else:
        if steady and isinstance(host, os.stat_result):
            assert (found.mode, found.size, found.ino) == (host.st_mode, host.st_size, host.st_ino)
            assert (found.nlink, found.uid, found.gid) == (host.st_nlink, host.st_uid, host.st_gid)
    try:
        target = client.readlink("odd", name)
    except RemoteError as error:
        assert acceptable(error), error  # noqa: PT017
    else:
        on_the_host = on_host(odd.system.place, entry.name, host_target)
        assert not steady or isinstance(on_the_host, OSError) or os.fsencode(target) == on_the_host
    if stat.S_ISDIR(node.mode) and steady:
        check_directory(odd, entry)
    if stat.S_ISLNK(node.mode):
        return  # what it leads to is another file
    content = on_host(odd.system.place, entry.name, host_content)
    try:
        taken = way(odd.inside, name)
    except RemoteError as error:
        assert acceptable(error), error  # noqa: PT017
    except (OSError, MemoryError):  # of the client's own, for so much room
        assert node.size is not None
        assert node.size >= _ENORMOUS
    else:
        assert not steady or isinstance(content, OSError) or taken == content


def check_directory(odd: Odd, entry: Entry) -> None:
    """Expect of a directory what the host lists, or an error."""
    host = on_host(odd.system.place, entry.name, listed)
    try:
        names = {
            os.fsencode(found.name)
            for found in odd.inside.client.iterdir("odd", os.fsdecode(entry.name), attrs=True)
        }
    except RemoteError as error:
        assert acceptable(error), error  # noqa: PT017
    else:
        assert names <= {below.name for below in entry.node.entries}
        # With offsets of its own, what no longer fits into a reply is not listed again: nobody's
        # fault but the file system's, and a matter of the reader's buffer.
        if isinstance(host, set) and entry.node.offsets is None:
            inside = entry.node.entries
            of_all = entry.node.errors.get("LOOKUP")
            gone = {below.name for below in inside if _GONE & {of_all, *below.node.errors.values()}}
            assert host <= names | gone


def listed(name: bytes, folder: int) -> set[bytes]:
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
    try:
        return set(map(os.fsencode, os.listdir(descriptor)))
    finally:
        os.close(descriptor)


def check_copy(odd: Odd) -> None:
    """Expect get -r to bring every ordinary file, whatever it says of the others."""
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        arguments = ["--socket", odd.inside.socket, "get", "-r", "odd:/", f"{folder}/copy"]
        assert main.run(arguments) in (0, 1)
        for name, content in _PLAIN.items():
            assert Path(folder, "copy", os.fsdecode(name)).read_bytes() == content


def check_tree(odd: Odd, entries: tuple[Entry, ...], chance: int, **fields: object) -> None:
    """Show the entries with ordinary ones before, between and after them, and try all calls."""
    plain = [Entry(name, Node(content=content)) for name, content in _PLAIN.items()]
    middle = len(entries) // 2
    shown = (plain[0], *entries[:middle], plain[1], *entries[middle:], plain[2])
    root = replace(directory({}), entries=shown, **fields)  # type: ignore[arg-type]
    revive(odd)
    before = lives(odd.inside)
    odd.system.show(root)
    check_listing(odd, root)
    first = {entry.name: entry for entry in reversed(entries)}  # the one of two that is found
    for number, entry in enumerate(first.values()):
        check_entry(odd, entry, _WAYS[(chance + number) % len(_WAYS)])
    for number, (name, content) in enumerate(_PLAIN.items()):
        way = _WAYS[(chance + number) % len(_WAYS)]
        assert way(odd.inside, os.fsdecode(name)) == content
        assert way(odd.beside, f"odd/{os.fsdecode(name)}") == content
    if root.offsets is None:
        check_copy(odd)
    assert by_read(odd.beside, "beside") == _BESIDE
    assert lives(odd.inside) == before


@pytest.mark.parametrize("kind", KINDS)
def test_one_oddity(odd: Odd, kind: str) -> None:
    entries = KINDS[kind]
    if any(len(entry.name) > odd.longest for entry in entries):
        pytest.skip(f"the kernel's FUSE has no names of more than {odd.longest} bytes")
    check_tree(odd, tuple(entries), len(kind))


@pytest.mark.parametrize(
    "fields",
    [{"dots": False}, {"offsets": (0,)}, {"offsets": (9, 8, 7, 6)}, {"offsets": ((1 << 63) - 1,)}],
    ids=str,
)
def test_an_odd_root(odd: Odd, fields: dict[str, object]) -> None:
    check_tree(odd, (Entry(b"odd", Node()),), 0, **fields)


@threat(
    "odd-trees",
    who=Who.FILE_OWNER,
    against="all who use the export",
    does="mounts a file system that shows odd names, links, types, sizes and errors",
    promise="an oddity is passed on, or is an error of that entry or call alone",
)
@pytest.mark.timeout(240 + rounds(0))
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@pytest.mark.slow
def test_any_tree(odd: Odd) -> None:
    """Try as many as $VUSERD_TEST_ROUNDS says."""
    fresh = count(1)

    @settings(
        max_examples=rounds(20),
        deadline=None,
        database=None,
        # No shrinking, which loses a backend for each smaller tree: the kinds above are small.
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(odd_entries(odd.longest), st.integers(0, 100), st.booleans())
    def check(entries: tuple[Entry, ...], chance: int, dots: bool) -> None:
        check_tree(odd, told_apart(entries, fresh), chance, dots=dots)

    check()
