"""``vuserctl get -r`` into the tree that it fetches: it ends, and copies none of its own copies."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.running import REPOSITORY, RunningDaemon

_VUSERCTL: Final = "import sys; from vuserd.ctl.main import main; sys.exit(main())"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts")


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Path]:
    """Make the tree to export: ``a`` with files and folders, and others beside it."""
    top = tmp_path / "e"
    for folder in ("a/deep/er", "work", "sub/deep/x"):
        (top / folder).mkdir(parents=True)
    for file in ("f", "a/f", "a/deep/er/f", "sub/deep/f", "sub/deep/x/f"):
        (top / file).write_text(file)
    yield top
    mounted = [
        line.split()[4]
        for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    ]
    for each in reversed([path for path in mounted if path.startswith(str(tmp_path))]):
        subprocess.run(["umount", each], check=True)


class Way(NamedTuple):
    """A source, a destination from inside ``e``, and what of the export is not copied."""

    source: str
    destination: str
    refused: set[str]
    working: str = "."


def plain(_: Path) -> None:
    pass


def there(top: Path) -> None:
    """Make the destination, with something in it."""
    (top / "a" / "b" / "a" / "b").mkdir(parents=True)
    (top / "a" / "b" / "old").write_text("old")


def linked(top: Path) -> None:
    (top.parent / "link").symlink_to(top / "work")


def inside_link(top: Path) -> None:
    (top / "link").symlink_to("a/deep")


def bound(top: Path) -> None:
    (top.parent / "mnt").mkdir()
    subprocess.run(["mount", "--bind", top / "work", top.parent / "mnt"], check=True)


def bound_below(top: Path) -> None:
    """Make a folder of the destination one that is below its own source."""
    (top.parent / "d" / "sub").mkdir(parents=True)
    subprocess.run(["mount", "--bind", top / "sub" / "deep", top.parent / "d" / "sub"], check=True)


def overlaid(top: Path) -> None:
    """Make the destination a view of ``work`` through overlayfs on another file system."""
    other = top.parent / "other"
    other.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", other], check=True)
    for name in ("lower", "mnt"):
        (other / name).mkdir()
    (top.parent / "index").mkdir()
    options = f"lowerdir={other}/lower,upperdir={top}/work,workdir={top.parent}/index"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, other / "mnt"], check=True)


WAYS: Final[dict[str, tuple[Callable[[Path], None], Way]]] = {
    "the current directory": (plain, Way("e:/", ".", {"/work"}, "work")),
    "a new folder": (plain, Way("e:/", "new", {"/new"})),
    "a new folder below": (plain, Way("e:/a", "a/b", {"/a/b"})),
    "a new folder deep below": (plain, Way("e:/", "a/deep/er/b", {"/a/deep/er/b"})),
    "one that was there": (there, Way("e:/a", "a/b", {"/a/b/a"})),
    "a symlink": (linked, Way("e:/", "../link", {"/work"})),
    "a symlink in the export": (inside_link, Way("e:/a", "link", {"/a/deep/a"})),
    "itself": (plain, Way("e:/a", ".", {"/a"})),
    "itself by another name": (plain, Way("e:/a", "a/..", {"/a"})),
    "a bind mount": (bound, Way("e:/", "../mnt", {"/work"})),
    "a bind mount below": (bound_below, Way("e:/", "../d", {"/sub/deep"})),
    "an overlay": (overlaid, Way("e:/", "../other/mnt", {"/work"})),
}
NEEDS_MOUNT: Final = {"a bind mount", "a bind mount below", "an overlay"}


def get(running: RunningDaemon, cwd: Path, *arguments: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", _VUSERCTL, "--socket", running.socket, "get", "-r", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        timeout=60,
    )
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[root_only] if name in NEEDS_MOUNT else []) for name in WAYS],
)
def test_it_ends(virtiofsd: str, top: Path, tmp_path: Path, name: str) -> None:
    """Once, and again over what is there then."""
    make, way = WAYS[name]
    make(top)
    before = sorted(path.relative_to(top) for path in top.rglob("f"))
    with RunningDaemon({"e": top}, tmp_path / "s", virtiofsd) as running:
        for number in range(2):
            code, said = get(running, top / way.working, way.source, way.destination)
            assert code == 1
            assert all(line.endswith(": not copied into itself") for line in said)
            if not number:
                assert {line.split(":")[2] for line in said} == way.refused
    assert max(len(path.relative_to(top).parts) for path in top.rglob("*")) <= 9
    # What was there is there still, and as it was.
    for path in before:
        assert (top / path).read_text() == str(path)
    assert not list(top.rglob(".vuserctl-*"))
