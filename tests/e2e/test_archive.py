"""Archives of trees: what is in them is what is there, whoever reads them."""

import io
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.attacks.threats import Who, threat
from tests.e2e import archived_tree
from tests.e2e.archived_tree import host_view, read_newc, tool
from tests.running import RunningDaemon
from tests.unit.faces import KINDS, connecting
from vuserd.client import Client, RemoteError
from vuserd.client.archive import parts

VUSERCTL: Final = (sys.executable, "-m", "vuserd.ctl.main", "archive")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("archives")


@pytest.fixture(scope="module")
def tree(place: Path) -> Path:
    return archived_tree.make(place)


@pytest.fixture(scope="module")
def address(virtiofsd: str, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the socket of a daemon that serves the tree, and an empty folder for others."""
    folder = tmp_path_factory.mktemp("archiving")
    (folder / "other").mkdir()
    exports = {"lab": tree, "other": folder / "other"}
    with RunningDaemon(exports, folder / "s", virtiofsd):
        yield str(folder / "s")


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client.connect(address) as client:
        yield client


@pytest.fixture
def other(address: str) -> Path:
    """Return the folder of the export ``other``, empty."""
    folder = Path(address).parent / "other"
    for left in sorted(folder.rglob("*"), reverse=True):
        left.rmdir() if left.is_dir() else left.unlink()
    return folder


@pytest.fixture(scope="module")
def newc(address: str) -> bytes:
    return vuserctl(address, "lab:")


@pytest.fixture(scope="module")
def tar(address: str) -> bytes:
    return vuserctl(address, "lab:", "--format", "tar")


def vuserctl(address: str, *words: str) -> bytes:
    done = subprocess.run(
        [*VUSERCTL, "--socket", address, *words], stdout=subprocess.PIPE, check=True, timeout=60
    )
    return done.stdout


def test_newc_is_what_is_there(newc: bytes, tree: Path) -> None:
    members = read_newc(newc)
    members[b"TRAILER!!!"] = members.pop(b"./TRAILER!!!")
    root = members.pop(b".")
    assert (root.mode, root.number) == (tree.stat().st_mode, 1)
    host = host_view(tree)
    assert members.keys() == host.keys()
    numbers: dict[int, int] = {}
    for path, member in members.items():
        status, where = host[path], os.path.join(os.fsencode(tree), path)
        assert (member.mode, member.uid, member.gid) == (
            status.st_mode,
            status.st_uid,
            status.st_gid,
        )
        assert member.mtime == status.st_mtime_ns // 10**9
        if stat.S_ISLNK(member.mode):
            assert member.content == os.readlink(where)
        elif stat.S_ISREG(member.mode) and member.names == 1:
            assert member.content == Path(os.fsdecode(where)).read_bytes()
        elif not stat.S_ISREG(member.mode):
            assert member.content == b""
            assert stat.S_ISDIR(member.mode) or member.rdev == status.st_rdev
        assert numbers.setdefault(member.number, status.st_ino) == status.st_ino
        assert stat.S_ISDIR(member.mode) or member.names == status.st_nlink
    assert {*numbers} == {*range(2, len(numbers) + 2)}


def test_the_last_of_several_names_has_the_bytes_in_newc(newc: bytes, tree: Path) -> None:
    members = read_newc(newc)
    names = [path for path, member in members.items() if member.names == 3]
    assert len(names) == 3
    assert [len(members[path].content) for path in names] == [0, 0, 4097]
    assert members[b"large again"].content == (tree / "large").read_bytes()


def test_tar_is_what_is_there(tar: bytes, tree: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(tar), errors="surrogateescape") as archive:
        members = {os.fsencode(member.name): member for member in archive}
        del members[b"."]
        host = host_view(tree)
        assert members.keys() == host.keys() - {b"socket"}
        assert [*members] == sorted(members)
        for path, member in members.items():
            status, where = host[path], os.path.join(os.fsencode(tree), path)
            mode = stat.S_IMODE(status.st_mode)
            assert (member.mode, member.uid, member.gid) == (mode, status.st_uid, status.st_gid)
            assert abs(member.mtime - status.st_mtime) < 1e-6
            if member.issym():
                assert os.fsencode(member.linkname) == os.readlink(where)
            elif member.isreg() or member.islnk():
                content = archive.extractfile(member)
                assert content is not None
                assert content.read() == Path(os.fsdecode(where)).read_bytes()
                assert member.islnk() == (path in {b"large again", b"setuid"} or b"same" in path)
            elif member.isdev():
                assert os.makedev(member.devmajor, member.devminor) == status.st_rdev


@pytest.mark.parametrize("kind", KINDS)
def test_all_clients_write_the_same(kind: str, address: str, newc: bytes, tmp_path: Path) -> None:
    got: list[bytes] = []
    shown: list[tuple[int, int]] = []
    with connecting(kind)(address) as client, (tmp_path / "a").open("wb") as file:
        done = client.archive(
            "lab",
            "/",
            lambda part: got.append(bytes(part)),
            progress=lambda *at: shown.append(at),
        )
        assert client.archive("lab", "/", file.fileno()) == done
    assert b"".join(got) == newc == (tmp_path / "a").read_bytes()
    assert max(map(len, got)) <= 8 << 20
    assert done.size == len(newc)
    assert done.entries == len(read_newc(newc))
    assert (done.left_out, done.changed) == ([], [])
    assert {"fifo", "socket"} <= {kind for _, kind in done.special}
    assert shown[-1][0] == shown[-1][1] > archived_tree.LARGE


@pytest.mark.parametrize("held", [0, 5000])
def test_parts_that_are_too_large(
    client: Client, newc: bytes, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not come with a part is read by itself: all of it, or all but small directories."""
    monkeypatch.setattr(parts, "_HELD", held)
    written: list[bytes] = []
    client.archive("lab", "/", lambda part: written.append(bytes(part)))
    assert b"".join(written) == newc


def test_a_taker_that_fails(client: Client, newc: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part that the daemon reads ahead is forgotten, and the client goes on."""
    monkeypatch.setattr(parts, "_HELD", 5000)
    left = 3

    def fail(_: memoryview) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        client.archive("lab", "/", fail)
    written: list[bytes] = []
    client.archive("lab", "/", lambda part: written.append(bytes(part)))
    assert b"".join(written) == newc


def test_reproducible(address: str, tree: Path) -> None:
    first = vuserctl(address, "lab:", "--reproducible")
    os.utime(tree / "init")
    assert vuserctl(address, "lab:", "--reproducible") == first
    assert {member[2:4] + member[5:6] for member in read_newc(first).values()} == {(0, 0, 0)}
    command = [*VUSERCTL, "--socket", address, "lab:", "--reproducible", "--owner", "1:2"]
    later = subprocess.run(
        command, env={**os.environ, "SOURCE_DATE_EPOCH": "77"}, check=True, stdout=subprocess.PIPE
    ).stdout
    assert {member[2:4] + member[5:6] for member in read_newc(later).values()} == {(1, 2, 77)}


def test_what_is_left_out(client: Client) -> None:
    got: list[bytes] = []
    patterns: list[str | bytes] = ["*large*", "d*/d*/d*/the*", b"caf\xe9*"]
    done = client.archive(
        "lab", "", lambda part: got.append(bytes(part)), exclude=patterns, special=False
    )
    members = read_newc(b"".join(got))
    assert not [path for path in members if b"large" in path or b"caf" in path or b"same" in path]
    assert {kind for _, kind in done.left_out} >= {"fifo", "socket"}
    assert done.special == []
    assert members[b"setuid"].names == 2
    assert {stat.S_IFMT(member.mode) for member in members.values()} == {
        stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK
    }  # fmt: skip


def test_an_excluded_directory_takes_all_below_it(client: Client) -> None:
    got: list[bytes] = []
    client.archive("lab", "", lambda part: got.append(bytes(part)), exclude=["d" * 100])
    assert not [path for path in read_newc(b"".join(got)) if b"ddd" in path]


def test_a_file_without_room_in_newc(client: Client, other: Path) -> None:
    with (other / "huge").open("wb") as huge:
        huge.truncate(4 << 30)
    written: list[int] = []
    with pytest.raises(RemoteError, match="huge: newc has no room for a file of 4 GiB") as caught:
        client.archive("other", "", lambda part: written.append(len(part)))
    assert caught.value.code == "EFBIG"
    assert not written


_of_changes = threat(
    "archive of a tree that changes",
    who=Who.FILE_OWNER,
    against="who archives a tree",
    does="writes, makes, removes and cuts files while they are archived",
    promise="what changed is named, and the archive is not taken for a whole one",
)


@_of_changes
@pytest.mark.parametrize("allow", [False, True])
def test_a_tree_that_changes(client: Client, other: Path, allow: bool) -> None:
    (other / "sub").mkdir()
    for name in ("a", "sub/b", "c", "d"):
        (other / name).write_bytes(os.urandom(2 << 20))
    (other / "gone").write_bytes(b"1")

    def change(_: memoryview) -> None:
        if not (other / "new").exists():
            with (other / "d").open("r+b") as file:
                file.write(b"changed")
            (other / "gone").unlink()
            (other / "sub/new").touch()
            (other / "new").touch()

    if allow:
        done = client.archive("other", "/", change, allow_changes=True)
        assert done.changed == [".", "d", "gone", "new", "sub", "sub/new"]
        return
    with pytest.raises(RemoteError, match="the tree changed while it was read") as caught:
        client.archive("other", "/", change)
    assert caught.value.code == "CHANGED"
    assert caught.value.fields["paths"] == [".", "d", "gone", "new", "sub", "sub/new"]


@_of_changes
def test_a_large_file_that_changes_on_its_way(client: Client, other: Path) -> None:
    """What was written cannot be taken back, so that is no archive whatever is allowed."""
    (other / "large").write_bytes(os.urandom(20 << 20))

    def change(_: memoryview) -> None:
        with (other / "large").open("r+b") as file:
            file.truncate(15 << 20)

    with pytest.raises(RemoteError, match="large") as caught:
        client.archive("other", "/", change, allow_changes=True)
    assert (caught.value.code, caught.value.fields["paths"]) == ("CHANGED", ["large"])


def test_the_command_says_what_changed(address: str, other: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (other / name).write_bytes(os.urandom(1 << 20))
    command = [*VUSERCTL, "--socket", address, "other:"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.read(1)
        (other / "new").touch()
        running.stdout.read()
        assert b"vuserctl: other:new: changed while the tree was read" in running.stderr.read()
    assert running.returncode == 75
    (other / "closed").mkdir()
    out = tmp_path / "out"
    assert vuserctl(address, "other:", "-o", str(out)) == b""
    assert [*read_newc(out.read_bytes())] == [b".", b"a", b"b", b"closed", b"new"]
    assert [*tmp_path.iterdir()] == [out]


def test_no_directory(client: Client) -> None:
    for path, code in (("init", "ENOTDIR"), ("nowhere", "ENOENT")):
        with pytest.raises(RemoteError) as caught:
            client.archive("lab", path, lambda _: None)
        assert caught.value.code == code


class TestReaders:
    """Programs that others wrote find in an archive what was there."""

    @pytest.mark.parametrize("form", ["newc", "tar"])
    def test_bsdtar(self, form: str, newc: bytes, tar: bytes, tree: Path, tmp_path: Path) -> None:
        self.unpack(tree, tmp_path, newc if form == "newc" else tar, "bsdtar", "-xpf", "-")

    def test_cpio(self, newc: bytes, tree: Path, tmp_path: Path) -> None:
        self.unpack(tree, tmp_path, newc, "cpio", "-idm", "--quiet")

    def unpack(self, tree: Path, folder: Path, archive: bytes, name: str, *words: str) -> None:
        program = tool(name)
        if program is None:
            pytest.skip(f"no {name} on this machine")
        archived_tree.run(program, *words, archive=archive, folder=folder)
        unpacked, host = host_view(folder), host_view(tree)
        assert unpacked.keys() | {b"socket"} == host.keys()
        for path, status in unpacked.items():
            there = host[path]
            if path == b"socket" and name == "bsdtar":
                continue  # it makes a file of that
            assert (status.st_mode, status.st_rdev) == (there.st_mode, there.st_rdev), path
            if not stat.S_ISDIR(status.st_mode):
                assert status.st_nlink == there.st_nlink, path
            if stat.S_ISREG(status.st_mode):
                ours, theirs = (
                    Path(os.fsdecode(os.path.join(os.fsencode(each), path)))
                    for each in (folder, tree)
                )
                assert ours.read_bytes() == theirs.read_bytes(), path

    def test_sqfstar(self, tar: bytes, tree: Path, tmp_path: Path) -> None:
        program, reader = tool("sqfstar"), tool("unsquashfs")
        if program is None or reader is None:
            pytest.skip("no sqfstar on this machine")
        archived_tree.run(program, "-quiet", "-no-progress", "a", archive=tar, folder=tmp_path)
        listed = archived_tree.run(reader, "-l", "-d", "", "a", archive=b"", folder=tmp_path)
        names = {line[1:] for line in listed.splitlines() if line[1:]}
        assert {b"init", b"empty", b"sparse", b"large again", b"empty directory"} <= names
        assert len(names) >= len(host_view(tree)) - 2
        content = archived_tree.run(reader, "-cat", "a", "large", archive=b"", folder=tmp_path)
        assert content == (tree / "large").read_bytes()

    def test_mkfs_erofs(self, tar: bytes, tree: Path, tmp_path: Path) -> None:
        program, checker = tool("mkfs.erofs"), tool("fsck.erofs")
        if program is None or checker is None:
            pytest.skip("no mkfs.erofs on this machine")
        told = subprocess.run([program, "--help"], capture_output=True, check=False)
        if b"--tar" not in told.stdout + told.stderr:
            pytest.skip("this mkfs.erofs takes no tar: it is older than 1.7")
        archived_tree.run(program, "--quiet", "--tar=f", "a", archive=tar, folder=tmp_path)
        unpacked = tmp_path / "unpacked"
        archived_tree.run(checker, f"--extract={unpacked}", "a", archive=b"", folder=tmp_path)
        assert host_view(unpacked).keys() | {b"socket"} == host_view(tree).keys()
        assert (unpacked / "large again").read_bytes() == (tree / "large").read_bytes()
