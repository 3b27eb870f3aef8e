"""Mounts for the time of a block: on loop devices, bound, in memory; undone on every path.

Everything is mounted below a :func:`shared_folder`, whose mounts reach the backends' own namespaces
as they do where systemd has made the root shared.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_LIST: Final = Path("/proc/filesystems")


class MountFailedError(Exception):
    """A command about a file system failed; the message is what it said."""


def run(*command: str | Path) -> str:
    """Run a command; return what it printed.

    Raises:
        MountFailedError: it is not there, or ended with another status than 0.

    """
    try:
        done = subprocess.run(
            [*map(str, command)],
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",  # some print the names of files
            check=False,
            timeout=60,
        )
    except FileNotFoundError as error:
        raise MountFailedError(f"no program {command[0]}") from error
    if done.returncode:
        raise MountFailedError(f"{command[0]}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def kernel_has(filesystem: str) -> bool:
    """Return whether the running kernel can mount a file system, if need be with a module."""
    if not _is_listed(filesystem):
        with contextlib.suppress(MountFailedError):
            run("modprobe", "--quiet", filesystem)
    return _is_listed(filesystem)


def _is_listed(filesystem: str) -> bool:
    return any(line.split()[-1] == filesystem for line in _LIST.read_text().splitlines())


@contextmanager
def shared_folder(name: str) -> Iterator[Path]:
    """Yield a new folder whose later mounts propagate; remove it unless it has mounts below."""
    folder = Path(tempfile.mkdtemp(prefix=f"vuserd-{name}-"))
    folder.chmod(0o755)
    try:
        with mounted("--bind", folder, folder):
            run("mount", "--make-rshared", folder)
            yield folder
    finally:
        if not is_mounted_below(folder):  # or what is removed would be another file system's
            shutil.rmtree(folder)


def is_mounted_below(folder: Path) -> bool:
    """Return whether anything is mounted on a folder or below it."""
    places = [
        line.split()[4]
        for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    ]
    return any(place == str(folder) or place.startswith(f"{folder}/") for place in places)


@contextmanager
def mounted(*arguments: str | Path) -> Iterator[Path]:
    """Call ``mount`` with arguments, the last of which is the place; unmounted after the block.

    Lazily: where a test fails, a daemon may still hold what is in there.
    """
    place = Path(arguments[-1])
    run("mount", *arguments)
    try:
        yield place
    finally:
        # Failing tests and those of unmounting leave nothing there: that is as good.
        with contextlib.suppress(MountFailedError):
            run("umount", "--lazy", place)


@contextmanager
def loop_device(image: Path, *options: str) -> Iterator[str]:
    """Yield a block device with the content of a file."""
    device = run("losetup", "--find", "--show", *options, image).strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)  # once the last mount is gone


@contextmanager
def mounted_image(image: Path, place: Path, *options: str) -> Iterator[Path]:
    """Mount the file system that a file holds."""
    readonly = ("--read-only",) if "ro" in ",".join(options).split(",") else ()
    with loop_device(image, *readonly) as device, mounted(*options, device, place):
        yield place


@contextmanager
def overlay(folder: Path, place: Path) -> Iterator[tuple[Path, Path]]:
    """Mount an overlay; give its lower and its upper directory, which are made in ``folder``."""
    lower, upper, work = (folder / name for name in ("lower", "upper", "work"))
    for directory in (lower, upper, work, place):
        directory.mkdir(exist_ok=True, parents=True)
    layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
    with mounted("-t", "overlay", "-o", layers, "overlay", place):
        yield lower, upper


def make_image(path: Path, megabytes: int, *command: str | Path) -> Path:
    """Make a file of zeros and call ``mkfs`` on it, whose last argument it is; return it."""
    with open(path, "wb") as image:
        os.truncate(image.fileno(), megabytes << 20)
    run(*command, path)
    return path
