"""Pages after the first are short while other clients want anything, and nothing is left out."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import pytest

from tests.e2e.attacks import connected, one_message, packed
from tests.running import RunningDaemon

FILES = 2_500
FIRST = 10
NAMES = {f"{number:04}" for number in range(FILES)}
#: Pages that are asked for at most, until one is as long, or short, as it has to become.
MOST_ASKED = 1_000

#: A method, its options, and how many entries a page has beside others.
KINDS = [
    pytest.param("readdir", {"limit": 10_000}, 2_000, id="names"),
    pytest.param("readdir", {"limit": 10_000, "attrs": True}, 500, id="attributes"),
    pytest.param("readdir", {"limit": 10_000, "columns": True}, 2_000, id="columns"),
    pytest.param("walk", {"limit": 10_000, "attrs": True}, 500, id="walk"),
    pytest.param("tree", {"size": 4 << 20}, 64, id="tree"),
]


@pytest.fixture(scope="module")
def daemon(virtiofsd: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    folder = tmp_path_factory.mktemp("files")
    for name in NAMES:
        (folder / name).write_text(name)
    path = tmp_path_factory.mktemp("daemon") / "s"
    with RunningDaemon({"files": folder}, path, virtiofsd) as daemon:
        yield daemon


def ask(client: socket.socket, method: str, options: dict[str, Any]) -> Any:
    client.sendall(packed([0, 1, method, ["files", "/", options]]))
    _, _, error, result = one_message(client)
    assert error is None
    return result


def page(
    client: socket.socket, method: str, options: dict[str, Any], after: bytes | None = None
) -> tuple[list[str], bytes | None]:
    """Return the names of a page, and the token of the next one."""
    result = ask(client, method, {**options, "after": after})
    if method == "tree":
        [length] = struct.unpack_from(">I", result)
        index = msgpack.unpackb(result[4 : 4 + length])
        return index["entries"]["path"], index["next"]
    entries, following = result["entries"], result["next"]
    if "columns" in options:
        return entries["name"], following
    return [entry["path" if method == "walk" else "name"] for entry in entries], following


@contextmanager
def others(path: str) -> Iterator[None]:
    """Have another client want something again and again."""
    is_over = threading.Event()

    def look() -> None:
        with connected(path) as client:
            while not is_over.is_set():
                ask(client, "stat", {})

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@pytest.mark.parametrize(("method", "options", "most"), KINDS)
def test_pages_after_the_first_are_short_beside_others(
    daemon: RunningDaemon, method: str, options: dict[str, Any], most: int
) -> None:
    def first_two() -> tuple[list[str], bytes | None]:
        """Return the names of two pages, the first of which is to have ten."""
        first, after = page(client, method, options | {"limit": FIRST})
        assert len(first) == FIRST
        second, after = page(client, method, options, after)
        return first + second, after

    assert FIRST + most < FILES
    with connected(daemon.socket) as client:
        for _ in range(MOST_ASKED):  # until it is alone: who looked whether the daemon is there
            names, after = first_two()
            if after is None:
                break
        assert set(names) == NAMES
        with others(daemon.socket):
            for _ in range(MOST_ASKED):  # until the others have begun
                names, after = first_two()
                if after is not None:
                    break
            assert len(names) == FIRST + most
            while after is not None:
                more, after = page(client, method, options, after)
                names += more
        assert sorted(names) == sorted(NAMES)


def test_a_first_page_beside_others_is_as_long_as_was_asked_for(daemon: RunningDaemon) -> None:
    with connected(daemon.socket) as client, others(daemon.socket):
        for method, options in (("readdir", {"attrs": True}), ("walk", {}), ("tree", {})):
            for _ in range(20):
                names, _ = page(client, method, {"limit": 2_400, **options})
                assert len(names) == 2_400
