"""``vuserctl get -r``: a whole tree is copied to disk, and what cannot be copied is reported."""

import io
import os
import random
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from tests.running import REPOSITORY, RunningDaemon
from vuserd.client.errors import RemoteError
from vuserd.ctl import main

_NOBODY = 65534


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make a tree of all that can be fetched: 400 files, and oddities of names and modes."""
    top = tmp_path / "tree"
    top.mkdir()
    chance = random.Random(3)
    for number in range(40):
        folder = top / f"folder-{number % 7}" / f"below-{number}"
        folder.mkdir(parents=True)
        for name in range(10):
            write(folder / f"file-{name}", chance.randbytes(chance.randrange(20_000)), number)
    for size in (0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 20):
        write(top / f"of-{size}", chance.randbytes(size), size)
    folder = top / "odd"
    folder.mkdir(mode=0o750)
    for odd in (b"\xff\xfe", b"caf\xe9", b"new\nline", b"-dash", b"...", b"n" * 255, b" space "):
        write(Path(os.fsdecode(os.fsencode(folder) + b"/" + odd)), odd, 5)
    write(folder / "tool", b"#!/bin/sh\n", 6)
    (folder / "tool").chmod(0o755)
    write(folder / "secret", b"mine", 6)
    (folder / "secret").chmod(0o600)
    (folder / "empty").mkdir()
    (folder / "read-only").mkdir()
    write(folder / "read-only" / "file", b"in it", 7)
    (folder / "link").symlink_to("tool")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "outside").symlink_to("/etc/passwd")
    (folder / "to a folder").symlink_to("../folder-1")
    os.symlink(b"\xff\xfe", os.fsencode(folder / "to odd"))
    (folder / "read-only").chmod(0o555)
    for each in folder.iterdir():
        if each.is_symlink():
            os.utime(each, ns=(10**18, 10**18 + 7), follow_symlinks=False)
    for directory, _, _ in os.walk(top, topdown=False):
        os.utime(directory, ns=(10**18, 10**18 + 123_456_789))
    return top


def write(path: Path, content: bytes, salt: int) -> None:
    path.write_bytes(content)
    os.utime(path, ns=(10**18, 10**18 + salt * 1_234_567))


@pytest.fixture
def serving(virtiofsd: str, tree: Path, tmp_path: Path) -> Iterator[RunningDaemon]:
    with RunningDaemon({"files": tree}, tmp_path / "s", virtiofsd) as running:
        yield running


def get(running: RunningDaemon, *arguments: str) -> tuple[int, list[str]]:
    """Run ``vuserctl get -r``; return its status, and what it said on standard error."""
    said = io.StringIO()
    with redirect_stderr(said):
        status = main.run(["--socket", running.socket, "get", "-r", *arguments])
    return status, said.getvalue().splitlines()


def described(top: Path) -> dict[bytes, tuple[object, ...]]:
    """Return all that a copy of a tree has to have in common with it."""
    found: dict[bytes, tuple[object, ...]] = {}
    base = os.fsencode(top)
    for folder, directories, files in os.walk(base):
        for path in [folder, *(os.path.join(folder, name) for name in directories + files)]:
            status = os.lstat(path)
            shown: tuple[object, ...]
            if stat.S_ISLNK(status.st_mode):
                shown = ("link", os.readlink(path), status.st_mtime_ns)
            elif stat.S_ISDIR(status.st_mode):
                shown = ("dir", stat.S_IMODE(status.st_mode), status.st_mtime_ns)
            else:
                content = Path(os.fsdecode(path)).read_bytes()
                shown = (stat.S_IMODE(status.st_mode), status.st_mtime_ns, content)
            found[os.path.relpath(path, base)] = shown
    return found


def test_the_copy_is_the_tree(serving: RunningDaemon, tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert get(serving, "files:/", str(copy)) == (0, [])
    assert described(copy) == described(tree)
    assert len(described(copy)) > 450
    # Again, over what is there: files are replaced, and nothing is left beside them.
    write(copy / "of-1", b"older", 1)
    (copy / "odd" / "link").unlink()
    (copy / "odd" / "link").symlink_to("elsewhere")
    assert get(serving, "files:/", str(copy)) == (0, [])
    again, there = described(copy), described(tree)
    assert again.keys() == there.keys()
    assert {path: shown for path, shown in again.items() if shown[0] != "dir"} == {
        path: shown for path, shown in there.items() if shown[0] != "dir"
    }


def test_an_older_daemon_gives_the_same_copy(
    serving: RunningDaemon, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def has_no_trees(*_: object) -> None:
        raise RemoteError("UNKNOWN_METHOD", "there is no method 'tree'")

    monkeypatch.setattr("vuserd.ctl.copying.get_tree.fetch_by_pages", has_no_trees)
    copy = tmp_path / "copy"
    assert get(serving, "files:/", str(copy)) == (0, [])
    assert described(copy) == described(tree)


def test_files_with_several_names_stay_such(
    serving: RunningDaemon, tree: Path, tmp_path: Path
) -> None:
    """In one copy; a name that was there keeps its file, where that is another's or has more."""
    for number, size in enumerate((0, 10, (1 << 20) + 1)):
        (tree / f"several-{number}").write_bytes(os.urandom(size))
        for folder in ("odd", "folder-1", "folder-2"):
            os.link(tree / f"several-{number}", tree / folder / f"again-{number}")
    copy = tmp_path / "copy"
    for _ in range(2):
        assert get(serving, "files:/", str(copy)) == (0, [])
        for number in range(3):
            [same] = {
                os.stat(copy / folder / f"again-{number}").st_ino
                for folder in ("odd", "folder-1", "folder-2")
            }
            assert same == os.stat(copy / f"several-{number}").st_ino
            assert os.stat(copy / f"several-{number}").st_nlink == 4
    assert {path: shown for path, shown in described(copy).items() if b"several" in path} == {
        path: shown for path, shown in described(tree).items() if b"several" in path
    }
    own = copy / "folder-2" / "again-1"
    own.unlink()
    own.write_bytes(b"of its own")
    own.chmod(0o640)
    assert get(serving, "files:/", str(copy)) == (0, [])
    assert own.read_bytes() == (tree / "several-1").read_bytes()
    assert (own.stat().st_nlink, stat.S_IMODE(own.stat().st_mode)) == (1, 0o640)
    assert (copy / "several-1").stat().st_nlink == 3


def test_holes_stay_holes(serving: RunningDaemon, tree: Path, tmp_path: Path) -> None:
    for name, size, parts in (("small", 900_000, [0, 500_000]), ("large", 9 << 20, [5 << 20])):
        with open(tree / name, "wb") as file:
            for part in parts:
                file.seek(part)
                file.write(b"data")
            file.truncate(size)
    copy = tmp_path / "copy"
    assert get(serving, "files:/", str(copy)) == (0, [])
    for name in ("small", "large"):
        assert (copy / name).read_bytes() == (tree / name).read_bytes()
        if (tree / name).stat().st_blocks * 512 < 200_000:
            assert (copy / name).stat().st_blocks * 512 < 200_000


def test_an_update_fetches_what_is_not_there(
    serving: RunningDaemon, tree: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    assert get(serving, "-u", "files:/", str(copy)) == (0, [])
    assert described(copy) == described(tree)
    kept = (copy / "of-1").stat().st_ino
    (copy / "odd" / "tool").unlink()
    write(tree / "of-0", b"more", 9)
    assert get(serving, "-u", "files:/", str(copy)) == (0, [])
    assert (copy / "odd" / "tool").exists()
    assert (copy / "of-0").read_bytes() == b"more"
    assert (copy / "of-1").stat().st_ino == kept


def test_a_folder_goes_into_one_that_is_there(
    serving: RunningDaemon, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    assert get(serving, "files:odd", str(tmp_path / "there")) == (0, [])
    assert described(tmp_path / "there" / "odd") == described(tree / "odd")


def test_one_file_is_a_get(serving: RunningDaemon, tree: Path, tmp_path: Path) -> None:
    assert get(serving, "files:of-1", str(tmp_path / "one")) == (0, [])
    assert (tmp_path / "one").read_bytes() == (tree / "of-1").read_bytes()


def test_what_is_no_file_is_skipped_with_a_word(
    serving: RunningDaemon, tree: Path, tmp_path: Path
) -> None:
    os.mkfifo(tree / "odd" / "fifo")
    copy = tmp_path / "copy"
    assert get(serving, "files:odd", str(copy)) == (
        0,
        ["vuserctl: files:odd/fifo: skipped, a fifo"],
    )
    (tree / "odd" / "fifo").unlink()
    assert described(copy).keys() == described(tree / "odd").keys()


def test_what_stands_in_the_way_is_told_and_the_rest_comes(
    serving: RunningDaemon, tree: Path, tmp_path: Path
) -> None:
    copy, elsewhere = tmp_path / "copy", tmp_path / "elsewhere"
    copy.mkdir()
    elsewhere.mkdir()
    (copy / "folder-1").symlink_to(elsewhere)
    (copy / "folder-2").write_bytes(b"a file")
    (copy / "of-1").mkdir()
    status, said = get(serving, "files:/", str(copy))
    assert status == 1
    assert len(said) == 3
    assert all(any(name in line for line in said) for name in ("folder-1", "folder-2", "of-1"))
    assert not any(elsewhere.iterdir())
    assert described(copy / "odd") == described(tree / "odd")


def test_what_cannot_be_read_is_told_and_the_rest_comes(rust_virtiofsd: str) -> None:
    """As another user where this one is root, who may read everything."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        base.chmod(0o755)
        program = rust_virtiofsd
        if Path(program).is_relative_to(REPOSITORY):  # where nobody else may look
            shutil.copytree(Path(program).parent, base / "virtiofsd", symlinks=True)
            program = str(base / "virtiofsd" / Path(program).name)
        top, own = base / "tree", base / "own"
        (top / "closed").mkdir(parents=True)
        own.mkdir()
        for name in ("a", "b", "closed/inside"):
            write(top / name, name.encode(), 1)
        write(top / "unreadable", b"secret", 1)
        write(top / "unreadable and large", bytes(2 << 20), 1)
        for name in ("unreadable", "unreadable and large", "closed"):
            (top / name).chmod(0)
        if root:
            os.chown(own, _NOBODY, _NOBODY)
        with RunningDaemon(
            {"files": top}, own / "s", program, user=_NOBODY if root else None
        ) as running:
            status, said = get(running, "files:/", str(base / "copy"))
        (top / "closed").chmod(0o755)
        assert status == 1
        assert sorted(said) == [
            "vuserctl: files:/closed: permission denied (EACCES)",
            "vuserctl: files:/unreadable and large: permission denied (EACCES)",
            "vuserctl: files:/unreadable: permission denied (EACCES)",
        ]
        assert sorted(os.listdir(base / "copy")) == ["a", "b", "closed"]
        assert (base / "copy" / "b").read_bytes() == b"b"
