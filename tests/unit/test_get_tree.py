"""``get -r`` against the fake daemon: what a daemon may not do to the destination, and races.

It goes by pages of a tree, and by listings and reads where a daemon has no pages.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.fake.rpc_server import FakeDaemon, FaultError, Node, directory
from tests.fake.tree_pages import columns, page, row
from tests.unit.conftest import Start
from vuserd.client import BadReply, Client
from vuserd.ctl.copying import local_tree
from vuserd.ctl.copying.get_tree import get_tree
from vuserd.ctl.copying.how import How
from vuserd.ctl.target import Target
from vuserd.wire.bin_head import encode_bin_response_head
from vuserd.wire.codec import Request

_YEAR_584554 = (1 << 64) - 1
#: What all names of a file have in common.
LINK = bytes(12)


@pytest.fixture
def _pages(fake_daemon: FakeDaemon) -> None:
    """Have the daemon know pages of trees."""
    fake_daemon.unknown.clear()


@pytest.fixture(params=["pages", "calls"])
def _either(request: pytest.FixtureRequest, fake_daemon: FakeDaemon) -> None:
    """Have the daemon know pages of trees, or not."""
    fake_daemon.unknown = {"tree"} if request.param == "calls" else set()


by_pages = pytest.mark.usefixtures("_pages")
by_either = pytest.mark.usefixtures("_either")


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


def listed(name: str, kind: str = "file", **attributes: object) -> dict[str, object]:
    """Return an entry of a listing, of an ordinary empty file but for some attributes."""
    known = kind if kind in ("file", "dir", "symlink") else "file"
    return {"name": name, "ino": 7, **Node(known).stat(), "type": kind, "size": 0, **attributes}


def linked(path: str, **fields: Any) -> dict[str, Any]:
    return row(path, size=2, offset=0, length=2, link=LINK, nlink=3) | fields


@by_either
def test_the_destination_stays_the_one_that_was_opened(
    fake_daemon: FakeDaemon, tmp_path: Path
) -> None:
    """It is moved away and replaced by a link while files come: they go where it is now."""
    copy, moved, outside = tmp_path / "copy", tmp_path / "moved", tmp_path / "outside"
    outside.mkdir()

    def move(request: Request) -> None:
        if request.method in ("tree", "read") and copy.is_dir() and not copy.is_symlink():
            copy.rename(moved)
            copy.symlink_to(outside)

    fake_daemon.root = directory(a=Node(content=b"a"), b=directory(c=Node(content=b"c")))
    fake_daemon.before = move
    assert fetch(fake_daemon, copy) == 0
    assert paths(moved) == {"a", "b", "b/c"}
    assert not any(outside.iterdir())


@by_either
def test_many_pages_and_files(fake_daemon: FakeDaemon, tmp_path: Path) -> None:
    fake_daemon.root = directory(**{f"f{n}": Node(content=b"%d" % n) for n in range(2500)})
    before = len(os.listdir("/proc/self/fd"))
    assert fetch(fake_daemon, tmp_path / "copy") == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == {
        f"f{n}": b"%d" % n for n in range(2500)
    }
    assert abs(len(os.listdir("/proc/self/fd")) - before) <= 1  # the daemon's end of the connection


@by_either
@pytest.mark.parametrize("target", ["", "a\0b"])
def test_a_link_to_what_no_link_can_lead_to(
    fake_daemon: FakeDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    fake_daemon.root = directory(link=Node("symlink", target.encode()), late=Node(content=b"late"))
    assert fetch(fake_daemon, tmp_path / "copy") == 1
    assert "kernels:/link: a symlink to" in capsys.readouterr().err
    assert paths(tmp_path / "copy") == {"late"}


@by_either
def test_a_directory_that_only_looks_like_ours_is_fetched(
    fake_daemon: FakeDaemon, tmp_path: Path
) -> None:
    """Its inode number and its times are those of one that this run has made: chance, or images."""
    inside = directory(file=Node(content=b"inside"))
    inside.ctime_ns = (1 << 63) - 1  # after whatever was made
    fake_daemon.root = directory(a=inside)
    (tmp_path / "copy").mkdir()
    ino = (tmp_path / "copy").stat().st_ino

    class Twin(Node):
        def stat(self) -> dict[str, object]:
            return super().stat() | {"ino": ino}

    twin = Twin("dir", children=inside.children)
    fake_daemon.root.children[b"b"] = twin
    assert fetch(fake_daemon, tmp_path / "copy") == 0
    assert paths(tmp_path / "copy") == {"a", "a/file", "b", "b/file"}


@by_either
def test_no_half_of_a_file_is_left(
    fake_daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_daemon.root = directory(a=Node(content=b"a"), b=Node(content=b"b"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    assert fetch(fake_daemon, tmp_path / "copy") == 1
    assert paths(tmp_path / "copy") == set()


@by_pages
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


@by_pages
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


@by_pages
def test_what_comes_before_its_directory_is_told(
    fake_daemon: FakeDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row("d/a", size=1, offset=0, length=1), row("d", "dir"), row("b")]
    rows[2] |= {"offset": 0, "length": 0}
    sends(fake_daemon, page(columns(rows), b"x"))
    assert fetch(fake_daemon, tmp_path / "copy") == 1
    assert capsys.readouterr().err == "vuserctl: kernels:/d/a: comes before its directory\n"
    assert paths(tmp_path / "copy") == {"d", "b"}


@by_pages
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


@by_pages
def test_each_failure_is_told_and_the_rest_comes(
    fake_daemon: FakeDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        row("gone", "unknown", error="ENOENT"),
        row("no", error="EACCES"),
        row("closed", "dir"),
        row("replaced", "dir"),
        row("empty", "symlink", target=""),
        row("far", offset=0, length=0, mtime_ns=(1 << 63) - 1),
        row("what", "whiteout"),
        row("pipe", "fifo"),
        row("good", size=4, offset=0, length=4),
    ]
    problems = [
        {"path": "closed", "code": "EACCES", "message": "permission denied"},
        {"path": "replaced", "code": "CHANGED", "message": "the directory was replaced"},
        {"path": "", "code": "EIO", "message": "input/output error"},
    ]
    sends(fake_daemon, page(columns(rows), b"good", problems))
    assert fetch(fake_daemon, tmp_path / "copy") == 1
    said = capsys.readouterr().err.splitlines()
    assert "vuserctl: kernels:/gone: no such file or directory (ENOENT)" in said
    assert "vuserctl: kernels:/no: permission denied (EACCES)" in said
    assert "vuserctl: kernels:/closed: permission denied (EACCES)" in said
    assert "vuserctl: kernels:/replaced: the directory was replaced (CHANGED)" in said
    assert "vuserctl: kernels:/: input/output error (EIO)" in said
    assert "vuserctl: kernels:/pipe: skipped, a fifo" in said
    assert "vuserctl: kernels:/what: of a type that is not known, 'whiteout'" in said
    assert any("kernels:/empty: a symlink to ''" in line for line in said)
    assert (tmp_path / "copy" / "good").read_bytes() == b"good"
    assert not {"gone", "no", "empty", "what", "pipe"} & paths(tmp_path / "copy")
    assert not [name for name in os.listdir(tmp_path / "copy") if name.startswith(".")]


@by_pages
def test_a_file_that_changed_or_is_large_is_fetched_by_itself(
    fake_daemon: FakeDaemon, tmp_path: Path
) -> None:
    fake_daemon.root = directory(changed=Node(content=b"at last"), large=Node(content=b"l" * 100))
    rows = [row("changed", size=3, error="CHANGED"), row("large", size=100)]
    sends(fake_daemon, page(columns(rows)))
    assert fetch(fake_daemon, tmp_path / "copy") == 0
    assert (tmp_path / "copy" / "changed").read_bytes() == b"at last"
    assert (tmp_path / "copy" / "large").read_bytes() == b"l" * 100


@by_pages
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


@by_pages
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


@by_pages
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


@pytest.mark.parametrize("name", [b"", b".", b"..", b"../evil", b"/evil", b"a/b", b"a\0b"])
@pytest.mark.parametrize("kind", ["file", "dir", "symlink"])
def test_a_name_that_leads_elsewhere_is_refused(
    fake_daemon: FakeDaemon,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: bytes,
    kind: str,
) -> None:
    root = directory(good=Node(content=b"good"))
    root.children[name] = Node(kind, b"evil", {b"evil": Node()} if kind == "dir" else {})
    fake_daemon.root = root
    (tmp_path / "in").mkdir()
    assert fetch(fake_daemon, tmp_path / "in" / "copy") == 1
    assert "which is no name of a file" in capsys.readouterr().err
    assert paths(tmp_path / "in") == {"copy", "copy/good"}


def test_a_symlink_and_then_a_directory_of_its_name_leads_nowhere(
    fake_daemon: FakeDaemon, tmp_path: Path
) -> None:
    """A daemon that gives one name twice cannot have its own link followed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    link = {"name": "x", "type": "symlink", "ino": 1} | Node("symlink", b"x").stat()
    folder = {"name": "x", "type": "dir", "ino": 2} | directory().stat()
    pages = [[link], [folder], [{"name": "evil", "type": "file", "ino": 3} | Node().stat()]]

    def answer(request: Request) -> None:
        if request.method == "readdir":
            page = pages.pop(0) if pages else []
            following = len(pages) if len(pages) == 2 else None
            fake_daemon.results["readdir"] = {"entries": page, "next": following}

    fake_daemon.before = answer
    fake_daemon.results["readlink"] = str(outside)
    assert fetch(fake_daemon, tmp_path / "copy") == 1
    assert not any(outside.iterdir())


@pytest.mark.parametrize("content", [b"", b"shorter", b"longer" * 100_000])
def test_a_file_of_another_size_than_was_listed_comes_whole(
    fake_daemon: FakeDaemon, tmp_path: Path, content: bytes
) -> None:
    node = Node(content=b"as it was listed")

    def change(request: Request) -> None:
        if request.method == "read":
            node.content = content

    fake_daemon.root = directory(file=node, other=Node(content=b"other"))
    fake_daemon.before = change
    assert fetch(fake_daemon, tmp_path / "copy") == 0
    assert (tmp_path / "copy" / "file").read_bytes() == content
    assert (tmp_path / "copy" / "other").read_bytes() == b"other"


def test_a_listing_without_attributes_is_asked_for_more(
    fake_daemon: FakeDaemon, tmp_path: Path
) -> None:
    fake_daemon.results["readdir"] = {
        "entries": [{"name": "image", "type": "file", "ino": 1}],
        "next": None,
    }
    assert fetch(fake_daemon, tmp_path / "copy") == 0
    assert (tmp_path / "copy" / "image").stat().st_size > 0


def test_what_goes_meanwhile_is_told_and_the_rest_comes(
    fake_daemon: FakeDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(request: Request) -> None:
        if request.method in ("read", "open", "readlink") and "gone" in request.params[1]:
            raise FaultError("ENOENT", "no such file or directory", errno=2)

    large = bytes((1 << 20) + 1)
    fake_daemon.root = directory(
        a=Node(content=b"a"),
        gone=Node(content=b"gone"),
        gone_large=Node(content=large),
        gone_link=Node("symlink", b"a"),
        large=Node(content=large),
        z=Node(content=b"z"),
    )
    original = fake_daemon._answer

    def answer(request: Request) -> tuple[bytes, list[int]]:
        try:
            gone(request)
        except FaultError:
            request = request._replace(params=["kernels", "nowhere", *request.params[2:]])
        return original(request)

    fake_daemon._answer = answer  # type: ignore[method-assign]
    assert fetch(fake_daemon, tmp_path / "copy") == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert all("gone" in line and "(ENOENT)" in line for line in said)
    assert paths(tmp_path / "copy") == {"a", "large", "z"}


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (listed("odd", "unknown"), "of a type that is not known, 'unknown'"),
        (listed("odd", "whiteout"), "of a type that is not known, 'whiteout'"),
        (listed("odd", "symlink"), "a symlink to '', which cannot be made"),
        (listed("odd", size=(1 << 64) - 2), ""),
        (listed("odd" * 100), "file name too long (ENAMETOOLONG)"),
        (listed("odd" * 100, "dir"), "file name too long (ENAMETOOLONG)"),
        (listed("good"), "listed twice, and fetched once"),
        (listed("good", "dir"), "listed twice, and fetched once"),
    ],
)
def test_an_odd_entry_is_told_and_the_rest_comes(
    fake_daemon: FakeDaemon,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    odd: dict[str, object],
    words: str,
) -> None:
    fake_daemon.root = directory(**{"good": Node(), "late": Node(), "odd" * 100: Node()})
    fake_daemon.results["readdir"] = {
        "entries": [listed("good"), odd, listed("late")],
        "next": None,
    }
    fake_daemon.results["readlink"] = ""
    assert fetch(fake_daemon, tmp_path / "copy") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(odd["name"]) in said
    assert words in said
    assert paths(tmp_path / "copy") == {"good", "late"}


@pytest.mark.parametrize(
    "odd", [{"size": -5}, {"mode": -1}, {"mode": 1 << 32}, {"nlink": 1 << 32}, {"uid": -1}]
)
def test_a_listing_with_numbers_that_no_file_has_is_refused(
    fake_daemon: FakeDaemon, tmp_path: Path, odd: dict[str, int]
) -> None:
    fake_daemon.root = directory(good=Node())
    entries = [listed("good"), listed("odd") | odd]
    fake_daemon.results["readdir"] = {"entries": entries, "next": None}
    with pytest.raises(BadReply, match="a number that no file can have"):
        fetch(fake_daemon, tmp_path / "copy")
    assert paths(tmp_path / "copy") == set()


@pytest.mark.parametrize("kind", ["file", "dir"])
@pytest.mark.parametrize(
    ("atime_ns", "mtime_ns"),
    [(-1, -1_000_000_001), (_YEAR_584554, _YEAR_584554), (-(1 << 63), (1 << 63) - 1)],
)
@pytest.mark.parametrize("mode", [0o100644, 0, (1 << 32) - 1])
def test_odd_times_and_modes(
    fake_daemon: FakeDaemon,
    tmp_path: Path,
    kind: str,
    atime_ns: int,
    mtime_ns: int,
    mode: int,
) -> None:
    """Whatever a file can have is what the file system makes of it, and no traceback."""
    odd = listed("odd", kind, atime_ns=atime_ns, mtime_ns=mtime_ns, mode=mode)
    pages = [[odd, listed("late")]]

    def answer(request: Request) -> None:
        if request.method == "readdir":
            page = pages.pop() if pages else []
            fake_daemon.results["readdir"] = {"entries": page, "next": None}

    fake_daemon.before = answer
    fake_daemon.root = directory(odd=Node(), late=Node())
    assert fetch(fake_daemon, tmp_path / "copy") == 0
    assert paths(tmp_path / "copy") == {"odd", "late"}
    (tmp_path / "copy" / "odd").chmod(0o700)


@by_either
def test_a_full_disk_takes_what_is_said(
    fake_daemon: FakeDaemon, start: Start, tmp_path: Path
) -> None:
    """It is no fault of the files, and ends it."""
    fake_daemon.root = directory(**{f"f{n}": Node(content=b"%d" % n) for n in range(1000)})
    with open("/dev/full", "wb") as full:
        command = ("get", "-rv", "kernels:", str(tmp_path / "copy"))
        process = start(*command, stdout=full, stderr=subprocess.PIPE)
    said = b"vuserctl: standard output: no space left on device (ENOSPC)\n"
    assert process.communicate()[1] == said
    assert process.returncode == 1
    assert len(paths(tmp_path / "copy")) < 1000
