"""What a hostile daemon, or who may write to the destination, makes ``get -r`` write elsewhere."""

import os
import socket
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest

from tests.attacks.false_daemons import false_daemon, reply
from tests.attacks.people import VICTIM, run_as
from tests.attacks.threats import Who, threat
from tests.fake.tree_pages import columns, page, row
from vuserd.ctl import main
from vuserd.ctl.copying import get_tree

assert get_tree  # before a user who cannot read this interpreter has vuserctl load it

_NUMBERS: Final = (
    "size", "ino", "nlink", "uid", "gid", "rdev", "blocks", "blksize",
    "atime_ns", "mtime_ns", "ctime_ns",
)  # fmt: skip


def entry(name: object, kind: str) -> dict[str, Any]:
    mode = {"dir": 0o40777, "file": 0o104777, "symlink": 0o120777}[kind]
    return dict.fromkeys(_NUMBERS, 4) | {"name": name, "type": kind, "mode": mode}


#: Listings of the top, in each of which a file ends up outside if it is believed.
_TREES: Final[dict[str, list[dict[str, Any]]]] = {
    "a name with a slash": [entry("../../outside/taken", "file")],
    "an absolute name": [entry("OUTSIDE/taken", "file")],
    "the folder above": [entry("..", "dir"), entry("outside", "dir")],
    "bytes with a slash": [entry(b"../../outside/taken", "file")],
    "a link and a folder": [entry("x", "symlink"), entry("x", "dir")],
    "a folder and a link": [entry("x", "dir"), entry("x", "symlink")],
    "a link that is there": [entry("link", "dir")],
    "a link to a file that is there": [entry("taken", "file")],
}


def _page_of(entries: list[dict[str, Any]], outside: Path) -> bytes:
    """Return a page of a tree with these entries, and files in each directory of them."""
    rows = [row(each["name"], each["type"], 4) for each in entries]
    rows += [row(f"{each['name']}/file", size=4) for each in entries if each["type"] == "dir"]
    for each in rows:
        if each["type"] == "file":
            each |= {"offset": 0, "length": 4}
        elif each["type"] == "symlink":
            each["target"] = str(outside)
    return page(columns(rows), b"evil")


@threat(
    "tree that leads out",
    who=Who.FALSE_DAEMON,
    against="a user's files",
    does="lists names with slashes or '..', or a link and a folder of one name",
    promise="get -r writes below its destination alone",
)
@threat(
    "links in the destination",
    who=Who.NEIGHBOUR,
    against="a user's files",
    does="puts links in place of folders and files below the destination of get -r",
    promise="no link below the destination is followed",
)
@pytest.mark.parametrize("by", ["calls", "pages"])
@pytest.mark.parametrize("kind", _TREES)
def test_nothing_is_written_outside(ground: Path, kind: str, by: str) -> None:
    home = ground / "home"
    outside = home / "outside"
    destination = home / "copy" / "top"
    for folder in (home, outside, home / "copy", destination):
        folder.mkdir()
        os.chown(folder, VICTIM, VICTIM)
    (outside / "file").write_text("mine")
    (destination / "link").symlink_to(outside)
    (destination / "taken").symlink_to(outside / "file")
    top = _TREES[kind]
    if kind == "an absolute name":
        top = [entry(f"{outside}/taken", "file")]

    asked: list[str] = []

    def answer(connection: socket.socket, number: int, method: str) -> None:
        nonlocal top
        asked.append(method)
        if method == "stat" and asked.count(method) == 1:
            reply(connection, number, entry("top", "dir"))
        elif method == "stat":  # the client looks whether it copies into what it copies
            connection.sendall(msgpack.packb([1, number, {"code": "ENOENT"}, None]))
        elif method == "readdir":
            reply(connection, number, {"entries": top, "next": None})
            top = [entry("taken", "file"), entry("file", "file")]
        elif method == "readlink":
            reply(connection, number, str(outside))
        elif method == "tree" and by == "calls":
            refusal = {"code": "UNKNOWN_METHOD", "message": "no such method"}
            connection.sendall(msgpack.packb([1, number, refusal, None]))
        elif method == "tree":
            reply(connection, number, _page_of(top, outside))
        else:
            reply(connection, number, b"evil")

    def victim() -> None:
        main.run(["--socket", path, "get", "-r", "x:top", str(home / "copy")])

    with false_daemon(ground, answer) as path:
        assert run_as(VICTIM, victim) == 0
    assert [each.name for each in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "mine"
    assert sorted(each.name for each in home.iterdir()) == ["copy", "outside"]
    if kind == "a link to a file that is there":
        assert (destination / "taken").read_text() == "evil"
    for where, _, files in os.walk(destination):
        for name in files:
            assert os.lstat(os.path.join(where, name)).st_mode & 0o7000 == 0
