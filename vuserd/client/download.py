"""``vuserctl get`` and ``cat``: a file to a file, whole or not at all; or to standard output."""

import os
import stat as modes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vuserd.client.output import printable
from vuserd.client.place import new_file, open_directory
from vuserd.client.records import Stat
from vuserd.client.sync_client import Client
from vuserd.client.target import Target
from vuserd.client.transfer import Progress


def cat(client: Client, target: Target, progress: Progress | None = None) -> None:
    """Write a file to standard output, with no more of it in memory than is in flight."""
    output = sys.stdout.buffer
    sys.stdout.flush()

    def write(payload: memoryview) -> None:
        while payload:  # with PYTHONUNBUFFERED one write may take a part
            payload = payload[output.write(payload) :]

    client.stream(target.export, target.path, write, progress=progress)
    output.flush()


def get(client: Client, target: Target, destination: str | None) -> None:
    """Fetch a file to ``destination``: a file, a directory, or '-' for standard output.

    The new file has the other's modification time, and its permissions as far as the umask allows.
    A destination that is no regular file (a device, a pipe) is written to, never replaced. One that
    ends in a slash is a directory, and has to be there.
    """
    if destination == "-":
        with progress_bar(target.name) as progress:
            cat(client, target, progress)
        return
    local = local_path(target, destination)
    if destination is not None and destination.endswith("/"):
        local = os.path.join(destination, target.name)
    fetch = _fetch_into if os.path.exists(local) and not _is_named_file(local) else _fetch_beside
    try:
        with progress_bar(target.name) as progress:
            fetch(client, target, local, progress)
    except OSError as error:  # about the user's name for it, not that of a temporary file
        raise OSError(error.errno, error.strerror, local) from None


def local_path(target: Target, destination: str | None) -> str:
    """Give where a target goes, as cp has it: into a directory that is there, else to that name."""
    if destination is None:
        return target.name
    return os.path.join(destination, target.name) if os.path.isdir(destination) else destination


def _is_named_file(path: str) -> bool:
    """Tell whether a path leads to a regular file that has a name, where another can take it.

    What /dev/fd/N leads to may have none: a link such as 'pipe:[42]' or '/tmp/x (deleted)'.
    """
    real = os.path.realpath(path)
    return os.path.isfile(real) and os.path.samefile(path, real)


def _fetch_into(client: Client, target: Target, path: str, progress: Progress | None) -> None:
    with open(path, "wb") as device:
        client.stream(target.export, target.path, device.write, progress=progress)


def _fetch_beside(client: Client, target: Target, path: str, progress: Progress | None) -> None:
    stat = client.stat(target.export, target.path)
    # As cp does: what a symlink leads to is replaced, not the link.
    parent, name = os.path.split(os.path.realpath(path))
    directory = open_directory(parent)
    try:
        fetch_new(client, target, stat, directory, name, progress)
    finally:
        os.close(directory)


def fetch_new(
    client: Client,
    target: Target,
    stat: Stat,
    directory: int,
    name: str,
    progress: Progress | None,
) -> int:
    """Fetch a file that had the attributes ``stat`` to ``name`` in a directory; give its size."""
    with new_file(directory, name, modes.S_IMODE(stat.mode) & 0o777) as fileno:
        found = client.download(target.export, target.path, fileno, progress=progress)
        os.utime(fileno, ns=(stat.atime_ns, found.mtime_ns))
    return found.size


@contextmanager
def progress_bar(name: str) -> Iterator[Progress | None]:
    """Show progress while someone may be looking: give None where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no thread
    with tqdm(desc=printable(name), unit="B", unit_scale=True, unit_divisor=1024) as bar:

        def show(there: int, total: int) -> None:
            bar.total = total
            bar.update(there - bar.n)

        yield show
