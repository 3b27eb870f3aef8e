"""``vuserctl get`` and ``cat``: a file to a file, whole or not at all; or to standard output."""

import errno
import os
import re
import stat as modes
import sys
from collections.abc import Callable
from typing import Final, NamedTuple

from vuserd.client.errors import RemoteError
from vuserd.client.records import Stat
from vuserd.client.sync_client import Client
from vuserd.client.wholefile import Progress
from vuserd.ctl.copying.atomic_file import new_file, open_directory, open_existing, set_times
from vuserd.ctl.copying.progress import progress_of_file
from vuserd.ctl.target import Target
from vuserd.service.standard_streams import require_output

#: Directories with a link for each descriptor of a process, /dev/fd among them.
_OF_DESCRIPTORS: Final = re.compile(r"/proc/[0-9]+(/task/[0-9]+)?/fd")


def cat(client: Client, target: Target, progress: Progress | None = None) -> None:
    """Write a file to standard output, with no more of it in memory than is in flight."""
    require_output()
    output = sys.stdout.buffer
    sys.stdout.flush()

    def write(payload: memoryview) -> None:
        while payload:  # with PYTHONUNBUFFERED one write may take a part
            payload = payload[output.write(payload) :]

    client.stream(target.export, target.path, write, progress=progress)
    output.flush()


class How(NamedTuple):
    """How a file is fetched."""

    progress: Progress | None = None
    #: Whether of a file that grows meanwhile what stood there in the beginning will do.
    grows: bool = False


def get(client: Client, target: Target, destination: str | None, *, grows: bool = False) -> None:
    """Fetch a file to ``destination``: a file, a directory, or '-' for standard output.

    The new file has the other's modification time, and its permissions as far as the umask allows.
    A destination that is no regular file (a device, a pipe) is written to, never replaced. One that
    ends in a slash is a directory, and has to be there.
    """
    if destination == "-":
        with progress_of_file(target.name) as progress:
            cat(client, target, progress)
        return
    local = local_path(target, destination)
    if destination is not None and destination.endswith("/"):
        local = os.path.join(destination, target.name)
    try:
        fetch = _way_to(local)
        stat = client.stat(target.export, target.path)  # before anything is opened, or emptied
        with progress_of_file(target.name) as progress:
            fetch(client, target, stat, local, How(progress, grows))
    except RemoteError:  # which may be an OSError, too
        raise
    except OSError as error:  # about the user's name for it, not that of a temporary file
        raise OSError(error.errno, error.strerror or str(error), local) from None
    except (OverflowError, ValueError) as error:  # attributes that no file here can have
        raise OSError(errno.EINVAL, str(error), local) from None


def local_path(target: Target, destination: str | None) -> str:
    """Give where a target goes, as cp has it: into a directory that is there, else to that name."""
    if destination is None:
        return target.name
    return os.path.join(destination, target.name) if os.path.isdir(destination) else destination


#: Fetches a file, with the attributes that it had a moment ago, to a path.
_Way = Callable[[Client, Target, Stat, str, How], object]


def _way_to(path: str) -> _Way:
    """Choose how a file gets to a path; OSError where none can."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return _fetch_beside
    if modes.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not modes.S_ISREG(found.st_mode):
        return _fetch_to_device
    return _fetch_beside if _is_named_file(path) else _fetch_into


def _is_named_file(path: str) -> bool:
    """Tell whether a path leads to a regular file that has a name, where another can take it.

    What /dev/fd/N leads to may have none (a link such as '/tmp/x (deleted)'), and where it has one
    it is the open file that is meant: others write to it.
    """
    real = os.path.realpath(path)
    if not (os.path.isfile(real) and os.path.samefile(path, real)):
        return False
    while os.path.islink(path):  # an end it has, or there were no file
        directory, _ = os.path.split(path)
        if _OF_DESCRIPTORS.fullmatch(os.path.realpath(directory)):
            return False
        path = os.path.join(directory, os.readlink(path))
    return True


def _fetch_to_device(client: Client, target: Target, _stat: Stat, path: str, how: How) -> None:
    # Without O_CREAT, as which others' pipes in a sticky directory must not be opened.
    with open(os.open(path, os.O_WRONLY | os.O_CLOEXEC), "wb") as device:
        client.stream(target.export, target.path, device.write, progress=how.progress)


def _fetch_into(client: Client, target: Target, stat: Stat, path: str, how: How) -> None:
    with open(open_existing(path, stat), "wb") as file:
        found = client.download(target.export, target.path, file.fileno(), **how._asdict())
        set_times(file.fileno(), stat.atime_ns, found.mtime_ns)


def _fetch_beside(client: Client, target: Target, stat: Stat, path: str, how: How) -> None:
    # As cp does: what a symlink leads to is replaced, not the link.
    parent, name = os.path.split(os.path.realpath(path))
    directory = open_directory(parent)
    try:
        fetch_new(client, target, stat, directory, name, how)
    finally:
        os.close(directory)


def fetch_new(
    client: Client,
    target: Target,
    stat: Stat,
    directory: int,
    name: str,
    how: How,
) -> int:
    """Fetch a file that had the attributes ``stat`` to ``name`` in a directory; give its size."""
    with new_file(directory, name, stat.mode & 0o777, stat) as fileno:
        found = client.download(target.export, target.path, fileno, **how._asdict())
        set_times(fileno, stat.atime_ns, found.mtime_ns)
    return found.size
