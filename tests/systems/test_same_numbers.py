"""Files of two file systems that agree in inode number, size and times, and not in their bytes.

Images that are made reproducibly do, and so do subvolumes. Each of these files is delivered with
its own bytes, below one export and one after the other in one place.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.e2e.ways import WAYS, FailedCommandError, Served
from tests.running import RunningDaemon
from tests.systems.conftest import without
from tests.systems.mounting import (
    kernel_has,
    make_image,
    mounted,
    mounted_image,
    run,
    shared_folder,
)
from vuserd.client import Client, TrioClient
from vuserd.client.errors import RemoteError

#: Of the larger one: sent by several calls, through memory that is lent.
_LARGE: Final = 9 << 20
_NAMES: Final = ("Image", "folder/large")
_PACKERS: Final = {
    "erofs": ("mkfs.erofs", "--quiet", "-T0"),
    "squashfs": ("mksquashfs", "-all-time", "0", "-mkfs-time", "0", "-noD", "-noI", "-noF"),
}


class Image(NamedTuple):
    """A file-system image, and the bytes of each file in it."""

    path: Path
    contents: dict[str, bytes]


@pytest.fixture(scope="module", params=_PACKERS)
def images(request: pytest.FixtureRequest, _root: None) -> Iterator[tuple[Image, Image]]:
    """Yield two images that only differ in the bytes of their files."""
    kind: str = request.param
    command = _PACKERS[kind]
    if not kernel_has(kind):
        pytest.skip(f"the kernel has no {kind}")
    if shutil.which(command[0]) is None:
        without(f"no program {command[0]}")
    with shared_folder("images") as folder:
        made = []
        for which in (b"ONE", b"TWO"):
            tree, path = folder / which.decode(), folder / f"{which.decode()}.img"
            (tree / "folder").mkdir(parents=True)
            sizes = (100, _LARGE)
            contents = {name: which * (n // 3) for name, n in zip(_NAMES, sizes, strict=True)}
            for name, content in contents.items():
                (tree / name).write_bytes(content)
            if kind == "erofs":
                run(*command, path, tree)
            else:
                run(command[0], tree, path, *command[1:])
            made.append(Image(path, contents))
        yield made[0], made[1]


@contextmanager
def serving(folder: Path, virtiofsd: str) -> Iterator[Served]:
    """Serve what is below ``folder``; the socket is beside it."""
    socket = folder.parent / f"{folder.name}.socket"
    exports = {"files": folder}
    with RunningDaemon(exports, socket, virtiofsd), Client.connect(str(socket)) as client:
        yield Served(client, str(socket))


def numbers(path: Path) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def wrong_ways(served: Served, expected: dict[str, bytes], *, told: bool = False) -> list[str]:
    """Take each file in every way; return what came wrong. With ``told`` CHANGED is right, too."""
    wrong = []
    for way in WAYS:
        for path, content in expected.items():
            try:
                found = way(served, path)
            except (RemoteError, FailedCommandError) as error:
                if not (told and "(CHANGED)" in str(error)):
                    wrong.append(f"{way.__name__} {path}: {error}")
                continue
            if found != content:
                wrong.append(f"{way.__name__} {path}: {len(found)} bytes, {found[:3]!r}")
    return wrong


def test_side_by_side(base: Path, images: tuple[Image, Image], virtiofsd: str) -> None:
    export = base / "export"
    expected: dict[str, bytes] = {}
    with ExitStack() as stack:
        for place, image in zip(("a", "b"), images, strict=True):
            (export / place).mkdir(parents=True)
            stack.enter_context(mounted_image(image.path, export / place, "-o", "ro"))
            expected |= {f"{place}/{name}": content for name, content in image.contents.items()}
        for name in _NAMES:
            assert numbers(export / "a" / name) == numbers(export / "b" / name)
        with serving(export, virtiofsd) as served:
            assert wrong_ways(served, expected) == []


def test_one_after_the_other(base: Path, images: tuple[Image, Image], virtiofsd: str) -> None:
    """In one place, and so on the same device: while the daemon runs, and has taken the first."""
    place = base / "export" / "place"
    place.mkdir(parents=True)
    with serving(place.parent, virtiofsd) as served:
        for image in (*images, images[0]):
            with mounted_image(image.path, place, "-o", "ro"):
                expected = {f"place/{name}": content for name, content in image.contents.items()}
                assert wrong_ways(served, expected) == []


def test_single_files_that_are_bound(
    base: Path, images: tuple[Image, Image], virtiofsd: str
) -> None:
    export = base / "export"
    export.mkdir()
    with ExitStack() as stack:
        for number, image in enumerate(images):
            (base / f"mount-{number}").mkdir()
            place = stack.enter_context(
                mounted_image(image.path, base / f"mount-{number}", "-o", "ro")
            )
            (export / f"file-{number}").touch()
            stack.enter_context(mounted("--bind", place / "Image", export / f"file-{number}"))
        (export / "in turn").touch()
        assert numbers(export / "file-0") == numbers(export / "file-1")
        expected = {
            f"file-{number}": image.contents["Image"] for number, image in enumerate(images)
        }
        with serving(export, virtiofsd) as served:
            assert wrong_ways(served, expected) == []
            for number in (0, 1, 0):
                source = base / f"mount-{number}" / "Image"
                with mounted("--bind", source, export / "in turn"):
                    current = {"in turn": images[number].contents["Image"]}
                    assert wrong_ways(served, current) == []


@pytest.mark.parametrize("kind", ["stream", "download"])
def test_another_image_while_a_file_is_taken(
    base: Path, images: tuple[Image, Image], virtiofsd: str, kind: str
) -> None:
    """What began with the one is never ended with the other."""
    place = base / "export" / "place"
    place.mkdir(parents=True)
    one, two = images
    with serving(place.parent, virtiofsd) as served, ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        first.enter_context(mounted_image(one.path, place, "-o", "ro"))
        switched = False

        def switch(_there: int, _size: int) -> None:
            nonlocal switched
            if not switched:
                switched = True
                first.close()
                stack.enter_context(mounted_image(two.path, place, "-o", "ro"))

        content = _taken(served, kind, switch)
        assert content is None or content in [image.contents["folder/large"] for image in images]
        assert switched


def _taken(served: Served, kind: str, progress: Callable[[int, int], None]) -> bytes | None:
    """Take the large file; None where it is told to have changed."""
    path = "place/folder/large"
    with tempfile.TemporaryFile() as copy:
        try:
            if kind == "stream":
                served.client.stream("files", path, copy.write, progress=progress)
            else:
                served.client.download("files", path, copy.fileno(), progress=progress)
        except RemoteError as error:
            if error.code != "CHANGED":
                raise
            return None
        copy.seek(0)
        return copy.read()


def test_subvolumes(base: Path, virtiofsd: str) -> None:
    """Those of btrfs count their inodes each for itself."""
    if not kernel_has("btrfs"):
        pytest.skip("the kernel has no btrfs")
    if shutil.which("mkfs.btrfs") is None:
        without("no program mkfs.btrfs")
    export = base / "export"
    export.mkdir()
    with mounted_image(make_image(base / "image", 128, "mkfs.btrfs", "--quiet"), export):
        paths = [export / name / "Image" for name in ("one", "two")]
        for path in paths:
            run("btrfs", "subvolume", "create", path.parent)
            path.write_bytes(path.parent.name.encode() * 10_000)
        for _ in range(1000):  # until both fall into one tick of the clock
            for path in paths:
                os.utime(path, ns=(10**18, 10**18))
            if numbers(paths[0]) == numbers(paths[1]):
                break
        assert numbers(paths[0]) == numbers(paths[1])
        run("btrfs", "subvolume", "snapshot", "-r", export / "one", export / "snapshot")
        with serving(export, virtiofsd) as served:
            expected = {f"{name}/Image": name.encode() * 10_000 for name in ("one", "two")}
            expected["snapshot/Image"] = expected["one/Image"]
            assert wrong_ways(served, expected) == []
            paths[0].write_bytes(b"eno" * 10_000)
            expected["one/Image"] = b"eno" * 10_000
            assert wrong_ways(served, expected) == []


async def test_the_trio_client_takes_each_for_itself(
    base: Path, images: tuple[Image, Image], virtiofsd: str
) -> None:
    """Several at once over one connection."""
    export = base / "export"
    with ExitStack() as stack:
        for place, image in zip(("a", "b"), images, strict=True):
            (export / place).mkdir(parents=True)
            stack.enter_context(mounted_image(image.path, export / place, "-o", "ro"))
        served = stack.enter_context(serving(export, virtiofsd))
        async with TrioClient.connect(served.socket) as client:
            for place, image in (("a", images[0]), ("b", images[1]), ("a", images[0])):
                with await client.fetch("files", f"{place}/Image") as taken, taken.buffer() as view:
                    assert bytes(view) == image.contents["Image"]
