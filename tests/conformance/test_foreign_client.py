"""A MessagePack-RPC client that is not ours: pynvim's session, over the daemon's unix socket."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pynvim.msgpack_rpc import MsgpackStream, Session
from pynvim.msgpack_rpc.async_session import AsyncSession
from pynvim.msgpack_rpc.event_loop import EventLoop

from tests.running import RunningDaemon


class RefusedError(Exception):
    """The error of a response, as pynvim hands it out."""


@pytest.fixture
def session(daemon: RunningDaemon) -> Iterator[Any]:
    """Yield pynvim's synchronous session, connected to a daemon."""
    loop = EventLoop("socket", daemon.socket)
    session: Any = Session(AsyncSession(MsgpackStream(loop)))
    session.error_wrapper = RefusedError
    yield session
    # pynvim ends with its process and closes nothing before that: one turn of its loop does.
    loop._transport.close()
    loop._loop.call_soon(loop._loop.stop)
    loop._loop.run_forever()
    session.close()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return tmp_path / "files"


def test_it_learns_what_there_is(session: Any) -> None:
    info = session.request("api_info")
    assert info["api_level"] >= info["api_compatible"] >= 1
    methods = {method["name"]: method for method in info["methods"]}
    assert set(methods) >= {
        "api_info",
        "exports",
        "stat",
        "readlink",
        "readdir",
        "read",
        "statfs",
        "status",
    }
    assert [param["name"] for param in methods["read"]["params"]] == [
        "export",
        "path",
        "offset",
        "length",
        "options",
    ]
    assert {"ENOENT", "BAD_REQUEST", "CHANGED"} <= set(info["errors"])


def test_it_lists_stats_and_reads(session: Any, files: Path) -> None:
    (files / "boot").mkdir()
    content = os.urandom(300_000)
    (files / "boot" / "Image").write_bytes(content)
    (files / "boot" / "board.dtb").write_bytes(b"\xd0\x0d\xfe\xed")

    page = session.request("readdir", "files", "boot", {"attrs": True, "limit": 10})
    assert page["next"] is None
    assert {entry["name"]: entry["size"] for entry in page["entries"]} == {
        "Image": 300_000,
        "board.dtb": 4,
    }
    status = session.request("stat", "files", "/boot/Image")
    assert (status["type"], status["size"]) == ("file", 300_000)
    assert session.request("read", "files", "boot/Image", 0, 300_000) == content
    assert session.request("read", "files", "boot/Image", 299_990, 100) == content[-10:]


@pytest.mark.parametrize("options", [{}, [], None])
def test_no_options_are_an_empty_map_or_array_or_nil(
    session: Any, files: Path, options: object
) -> None:
    """An empty table of Lua's is an array to its encoders."""
    (files / "Image").write_bytes(b"kernel")
    (files / "link").symlink_to("Image")
    methods = {method["name"]: method for method in session.request("api_info")["methods"]}
    calls: dict[str, tuple[object, ...]] = {
        "stat": ("files", "Image"),
        "readdir": ("files", "/"),
        "walk": ("files", "/"),
        "read": ("files", "Image", 0, 10),
        "readlink": ("files", "link"),
    }
    for name, params in calls.items():
        assert methods[name]["params"][-1]["name"] == "options"
        assert session.request(name, *params, options) == session.request(name, *params)


def test_it_pages_through_a_directory(session: Any, files: Path) -> None:
    names = {f"file-{number}" for number in range(57)}
    for name in names:
        (files / name).touch()
    listed: list[str] = []
    after = None
    while True:
        page = session.request("readdir", "files", "", {"limit": 10, "after": after})
        assert len(page["entries"]) <= 10
        listed += [entry["name"] for entry in page["entries"]]
        after = page["next"]
        if after is None:
            break
    assert len(listed) == 57
    assert set(listed) == names


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (("stat", "files", "missing"), "ENOENT"),
        (("stat", "nowhere", "/"), "UNKNOWN_EXPORT"),
        (("no_such_method",), "UNKNOWN_METHOD"),
        (("stat", "files"), "BAD_REQUEST"),
        (("stat", "files", 7), "BAD_REQUEST"),
        (("stat", "files", "/", {"fellow": True}), "BAD_REQUEST"),
        (("stat", "files", "/", ["follow"]), "BAD_REQUEST"),
        (("stat", "files", "/", [{}]), "BAD_REQUEST"),
        (("stat", "files", "/", ""), "BAD_REQUEST"),
        (("stat", "files", []), "BAD_REQUEST"),
        (("stat", [], "files", "/"), "BAD_REQUEST"),
        (("read", "files", "/", 0, 10), "EISDIR"),
        (("read", "files", "/", -1, 10), "BAD_REQUEST"),
        (("read", "files", "/", 0, 1 << 30), "TOO_LARGE"),
    ],
)
def test_it_gets_typed_errors(session: Any, call: tuple[Any, ...], code: str) -> None:
    with pytest.raises(RefusedError) as refused:
        session.request(*call)
    error = refused.value.args[0]
    assert error["code"] == code
    assert error["message"]
