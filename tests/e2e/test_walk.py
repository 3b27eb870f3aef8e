"""Walks of a tree in pages are the same as os.walk, and leave nothing behind."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.e2e.host_tree import make_tree
from tests.running import RunningDaemon, open_descriptors
from vuserd.client import Client, calls
from vuserd.client.calls import Call
from vuserd.client.errors import RemoteError


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("walk")
    make_tree(folder)
    return folder


@pytest.fixture(scope="module")
def client(
    tree: Path, virtiofsd: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    socket = tmp_path_factory.mktemp("walk-daemon") / "s"
    with RunningDaemon({"tree": tree}, socket, virtiofsd), Client.connect(str(socket)) as client:
        yield client


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


def host_paths(top: Path) -> dict[bytes, os.stat_result]:
    found = {}
    for folder, directories, files in os.walk(os.fsencode(top)):
        for name in directories + files:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, os.fsencode(top))] = os.lstat(path)
    return found


def as_bytes(name: str | bytes) -> bytes:
    return name if isinstance(name, bytes) else name.encode()


@pytest.mark.parametrize("limit", [7, 1000, 10_000])
@pytest.mark.parametrize("attrs", [False, True])
def test_a_walk_gives_every_entry_once(client: Client, tree: Path, attrs: bool, limit: int) -> None:
    expected = host_paths(tree)
    entries = list(walk(client, "", attrs=attrs, limit=limit))
    assert len(entries) == len(expected)
    assert {as_bytes(entry["path"]): entry["ino"] for entry in entries} == {
        path: status.st_ino for path, status in expected.items()
    }
    if attrs:
        sizes = {as_bytes(entry["path"]): (entry["size"], entry["mode"]) for entry in entries}
        assert sizes == {path: (s.st_size, s.st_mode) for path, s in expected.items()}


def test_a_walk_begins_anywhere(client: Client, tree: Path) -> None:
    paths = {as_bytes(entry["path"]) for entry in walk(client, "odd")}
    assert paths == set(host_paths(tree / "odd"))
    with pytest.raises(RemoteError) as refused:
        list(walk(client, "odd/sparse"))
    assert refused.value.code == "ENOTDIR"


def test_a_finished_walk_owes_nothing(client: Client) -> None:
    list(walk(client, "", attrs=True))
    before = client.status()["exports"][0]
    assert before["backend"] is not None
    backend = before["backend"]["pid"]
    assert backend is not None
    opened = open_descriptors(backend)
    for _ in range(3):
        list(walk(client, "", attrs=True))
    after = client.status()["exports"][0]
    assert after["nodes"] == before["nodes"]
    assert after["lookups"] == before["lookups"]
    assert abs(open_descriptors(backend) - opened) <= 64  # forgets go in batches


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
