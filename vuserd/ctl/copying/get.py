"""``vuserctl get`` and ``cat``: fetch a file whole or not at all, or to standard output."""

import errno
import os
import sys
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from vuserd.client.core.procedure import Progress
from vuserd.client.errors import RemoteError
from vuserd.client.records import Stat
from vuserd.client.sync_client import Client
from vuserd.ctl.copying.atomic_file import new_file, open_directory, open_existing, set_times
from vuserd.ctl.copying.how import How
from vuserd.ctl.copying.places import Way, naming, place_of
from vuserd.ctl.copying.progress import progress_of_file
from vuserd.ctl.target import Target
from vuserd.service.standard_streams import require_output


def cat(client: Client, target: Target, progress: Progress | None = None) -> None:
    """Write a file to standard output, keeping in memory only what is in flight."""
    require_output()
    output = sys.stdout.buffer
    sys.stdout.flush()

    def write(payload: memoryview) -> None:
        while payload:  # with PYTHONUNBUFFERED a write may take only a part
            payload = payload[output.write(payload) :]

    client.stream(target.export, target.path, write, progress=progress)
    output.flush()


def get(client: Client, target: Target, destination: str | None, how: How) -> None:
    """Fetch a file to ``destination``: a file, a directory, or '-' for standard output.

    The new file has the source's modification time, and its permissions less the umask. A
    destination that is not a regular file (a device, a pipe) is written to, never replaced. One
    that ends in a slash is a directory, which has to exist.
    """
    if destination == "-":
        if how.dry_run:
            _stat_of_file(client, target)
            how.tell(target, destination)
            return
        with progress_of_file(target.name, quiet=how.no_progress) as progress:
            cat(client, target, progress)
        return
    local = local_path(target, destination)
    if destination is not None and destination.endswith("/"):
        local = os.path.join(destination, target.name)
    stat = _stat_of_file(client, target)  # before any file is opened or emptied
    try:
        with naming(local):
            place = place_of(local)
            if how.is_current(stat, local):
                return
            if not how.dry_run:
                with progress_of_file(target.name, quiet=how.no_progress) as progress:
                    fetch = _WAYS[place.way]
                    fetch(client, target, stat, place.path, _Fetch(how, progress))
    except (OverflowError, ValueError) as error:  # attributes that no local file can have
        raise OSError(errno.EINVAL, str(error), local) from None
    how.tell(target, local)


def _stat_of_file(client: Client, target: Target) -> Stat:
    stat = client.stat(target.export, target.path)
    if stat.type == "dir":
        raise RemoteError("EISDIR", "a directory, which is fetched with -r")
    return stat


class _Fetch(NamedTuple):
    """How one file is fetched."""

    how: How
    progress: Progress | None = None


def local_path(target: Target, destination: str | None) -> str:
    """Return where a target goes, as with cp: into an existing directory, else to that name."""
    if destination is None:
        return target.name
    return os.path.join(destination, target.name) if os.path.isdir(destination) else destination


def _fetch_to_device(client: Client, target: Target, _stat: Stat, path: str, fetch: _Fetch) -> None:
    # Without O_CREAT, with which another user's pipe in a sticky directory cannot be opened.
    with open(os.open(path, os.O_WRONLY | os.O_CLOEXEC), "wb") as device:
        client.stream(target.export, target.path, device.write, progress=fetch.progress)


def _fetch_into(client: Client, target: Target, stat: Stat, path: str, fetch: _Fetch) -> None:
    with open(open_existing(path, stat), "wb") as file:
        _download(client, target, stat, file.fileno(), fetch)


def _fetch_beside(client: Client, target: Target, stat: Stat, path: str, fetch: _Fetch) -> None:
    parent, name = os.path.split(path)
    directory = open_directory(parent or ".")
    try:
        fetch_new(client, target, stat, directory, name, *fetch)
    finally:
        os.close(directory)


#: Fetches a file to a path; the Stat is what ``stat`` returned just before.
_WAYS: Final[Mapping[Way, Callable[[Client, Target, Stat, str, _Fetch], object]]] = {
    Way.BESIDE: _fetch_beside,
    Way.INTO: _fetch_into,
    Way.DEVICE: _fetch_to_device,
}


def fetch_new(
    client: Client,
    target: Target,
    stat: Stat,
    directory: int,
    name: str,
    how: How,
    progress: Progress | None = None,
) -> int:
    """Fetch a file, with attributes ``stat``, to ``name`` in a directory; return its size."""
    with new_file(directory, name, stat.mode & 0o777, stat) as fileno:
        return _download(client, target, stat, fileno, _Fetch(how, progress))


def _download(client: Client, target: Target, stat: Stat, fileno: int, fetch: _Fetch) -> int:
    grows = fetch.how.growing
    found = client.download(*target, fileno, progress=fetch.progress, grows=grows)
    fetch.how.set_permissions(fileno, stat)
    set_times(fileno, stat.atime_ns, found.mtime_ns)
    return found.size
