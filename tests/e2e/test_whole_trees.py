"""Trees with their bytes, and walks, are what is on the host, and leave nothing behind."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.e2e.host_tree import host_stat, make_tree
from tests.e2e.standing import assert_owes_no_more, held_at_rest
from tests.running import RunningDaemon
from vuserd.client import Client, calls
from vuserd.client.calls import Call
from vuserd.client.errors import RemoteError
from vuserd.client.files.tree_page import TreeEntry, TreePage

MIB = 1 << 20


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    make_tree(folder)
    return folder


@pytest.fixture(scope="module")
def client(
    tree: Path, virtiofsd: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    socket = tmp_path_factory.mktemp("tree-daemon") / "s"
    with RunningDaemon({"tree": tree}, socket, virtiofsd), Client.connect(str(socket)) as client:
        yield client


def host_paths(top: Path) -> dict[str, os.stat_result]:
    found = {}
    for folder, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, top)] = os.lstat(path)
    return found


def require_entry(entry: TreeEntry, path: Path, status: os.stat_result) -> None:
    """Compare an entry with the file on the host."""
    assert entry.stat is not None
    shown = {**entry.stat._asdict(), **host_stat(status)}
    assert entry.stat._asdict() == shown | {"atime_ns": entry.stat.atime_ns}
    if entry.stat.type == "symlink":
        assert entry.target == os.readlink(path)
    else:
        assert entry.target is None
    if entry.stat.type == "file" and status.st_size < MIB and entry.error is None:
        assert entry.content is not None
        assert bytes(entry.content) == path.read_bytes()
    else:
        assert entry.content is None


def test_every_entry_comes_once_with_its_bytes(client: Client, tree: Path) -> None:
    expected = host_paths(tree)
    seen = {""}
    links: dict[bytes, set[str]] = {}
    for entry in client.tree("tree", ""):
        assert entry.path not in seen
        assert os.path.dirname(entry.path) in seen  # parents come before what is in them
        seen.add(entry.path)
        if os.geteuid() == 0:  # who may read everything
            assert entry.error is None
        require_entry(entry, tree / entry.path, expected[entry.path])
        if entry.link is not None:
            links.setdefault(entry.link, set()).add(entry.path)
    assert seen - {""} == expected.keys()
    assert [*links.values()] == [{"odd/sparse", "odd/sparse, again"}]


@pytest.mark.parametrize("size", [128 << 10, 8 << 20])
def test_pages_of_any_size(client: Client, tree: Path, size: int) -> None:
    expected = host_paths(tree)
    buffer = memoryview(bytearray(size))
    after, count = None, 0
    while True:
        call = calls.tree("tree", "/", buffer, TreePage.from_wire, after=after)
        page = client.call(call)
        count += len(page.entries)
        for entry in page.entries:
            if entry.content is not None:
                assert entry.content == (tree / entry.path).read_bytes()
        after = page.next
        if after is None:
            break
    assert count == len(expected)


def test_a_tree_begins_anywhere(client: Client, tree: Path) -> None:
    paths = {entry.path for entry in client.tree("tree", "odd")}
    assert paths == host_paths(tree / "odd").keys()
    with pytest.raises(RemoteError) as refused:
        list(client.tree("tree", "odd/sparse"))
    assert refused.value.code == "ENOTDIR"
    with pytest.raises(FileNotFoundError):
        list(client.tree("tree", "nothing"))


def test_a_finished_tree_owes_nothing(client: Client) -> None:
    list(client.tree("tree", ""))
    before = held_at_rest(client)
    list(client.tree("tree", ""))
    for entry in client.tree("tree", ""):  # one that is not finished
        assert entry.path
        break
    list(client.tree("tree", "odd"))
    assert_owes_no_more(client, before)


def test_a_token_is_good_once_and_for_its_tree(client: Client) -> None:
    buffer = memoryview(bytearray(128 << 10))

    def page(path: str, after: object = None) -> TreePage:
        call = calls.tree("tree", path, buffer, TreePage.from_wire)
        options = {**call.params[2], "after": after}
        return client.call(call._replace(params=[*call.params[:2], options], needs=None))

    tokens = [page("").next for _ in range(6)]
    for token in tokens[:2]:  # only four are kept
        with pytest.raises(RemoteError) as refused:
            page("", token)
        assert refused.value.code == "CHANGED"
    with pytest.raises(RemoteError) as refused:
        page("odd", tokens[-1])
    assert refused.value.code == "BAD_REQUEST"
    assert page("", tokens[-1]).entries
    with pytest.raises(RemoteError) as refused:
        page("", tokens[-1])
    assert refused.value.code == "CHANGED"
    for size in (1, 9 << 20):
        with pytest.raises(RemoteError) as refused:
            client.call(calls.tree("tree", "", memoryview(bytearray(size)), TreePage.from_wire))
        assert refused.value.code == "BAD_REQUEST"


def walk(client: Client, path: str, **options: object) -> Iterator[dict[str, Any]]:
    after = None
    while True:
        call = Call("walk", ["tree", path, {**options, "after": after}], dict)
        page: dict[str, Any] = client.call(call)
        assert not page["problems"]
        yield from page["entries"]
        after = page["next"]
        if after is None:
            return


@pytest.mark.parametrize("limit", [7, 1000, 10_000])
@pytest.mark.parametrize("attrs", [False, True])
def test_a_walk_gives_every_entry_once(client: Client, tree: Path, attrs: bool, limit: int) -> None:
    expected = host_paths(tree)
    entries = list(walk(client, "", attrs=attrs, limit=limit))
    assert len(entries) == len(expected)
    assert {os.fsdecode(entry["path"]): entry["ino"] for entry in entries} == {
        path: status.st_ino for path, status in expected.items()
    }
    if attrs:
        sizes = {os.fsdecode(entry["path"]): (entry["size"], entry["mode"]) for entry in entries}
        assert sizes == {path: (s.st_size, s.st_mode) for path, s in expected.items()}


def test_a_walk_begins_anywhere(client: Client, tree: Path) -> None:
    paths = {os.fsdecode(entry["path"]) for entry in walk(client, "odd")}
    assert paths == set(host_paths(tree / "odd"))
    with pytest.raises(RemoteError) as refused:
        list(walk(client, "odd/sparse"))
    assert refused.value.code == "ENOTDIR"


def test_a_finished_walk_owes_nothing(client: Client) -> None:
    list(walk(client, "", attrs=True))
    before = held_at_rest(client)
    for _ in range(3):
        list(walk(client, "", attrs=True))
    assert_owes_no_more(client, before)


def test_an_unfinished_walk_ends_with_its_place_or_its_client(client: Client) -> None:
    tokens = []
    for _ in range(6):
        call = Call("walk", ["tree", "", {"limit": 10}], dict)
        page: dict[str, Any] = client.call(call)
        tokens.append(page["next"])
    for token in tokens[:2]:  # only four are kept
        with pytest.raises(RemoteError) as refused:
            client.call(Call("walk", ["tree", "", {"after": token}], dict))
        assert refused.value.code == "CHANGED"
    rest: dict[str, Any] = client.call(Call("walk", ["tree", "", {"after": tokens[-1]}], dict))
    assert rest["entries"]
    with pytest.raises(RemoteError):
        client.call(Call("walk", ["tree", "", {"after": msgpack.packb(1)}], dict))
    assert client.call(calls.stat("tree", "odd")).type == "dir"


def test_files_that_change_meanwhile_are_one_version(virtiofsd: str, tmp_path: Path) -> None:
    """Each version is of one byte alone, and replaced in one write, or by a rename."""
    top = tmp_path / "changing"
    top.mkdir()
    for number in range(40):
        (top / f"{number}").write_bytes(b"a" * 20_000)
    ended = threading.Event()

    def change() -> None:
        versions = 0
        while not ended.is_set():
            for number in range(0, 40, 4):
                versions += 1
                content = bytes([97 + versions % 26]) * (15_000 + versions % 7000)
                if number % 8:
                    (top / ".new").write_bytes(content)
                    (top / ".new").rename(top / f"{number}")
                else:
                    (top / f"{number}").write_bytes(content)
            ended.wait(0.002)

    thread = threading.Thread(target=change)
    with RunningDaemon({"files": top}, tmp_path / "s", virtiofsd) as running:
        thread.start()
        try:
            with Client.connect(running.socket) as client:
                delivered = 0
                for _ in range(10):
                    for entry in client.tree("files", ""):
                        if entry.content and entry.name != ".new":
                            assert entry.stat is not None
                            assert len(entry.content) == entry.stat.size
                            delivered += 1
                            # A file that is written in place is cut first: empty, or all of it.
                            assert len(set(bytes(entry.content))) == 1
                assert delivered >= 300
        finally:
            ended.set()
            thread.join()


def test_a_tree_goes_on_when_its_backend_is_killed(virtiofsd: str, tmp_path: Path) -> None:
    """Each entry comes once, with its bytes, however many backends it takes."""
    top = tmp_path / "killed"
    for folder in range(20):
        (top / f"{folder}" / "below").mkdir(parents=True)
        for number in range(60):
            (top / f"{folder}" / f"{number}").write_bytes(b"%d/%d " % (folder, number) * 500)
            (top / f"{folder}" / "below" / f"{number}").write_bytes(b"%d" % number)
    with (
        RunningDaemon({"files": top}, tmp_path / "s", virtiofsd) as running,
        Client.connect(running.socket) as client,
    ):
        buffer = memoryview(bytearray(256 << 10))
        found: dict[str, bytes | None] = {}
        after, pages = None, 0
        while pages == 0 or after is not None:
            page = client.call(calls.tree("files", "", buffer, TreePage.from_wire, after=after))
            for entry in page.entries:
                assert entry.path not in found
                assert entry.error is None
                found[entry.path] = None if entry.content is None else bytes(entry.content)
            after = page.next
            pages += 1
            if pages % 3 == 0:
                backend = client.status()["exports"][0]["backend"]
                assert backend is not None
                assert backend["pid"] is not None
                os.killpg(backend["pid"], signal.SIGKILL)
        assert pages > 6
        client.stat("files", "")  # the last one may have been killed just now: another one serves
        export = client.status()["exports"][0]
    expected = host_paths(top)
    assert found.keys() == expected.keys()
    for path, content in found.items():
        assert content == ((top / path).read_bytes() if (top / path).is_file() else None)
    assert export["payloads"] == 0


def test_ten_thousand_files(rust_virtiofsd: str, tmp_path: Path) -> None:
    top = tmp_path / "many"
    for folder in range(10):
        (top / str(folder)).mkdir(parents=True)
        for number in range(1000):
            (top / str(folder) / str(number)).write_bytes(b"%d/%d" % (folder, number))
    with (
        RunningDaemon({"files": top}, tmp_path / "s", rust_virtiofsd) as running,
        Client.connect(running.socket) as client,
    ):
        found = {}
        for entry in client.tree("files", ""):
            if entry.stat is not None and entry.stat.type == "file":
                found[entry.path] = entry.content and bytes(entry.content)
        assert len(found) == 10_000
        assert all(content == path.encode() for path, content in found.items())
        assert held_at_rest(client).nodes <= 64
