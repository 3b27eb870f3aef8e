"""An export is a path: on every file system, what it leads to now is served, or an error.

All exports of a backend are changed together, for the second that each may take to notice.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.running import RunningDaemon
from tests.systems.grounds import GROUNDS
from tests.systems.mounting import (
    make_image,
    mounted,
    mounted_image,
    overlay,
    run,
    shared_folder,
)
from tests.systems.oddtree import copied, odd_file_system
from vuserd.client import Client
from vuserd.client.errors import RemoteError

#: Seconds until a change is noticed, and until its directory has to be served.
_NOTICED: Final = 1.0
_SERVED: Final = 8.0
_KINDS: Final = ("ext4-256", "xfs", "btrfs", "tmpfs", "overlay")
_MAKERS: Final = {
    "ext4-256": (32, "mkfs.ext4", "-q"),
    "xfs": (320, "mkfs.xfs", "-q"),
    "btrfs": (128, "mkfs.btrfs", "--quiet"),
}


def make(folder: Path, content: bytes) -> Path:
    folder.mkdir()
    (folder / "which").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def kinds(_root: None) -> Iterator[list[Path]]:
    """Yield a place on each file system of this machine; GROUNDS reports those that it lacks."""
    with shared_folder("replaced") as base, ExitStack() as stack:
        places = []
        for kind in _KINDS:
            if GROUNDS[kind].lacking() or GROUNDS[kind].not_installed():
                continue
            place = base / kind
            place.mkdir()
            if kind in _MAKERS:
                image = make_image(base / f"{kind}.img", *_MAKERS[kind])
                stack.enter_context(mounted_image(image, place))
            elif kind == "overlay":
                stack.enter_context(overlay(base / "layers", place))
            else:
                stack.enter_context(mounted("-t", "tmpfs", "tmpfs", place))
            places.append(place)
        yield places


class Exports:
    """A folder on each file system, exported by one daemon."""

    def __init__(self, folders: list[Path], client: Client) -> None:
        self.folders, self._client = folders, client

    def change(self, change: Callable[[Path], object]) -> None:
        for folder in self.folders:
            change(folder)

    def served(self, folder: Path) -> bytes | None:
        """Return what a listed file in an export holds, or no bytes; None for an error."""
        name = folder.parent.name
        try:
            listed = [entry.name for entry in self._client.iterdir(name, "/")]
            content = self._client.read(name, "which", 0, 100)
        except RemoteError:
            content = None
        else:
            content = content if "which" in listed else b""
        state = {export.name: export.state for export in self._client.exports()}[name]
        assert state != "failed"
        return content

    def expect(self, content: bytes | None) -> None:
        """Expect this to be served soon, and nothing else after a second; None for an error."""
        begun = time.monotonic()
        for folder in self.folders:
            while True:
                asked = time.monotonic()
                found = self.served(folder)
                if found == content:
                    break
                assert found is None or asked < begun + _NOTICED, folder
                assert asked < begun + _SERVED, folder
                time.sleep(0.02)

    def expect_gone(self) -> None:
        """Expect an error of each, and a state that says so."""
        time.sleep(_NOTICED)
        self.expect(None)
        assert all(export.state not in ("up", "failed") for export in self._client.exports())


@pytest.fixture(params=["directory", "symlink"])
def exports(
    request: pytest.FixtureRequest, kinds: list[Path], virtiofsd: str, tmp_path: Path
) -> Iterator[Exports]:
    """Export a directory by its own name, or by a symlink, which is switched then."""
    folders = []
    for place in kinds:
        if request.param == "symlink":
            make(place / "one", b"one")
            os.symlink("one", place / "export")
        else:
            make(place / "export", b"one")
        folders.append(place / "export")
    socket = str(tmp_path / "s")
    named = {place.name: place / "export" for place in kinds}
    with RunningDaemon(named, Path(socket), virtiofsd), Client.connect(socket) as client:
        found = Exports(folders, client)
        found.expect(b"one")
        yield found
    for place in kinds:
        for entry in place.iterdir():
            if entry.is_symlink():
                entry.unlink()
            elif entry.name != "lost+found":
                shutil.rmtree(entry)


def test_another_directory(exports: Exports) -> None:
    """By rename, by rm -r and mkdir, and not at all for a while."""

    def switch(folder: Path) -> None:
        if folder.is_symlink():
            make(folder.parent / "two", b"two")
            os.symlink(folder.parent / "two", folder.parent / "new")  # and absolute by now
            os.rename(folder.parent / "new", folder)
        else:
            os.rename(folder, folder.parent / "old")
            os.rename(make(folder.parent / "new", b"two"), folder)

    def remove(folder: Path) -> None:
        shutil.rmtree(folder.resolve())

    def make_again(folder: Path) -> None:
        make(folder.resolve(), b"three")

    exports.change(switch)
    exports.expect(b"two")
    exports.change(remove)
    exports.expect_gone()
    exports.change(make_again)
    exports.expect(b"three")

    def remove_and_make_again(folder: Path) -> None:
        remove(folder)
        make(folder.resolve(), b"four")

    exports.change(remove_and_make_again)
    exports.expect(b"four")


def test_another_file_system(exports: Exports, tmp_path: Path) -> None:
    """Mounted on the directory, and unmounted again: in turn of each kind."""
    other = make(tmp_path / "other", b"two")

    def mount_tmpfs(stack: ExitStack, place: Path) -> None:
        stack.enter_context(mounted("-t", "tmpfs", "tmpfs", place))
        (place / "which").write_bytes(b"two")

    def mount_bound(stack: ExitStack, place: Path) -> None:
        stack.enter_context(mounted("--bind", other, place))

    def mount_fuse(stack: ExitStack, place: Path) -> None:
        stack.enter_context(odd_file_system(place, copied(os.fsencode(other))))

    kinds = (mount_tmpfs, mount_bound, mount_fuse)
    for turn in range(len(kinds)):
        with ExitStack() as stack:
            for number, folder in enumerate(exports.folders):
                kinds[(number + turn) % len(kinds)](stack, folder.resolve())
            exports.expect(b"two")
        exports.expect(b"one")


@pytest.mark.parametrize("kind", ["squashfs", "erofs"])
def test_one_image_after_the_other(base: Path, virtiofsd: str, kind: str) -> None:
    """On one device, with the same inode numbers of their roots."""
    ground = GROUNDS[kind]
    if ground.lacking() or ground.not_installed():
        pytest.skip(f"no {kind}")
    place = base / "export"
    place.mkdir()
    images = {}
    for content in (b"one", b"two"):
        tree, image = make(base / content.decode(), content), base / f"{content.decode()}.img"
        if kind == "erofs":
            run("mkfs.erofs", "--quiet", "-T0", image, tree)
        else:
            run("mksquashfs", tree, image, "-all-time", "0", "-mkfs-time", "0")
        images[content] = image
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        first.enter_context(mounted_image(images[b"one"], place, "-o", "ro"))
        socket = str(base / "s")
        daemon = RunningDaemon({base.name: place}, Path(socket), virtiofsd)
        stack.enter_context(daemon)
        exports = Exports([place], stack.enter_context(Client.connect(socket)))
        exports.expect(b"one")
        first.close()
        with mounted_image(images[b"two"], place, "-o", "ro"):
            exports.expect(b"two")
