"""``get -r`` by pages of a tree, against the fake daemon: what it may not do to the destination."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.fake.rpc_server import FakeDaemon, Node, directory
from tests.fake.tree_pages import columns, page, row
from vuserd.client import Client
from vuserd.ctl.copying import local_tree
from vuserd.ctl.copying.get_tree import get_tree
from vuserd.ctl.copying.how import How
from vuserd.ctl.target import Target
from vuserd.wire.bin_head import encode_bin_response_head
from vuserd.wire.codec import Request


@pytest.fixture(autouse=True)
def _with_trees(fake_daemon: FakeDaemon) -> None:
    fake_daemon.unknown.clear()


def fetch(daemon: FakeDaemon, destination: Path, how: How = How(recursive=True)) -> int:  # noqa: B008
    with Client.connect(daemon.address) as client:
        return get_tree(client, Target("kernels", "/"), str(destination), how)


def sends(daemon: FakeDaemon, content: bytes) -> None:
    def answer(request: Request) -> bytes:
        return encode_bin_response_head(request.msgid, len(content)) + content

    daemon.raw["tree"] = answer


def asked(daemon: FakeDaemon) -> set[str]:
    return {request.method for request in daemon.requests}


def opened() -> list[str]:
    """Return what this process has open."""
    names = os.listdir("/proc/self/fd")
    return [os.path.realpath(f"/proc/self/fd/{name}") for name in names]


def paths(top: Path) -> set[str]:
    return {str(path.relative_to(top)) for path in top.rglob("*")}


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_small_files_take_no_call_of_their_own(
    fake_daemon: FakeDaemon, tmp_path: Path, limit: int
) -> None:
    fake_daemon.tree_limit = limit
    fake_daemon.root = directory(
        **{
            f"d{n}": directory(**{f"{m}": Node(content=b"%d" % m) for m in range(5)})
            for n in range(9)
        }
    )
    assert fetch(fake_daemon, tmp_path / "copy") == 0
    assert len(paths(tmp_path / "copy")) == 54
    assert (tmp_path / "copy" / "d8" / "3").read_bytes() == b"3"
    assert not asked(fake_daemon) & {"read", "open", "readdir", "readlink"}


def test_many_directories_are_not_open_at_once(
    fake_daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vuserd.ctl.copying.tree_by_pages._MOST_OPEN", 2)
    fake_daemon.root = directory(
        **{f"{n}": directory(a=directory(b=Node()), c=Node(content=b"c")) for n in range(20)}
    )
    assert fetch(fake_daemon, tmp_path / "copy") == 0
    assert len(paths(tmp_path / "copy")) == 80
    assert not [each for each in opened() if each.startswith(str(tmp_path / "copy"))]


def test_what_comes_before_its_directory_is_told(
    fake_daemon: FakeDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row("d/a", size=1, offset=0, length=1), row("d", "dir"), row("b")]
    rows[2] |= {"offset": 0, "length": 0}
    sends(fake_daemon, page(columns(rows), b"x"))
    assert fetch(fake_daemon, tmp_path / "copy") == 1
    assert capsys.readouterr().err == "vuserctl: kernels:/d/a: comes before its directory\n"
    assert paths(tmp_path / "copy") == {"d", "b"}


def test_a_link_and_then_a_directory_of_its_name_leads_nowhere(
    fake_daemon: FakeDaemon, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    rows = [
        row("x", "symlink", target=str(outside)),
        row("x", "dir"),
        row("x/evil", offset=0, length=0),
    ]
    sends(fake_daemon, page(columns(rows)))
    assert fetch(fake_daemon, tmp_path / "copy") == 1
    assert not any(outside.iterdir())
    assert paths(tmp_path / "copy") == {"x"}


def test_each_failure_is_told_and_the_rest_comes(
    fake_daemon: FakeDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        row("gone", "unknown", error="ENOENT"),
        row("no", error="EACCES"),
        row("closed", "dir"),
        row("empty", "symlink", target=""),
        row("far", offset=0, length=0, mtime_ns=(1 << 63) - 1),
        row("what", "whiteout"),
        row("pipe", "fifo"),
        row("good", size=4, offset=0, length=4),
    ]
    problems = [
        {"path": "closed", "code": "EACCES", "message": "permission denied"},
        {"path": "", "code": "EIO", "message": "input/output error"},
    ]
    sends(fake_daemon, page(columns(rows), b"good", problems))
    assert fetch(fake_daemon, tmp_path / "copy") == 1
    said = capsys.readouterr().err.splitlines()
    assert "vuserctl: kernels:/gone: no such file or directory (ENOENT)" in said
    assert "vuserctl: kernels:/no: permission denied (EACCES)" in said
    assert "vuserctl: kernels:/closed: permission denied (EACCES)" in said
    assert "vuserctl: kernels:/: input/output error (EIO)" in said
    assert "vuserctl: kernels:/pipe: skipped, a fifo" in said
    assert "vuserctl: kernels:/what: of a type that is not known, 'whiteout'" in said
    assert any("kernels:/empty: a symlink to ''" in line for line in said)
    assert (tmp_path / "copy" / "good").read_bytes() == b"good"
    assert not {"gone", "no", "empty", "what", "pipe"} & paths(tmp_path / "copy")
    assert not [name for name in os.listdir(tmp_path / "copy") if name.startswith(".")]


def test_a_file_that_changed_or_is_large_is_fetched_by_itself(
    fake_daemon: FakeDaemon, tmp_path: Path
) -> None:
    fake_daemon.root = directory(changed=Node(content=b"at last"), large=Node(content=b"l" * 100))
    rows = [row("changed", size=3, error="CHANGED"), row("large", size=100)]
    sends(fake_daemon, page(columns(rows)))
    assert fetch(fake_daemon, tmp_path / "copy") == 0
    assert (tmp_path / "copy" / "changed").read_bytes() == b"at last"
    assert (tmp_path / "copy" / "large").read_bytes() == b"l" * 100


LINK = bytes(12)


def linked(path: str, **fields: Any) -> dict[str, Any]:
    return row(path, size=2, offset=0, length=2, link=LINK, nlink=3) | fields


def test_names_of_one_file(fake_daemon: FakeDaemon, tmp_path: Path) -> None:
    rows = [row("d", "dir"), linked("a"), linked("d/b"), linked("c"), linked("e")]
    sends(fake_daemon, page(columns(rows), b"xy"))
    copy = tmp_path / "copy"
    assert fetch(fake_daemon, copy) == 0
    first = (copy / "a").stat()
    assert (copy / "d" / "b").stat().st_ino == (copy / "c").stat().st_ino == first.st_ino
    # Of three names there are no more than three: what comes then is another file.
    assert (copy / "e").stat().st_ino != first.st_ino
    assert (copy / "e").read_bytes() == b"xy"


@pytest.mark.parametrize("spoil", ["another version", "replaced", "gone", "no links"])
def test_names_of_what_is_one_file_no_more(
    fake_daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    copy = tmp_path / "copy"
    rows = [linked("a"), linked("b", mtime_ns=5 if spoil == "another version" else 0)]
    put_link = local_tree.LocalTree.put_link

    def spoiled(self: local_tree.LocalTree, *arguments: Any) -> bool:
        if spoil == "replaced":
            (copy / "other").write_bytes(b"secret")
            (copy / "other").rename(copy / "a")
        elif spoil == "gone":
            (copy / "a").unlink()
        elif spoil == "no links":
            monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError(1, "")))
        return put_link(self, *arguments)

    monkeypatch.setattr(local_tree.LocalTree, "put_link", spoiled)
    sends(fake_daemon, page(columns(rows), b"xy"))
    assert fetch(fake_daemon, copy) == 0
    assert (copy / "b").read_bytes() == b"xy"
    assert (copy / "b").stat().st_nlink == 1


def test_the_destination_stays_the_one_that_was_opened(
    fake_daemon: FakeDaemon, tmp_path: Path
) -> None:
    copy, moved, outside = tmp_path / "copy", tmp_path / "moved", tmp_path / "outside"
    outside.mkdir()

    def move(request: Request) -> None:
        if request.method == "tree" and copy.is_dir() and not copy.is_symlink():
            copy.rename(moved)
            copy.symlink_to(outside)

    fake_daemon.root = directory(a=Node(content=b"a"), b=directory(c=Node(content=b"c")))
    fake_daemon.before = move
    assert fetch(fake_daemon, copy) == 0
    assert paths(moved) == {"a", "b", "b/c"}
    assert not any(outside.iterdir())


def test_no_half_of_a_file_is_left(
    fake_daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_daemon.root = directory(a=Node(content=b"a"), b=Node(content=b"b"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    assert fetch(fake_daemon, tmp_path / "copy") == 1
    assert paths(tmp_path / "copy") == set()


def test_an_update_of_what_is_there_asks_for_no_tree(
    fake_daemon: FakeDaemon, tmp_path: Path
) -> None:
    fake_daemon.root = directory(a=Node(content=b"a"))
    how = How(recursive=True, update=True)
    assert fetch(fake_daemon, tmp_path / "copy", how) == 0
    assert "tree" in asked(fake_daemon)
    fake_daemon.requests.clear()
    assert fetch(fake_daemon, tmp_path / "copy", how) == 0
    assert not asked(fake_daemon) & {"tree", "read"}
