"""Archives byte by byte, and what a daemon may say of a tree."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.fake.rpc_server import FakeDaemon, FaultError, Node, directory
from tests.fake.tree_pages import below
from tests.unit.conftest import Run, Start
from vuserd.client import BadReply, Client, RemoteError
from vuserd.client.archive import parts
from vuserd.client.archive.looks import Exclusion
from vuserd.client.archive.members import Look, Member, Plan
from vuserd.client.archive.newc import Newc
from vuserd.client.archive.parts import content_of
from vuserd.client.archive.tar import Tar
from vuserd.client.files.tree_page import TreeEntry
from vuserd.client.records import Stat


def stat(kind: str = "file", **fields: Any) -> Stat:
    formats = {"file": 0o100644, "dir": 0o40755, "symlink": 0o120777, "fifo": 0o10600}
    bits = formats.get(kind, 0o60600)
    like = Stat(kind, bits, 0, 5, 1, 0, 0, 0, 0, 4096, 0, 0, 0)
    return like._replace(**fields)


def member(path: bytes, **fields: Any) -> Member:
    like = Member(path, "file", 0o100644, 1, 2, 3 * 10**9 + 5, 4, 0, 7, 1, None, True)
    return like._replace(**fields)


class TestNewc:
    def test_a_file(self) -> None:
        assert Newc().head(member(b"abc")) == (
            b"070701"
            b"00000007000081A40000000100000002000000010000000300000004"
            b"000000000000000000000000000000000000000400000000"
            b"abc\0\0\0"
        )  # fmt: skip

    def test_a_symlink_has_its_target_for_content(self) -> None:
        link = member(b"l", type="symlink", mode=0o120777, size=0, target=b"where")
        head = Newc().head(link)
        assert head[6 + 6 * 8 : 14 + 6 * 8] == b"00000005"
        assert head[110:] == b"l\0" + b"where\0\0\0"

    def test_a_device(self) -> None:
        head = Newc().head(member(b"d", mode=0o60600, rdev=(259 << 8) | 5, size=0))
        assert head[6 + 9 * 8 : 6 + 11 * 8] == b"0000010300000005"

    def test_the_end(self) -> None:
        end = Newc().end(1000)
        assert end.startswith(b"070701" + b"0" * 32 + b"00000001")
        assert end[110:121] == b"TRAILER!!!\0"
        assert (1000 + len(end)) % 512 == 0

    def test_a_file_that_is_called_like_the_end(self) -> None:
        assert Newc().head(member(b"TRAILER!!!"))[110:].startswith(b"./TRAILER!!!\0")

    @pytest.mark.parametrize(
        ("wrong", "code"),
        [
            ({"size": 1 << 32}, "EFBIG"),
            ({"mtime_ns": -1}, "EOVERFLOW"),
            ({"mtime_ns": 10**9 << 32}, "EOVERFLOW"),
            ({"path": b"d/" * 2048}, "ENAMETOOLONG"),
            ({"uid": 0x1111_1111 << 32}, "EOVERFLOW"),
            ({"gid": -7}, "EOVERFLOW"),
            ({"mode": 1 << 32}, "EOVERFLOW"),
            ({"size": -2}, "EOVERFLOW"),
            ({"rdev": 1 << 64}, "EOVERFLOW"),
        ],
    )
    def test_what_has_no_room(self, wrong: dict[str, Any], code: str) -> None:
        with pytest.raises(RemoteError) as caught:
            Newc().require(member(b"a")._replace(**wrong))
        assert caught.value.code == code

    def test_no_number_has_more_digits_than_its_place(self) -> None:
        with pytest.raises(RemoteError, match="no room for one of its numbers"):
            Newc().head(member(b"a", uid=1 << 32))


STAT = Stat("file", 0o100644, 10, 5, 1, 0, 0, 0, 8, 4096, 1, 2, 3)
LINK = STAT._replace(type="symlink", mode=0o120777)


@pytest.mark.parametrize(
    ("before", "entry", "content"),
    [
        (STAT, TreeEntry("a", STAT, content=memoryview(b"0123456789")), b"0123456789"),
        (LINK, TreeEntry("a", LINK, target="to"), b"to"),
        # What would be taken for members behind it.
        (STAT, TreeEntry("a", STAT, target="0123456789ab070701"), None),
        (STAT, TreeEntry("a", STAT, content=memoryview(b"0123456789ab")), None),
        (STAT, TreeEntry("a", LINK, target="0123456789"), None),
        (LINK, TreeEntry("a", LINK, content=memoryview(b"to")), None),
        (STAT, TreeEntry("a", None), None),
    ],
)
def test_only_what_fits_is_content(before: Stat, entry: TreeEntry, content: bytes | None) -> None:
    found = content_of(before, entry)
    assert (None if found is None else bytes(found)) == content


class TestTar:
    @pytest.mark.parametrize("wrong", [{"size": -2}, {"rdev": -1}, {"rdev": (1 << 40) + 5}])
    def test_numbers_that_no_file_has(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(RemoteError) as caught:
            Tar().require(member(b"a")._replace(**wrong))
        assert caught.value.code == "EOVERFLOW"

    def test_large_numbers_go_into_pax_records(self) -> None:
        head = Tar().head(member(b"a", size=1 << 40, uid=1 << 31))
        assert b"size=1099511627776\n" in head
        assert b"uid=2147483648\n" in head
        assert b"mtime=3.000000005\n" in head
        assert len(head) % 512 == 0

    @pytest.mark.parametrize(
        ("mtime_ns", "record"),
        [(-1, b"-0.000000001"), (-1_500_000_000, b"-1.5"), (-2_250_000_000, b"-2.25")],
    )
    def test_times_before_1970(self, mtime_ns: int, record: bytes) -> None:
        assert b"mtime=" + record + b"\n" in Tar().head(member(b"a", mtime_ns=mtime_ns))

    def test_a_name_that_is_no_text(self) -> None:
        assert b"path=a\xff\n" in Tar().head(member(b"a\xff"))


class TestPlan:
    def plan(self, tree: dict[bytes, Stat], look: Look | None = None) -> list[Member]:
        return [*Plan(stat("dir"), tree, look or Look(), Newc()).members()][1:]

    def test_order_and_numbers(self) -> None:
        tree = {
            b"b": stat("dir"),
            b"b/c": stat(ino=8, nlink=2, size=9),
            b"b-": stat(),
            b"a": stat(ino=8, nlink=2, size=9),
        }
        seen = [(each.path, each.number, each.names, each.size) for each in self.plan(tree)]
        assert seen == [(b"a", 2, 2, 0), (b"b", 3, 1, 0), (b"b-", 4, 1, 0), (b"b/c", 2, 2, 9)]

    def test_one_number_on_two_mounts_is_two_files(self) -> None:
        twin = stat(ino=8, nlink=2, size=9)
        tree = {b"a": twin, b"m": stat("dir")._replace(submount=True), b"m/a": twin}
        assert [each.names for each in self.plan(tree)] == [1, 1, 1]

    def test_names_outside_do_not_count(self) -> None:
        [one] = self.plan({b"a": stat(nlink=3, size=4)})
        assert (one.names, one.size, one.has_content) == (1, 4, True)

    def test_an_owner_that_is_not_known(self) -> None:
        with pytest.raises(RemoteError, match="a: its owner is not known here"):
            self.plan({b"a": stat(uid=None)})
        [one] = self.plan({b"a": stat(uid=None)}, Look(owner=(3, 4)))
        assert (one.uid, one.gid) == (3, 4)

    def test_a_type_that_nobody_knows(self) -> None:
        with pytest.raises(RemoteError, match="a type that is not known, 'door'"):
            self.plan({b"a": stat()._replace(type="door")})


@pytest.mark.parametrize(
    ("pattern", "covered"),
    [
        ("b", {b"b", b"b/x", b"a/b", b"a/b/y"}),
        ("*", {b"a", b"b", b"b/x", b"a/b", b"a/b/y"}),
        ("/b", {b"b", b"b/x", b"a/b", b"a/b/y"}),
        ("a/*", {b"a/b", b"a/b/y"}),
        ("*/*/y", {b"a/b/y"}),
        ("[!a]/x", {b"b/x"}),
    ],
)
def test_exclusion(pattern: str, covered: set[bytes]) -> None:
    exclusion = Exclusion([pattern])
    assert {path for path in (b"a", b"b", b"b/x", b"a/b", b"a/b/y") if exclusion.covers(path)} == (
        covered
    )


def test_the_root_is_never_left_out() -> None:
    assert not Exclusion(["*"]).covers(b"")


class TestDaemon:
    """The daemon is believed nothing that would lead an archive's reader elsewhere."""

    @pytest.mark.parametrize("path", ["../x", "a/../x", "/x", "a//x", ".", "x\0y", "nowhere/x"])
    def test_a_path_that_is_none(self, fake_daemon: FakeDaemon, client: Client, path: str) -> None:
        entry = {"path": path, **stat()._asdict()}
        fake_daemon.results["walk"] = {"entries": [entry], "problems": [], "next": None}
        with pytest.raises(BadReply, match="the daemon sent"):
            client.archive("kernels", "/", lambda _: None)


@pytest.mark.parametrize("lasting", [0, 2, 100])
def test_a_part_of_many_pages(
    fake_daemon: FakeDaemon, client: Client, lasting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes are right that wait for their turn while more pages of their part are received."""
    monkeypatch.setattr(parts, "_LASTING", lasting)
    names = [b"%02d" % number for number in range(9)]
    # The daemon's order is another one than the archive's.
    fake_daemon.root = directory()
    fake_daemon.root.children = {name: Node(content=name * 50) for name in reversed(names)}
    fake_daemon.tree_limit = 2
    archives = []
    for unknown in ({"tree"}, set[str]()):
        fake_daemon.unknown = unknown
        written: list[bytes] = []
        client.archive("kernels", "/", lambda part, to=written: to.append(bytes(part)))  # type: ignore[misc]
        archives.append(b"".join(written))
    assert [request.method for request in fake_daemon.requests].count("tree") == 1 + 5
    assert archives[0] == archives[1]
    assert all(name * 50 in archives[1] for name in names)


def test_a_file_that_is_gone_before_a_part(
    fake_daemon: FakeDaemon, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came of the part before it is handed on before other parts take its place."""
    monkeypatch.setattr(parts, "_HELD", 600)
    names = [b"a", b"b", b"c", b"d"]
    fake_daemon.root = directory()
    for name in names:
        inside = {b"0": Node(content=b"gone"), b"1": Node(content=name * 500)}
        fake_daemon.root.children[name] = Node("dir", children=inside)
    entries = [{"path": path, **node.stat()} for path, node in below(fake_daemon.root)]
    for entry in entries:
        if entry["path"].endswith(b"/0"):
            entry["nlink"] = 2  # the other one is outside of the tree; such a file comes by itself
    fake_daemon.results["walk"] = {"entries": entries, "problems": [], "next": None}
    for name in names:
        del fake_daemon.root.children[name].children[b"0"]
    archives = []
    for unknown in ({"tree"}, set[str]()):
        fake_daemon.unknown = unknown
        written: list[bytes] = []
        archived = client.archive(
            "kernels",
            "/",
            lambda part, to=written: to.append(bytes(part)),  # type: ignore[misc]
            allow_changes=True,
        )
        assert archived.changed == [f"{name.decode()}/0" for name in names]
        archives.append(b"".join(written))
    assert archives[0] == archives[1]
    assert all(name * 500 in archives[1] for name in names)


@pytest.mark.parametrize(
    ("level", "allow", "said"),
    [(3, False, None), (4, False, False), (4, True, None)],
)
def test_who_looks_at_files_again(
    fake_daemon: FakeDaemon, client: Client, level: int, allow: bool, said: bool | None
) -> None:
    """The daemon does, but where a daemon can leave it to the archive's second look."""
    fake_daemon.api_level = level
    fake_daemon.unknown.clear()
    fake_daemon.root = directory(a=Node(content=b"a's"))
    fake_daemon.results["walk"] = {
        "entries": [{"path": "a", **fake_daemon.root.children[b"a"].stat()}],
        "problems": [],
        "next": None,
    }
    client.archive("kernels", "/", lambda _: None, allow_changes=allow)
    [options] = [request.params[2] for request in fake_daemon.requests if request.method == "tree"]
    assert options.get("look_again") == said


@pytest.mark.parametrize("name", ["/dev/stdout", "/proc/self/fd/1"])
@pytest.mark.parametrize("is_deleted", [False, True])
def test_an_open_file_is_written_into(
    fake_daemon: FakeDaemon, start: Start, tmp_path: Path, name: str, is_deleted: bool
) -> None:
    """A process that has opened it sees the archive, and not a file that has lost its name."""
    fake_daemon.root = directory(a=Node(content=b"a's"))
    folder = tmp_path / "folder"
    folder.mkdir()
    with (folder / "out").open("w+b") as out:
        out.write(b"old" * 10_000)
        out.flush()
        if is_deleted:
            (folder / "out").unlink()
        assert start("archive", "-o", name, "kernels:", stdout=out).wait() == 0
        out.seek(0)
        written = out.read()
    assert written.startswith(b"070701")
    assert b"TRAILER!!!" in written[-512:]
    assert os.listdir(folder) == ([] if is_deleted else ["out"])


@pytest.mark.parametrize("paths", [None, 5, [], [5]])
def test_what_a_daemon_says_of_changes(
    fake_daemon: FakeDaemon, run: Run, paths: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def do_walk(*_: object) -> object:
        raise FaultError("CHANGED", "it was replaced", paths=paths)

    monkeypatch.setattr(fake_daemon, "do_walk", do_walk)
    code, written, told = run("archive", "kernels:")
    assert (code, written) == (75, "")
    assert "kernels:5: changed" in told if paths == [5] else "it was replaced" in told


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "'': no such file or directory (ENOENT)"),
        ("new/", "new/: no such file or directory (ENOENT)"),
        ("new/.", "new/.: no such file or directory (ENOENT)"),
        ("no/a", "no/a: no such file or directory (ENOENT)"),
        (".", ".: is a directory (EISDIR)"),
        ("loop", "loop: too many levels of symbolic links (ELOOP)"),
        ("/proc/no-such-file", "/proc/no-such-file: no such file or directory (ENOENT)"),
        ("/dev/full", "/dev/full: no space left on device (ENOSPC)"),
    ],
)
def test_a_file_that_cannot_be_written_is_named(
    fake_daemon: FakeDaemon, run: Run, here: Path, name: str, words: str
) -> None:
    """Not a temporary one; and what stat(2) refuses, such as others' links in /tmp, is not led."""
    fake_daemon.root = directory(a=Node(content=b"a's"))
    fake_daemon.unknown.clear()
    (here / "loop").symlink_to("loop")
    assert run("archive", "-o", name, "kernels:") == (1, "", f"vuserctl: {words}\n")
    assert os.listdir(here) == ["loop"]
    assert (here / "loop").is_symlink()


@pytest.mark.parametrize(
    ("path", "words"),
    [("no", "no such file or directory (ENOENT)"), ("a", "it is no directory (ENOTDIR)")],
)
def test_an_open_file_stays_where_there_is_nothing_to_archive(
    fake_daemon: FakeDaemon, run: Run, tmp_path: Path, path: str, words: str
) -> None:
    fake_daemon.root = directory(a=Node(content=b"a's"))
    fake_daemon.unknown.clear()
    with (tmp_path / "out").open("w+b") as out:
        out.write(b"precious")
        out.flush()
        name = f"/proc/self/fd/{out.fileno()}"
        said = f"vuserctl: kernels:{path}: {words}\n"
        assert run("archive", "-o", name, f"kernels:{path}") == (1, "", said)
    assert (tmp_path / "out").read_bytes() == b"precious"


def test_usage(run: Run) -> None:
    for words in (["--owner", "1"], ["--owner", "a:b"], ["--mtime", "-1"], ["--format", "zip"]):
        code, _, told = run("archive", "kernels:", *words)
        assert (code, words[1] in told) == (2, True)
