"""The file systems that vuserd is tried on, each made for the test and filled with the same tree.

A ground that this machine cannot have is left out by name: :class:`Ground` says what it takes.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tests.systems.mounting import (
    kernel_has,
    make_image,
    mounted,
    mounted_image,
    overlay,
    run,
)
from tests.systems.oddtree import copied, odd_file_system
from tests.systems.trees import fill


class Ground(NamedTuple):
    """A file system: the kernel's name for it, what makes one, and how it is mounted and filled.

    ``mount`` takes a folder for what it needs, and the place, which is there.
    """

    filesystem: str
    tool: str | None  #: a program of Debian's
    mount: Callable[[Path, Path], AbstractContextManager[object]]

    def lacking(self) -> str | None:
        """Return what the running kernel lacks, if anything."""
        return None if kernel_has(self.filesystem) else f"the kernel has no {self.filesystem}"

    def not_installed(self) -> str | None:
        """Return what could be installed, if anything."""
        if self.tool is None or shutil.which(self.tool):
            return None
        return f"no program {self.tool}"


def _made(
    megabytes: int, *command: str, posix: bool = True
) -> Callable[[Path, Path], AbstractContextManager[None]]:
    """Return what makes a file system and fills it once it is mounted."""

    @contextmanager
    def mount(folder: Path, place: Path) -> Iterator[None]:
        image = make_image(folder / "image", megabytes, *command)
        with mounted_image(image, place):
            fill(place, posix=posix)
            yield

    return mount


def _packed(
    *command: str, image_first: bool = False, longest: int = 255
) -> Callable[[Path, Path], AbstractContextManager[None]]:
    """Return what packs a folder as an image."""

    @contextmanager
    def mount(folder: Path, place: Path) -> Iterator[None]:
        tree, image = folder / "tree", folder / "image"
        tree.mkdir()
        fill(tree, longest=longest)
        run(*command, *((image, tree) if image_first else (tree, image)))
        with mounted_image(image, place, "-o", "ro"):
            yield

    return mount


@contextmanager
def _btrfs(folder: Path, place: Path) -> Iterator[None]:
    """Add a subvolume, its snapshot, and a file that shares its blocks with another one."""
    with mounted_image(make_image(folder / "image", 128, "mkfs.btrfs", "--quiet"), place):
        fill(place)
        run("btrfs", "subvolume", "create", place / "subvolume")
        run("cp", "--reflink=always", place / "sizes/1048575", place / "subvolume/shared")
        run("btrfs", "subvolume", "snapshot", place / "subvolume", place / "snapshot")
        (place / "subvolume/shared").write_bytes(b"its own by now")
        yield


@contextmanager
def _tmpfs(_: Path, place: Path) -> Iterator[None]:
    with mounted("-t", "tmpfs", "-o", "size=64M", "tmpfs", place):
        fill(place)
        yield


@contextmanager
def _overlay(folder: Path, place: Path) -> Iterator[None]:
    """Make files in the lower layer, in the upper one, in both, and removed ones."""
    (folder / "lower").mkdir()
    fill(folder / "lower")
    with overlay(folder, place):
        for number in range(0, 300, 3):
            (place / f"many/entry-{number:04}").unlink()
            (place / f"many/new-{number:04}").write_bytes(b"upper")
        (place / "sizes/4097").write_bytes(os.urandom(4097))
        shutil.rmtree(place / "deep-0" / "deep-1")
        (place / "deep-0" / "deep-1").mkdir()  # an opaque directory
        yield


@contextmanager
def _bound(folder: Path, place: Path) -> Iterator[None]:
    """Bind a directory, and a single file on one in there."""
    tree = folder / "tree"
    tree.mkdir()
    fill(tree)
    (folder / "other").write_bytes(b"of another place")
    (tree / "bound").write_bytes(b"below")
    with mounted("--bind", tree, place), mounted("--bind", folder / "other", place / "bound"):
        yield


@contextmanager
def _fuse(folder: Path, place: Path) -> Iterator[None]:
    tree = folder / "tree"
    tree.mkdir()
    fill(tree)
    with odd_file_system(place, copied(os.fsencode(tree))):
        yield


GROUNDS: Final = {
    "ext4-128": Ground("ext4", "mkfs.ext4", _made(64, "mkfs.ext4", "-q", "-I", "128")),
    "ext4-256": Ground("ext4", "mkfs.ext4", _made(64, "mkfs.ext4", "-q", "-I", "256")),
    "xfs": Ground("xfs", "mkfs.xfs", _made(320, "mkfs.xfs", "-q")),
    "btrfs": Ground("btrfs", "mkfs.btrfs", _btrfs),
    "squashfs": Ground("squashfs", "mksquashfs", _packed("mksquashfs")),
    # mkfs.erofs 1.5, of Debian 12, fails on a name of 255 bytes.
    "erofs": Ground("erofs", "mkfs.erofs", _packed("mkfs.erofs", image_first=True, longest=200)),
    "tmpfs": Ground("tmpfs", None, _tmpfs),
    "overlay": Ground("overlay", None, _overlay),
    "bind": Ground("tmpfs", None, _bound),
    "fuse": Ground("fuse", None, _fuse),
    "vfat": Ground("vfat", "mkfs.vfat", _made(64, "mkfs.vfat", posix=False)),
    "exfat": Ground("exfat", "mkfs.exfat", _made(64, "mkfs.exfat", "--quiet", posix=False)),
    "f2fs": Ground("f2fs", "mkfs.f2fs", _made(128, "mkfs.f2fs", "-q")),
    "ntfs3": Ground("ntfs3", "mkfs.ntfs", _made(64, "mkfs.ntfs", "-F", "-Q", "-q", posix=False)),
}
