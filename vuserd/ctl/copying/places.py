"""Where a user wants a file: what is at a path says how one gets there."""

import errno
import os
import re
import stat as modes
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Final, NamedTuple

from vuserd.client.errors import ClientError

#: Directories that have a link for each descriptor of a process, such as /dev/fd.
_OF_DESCRIPTORS: Final = re.compile(r"/proc/[0-9]+(/task/[0-9]+)?/fd")


class Way(Enum):
    """How a file gets to its place."""

    BESIDE = "beside"  #: it is written beside, and renamed
    INTO = "into"  #: it is written into the regular file that is there
    DEVICE = "device"  #: it is written to what is there, which is no regular file


class Place(NamedTuple):
    """Where a file goes, and how."""

    way: Way
    path: str  #: where a symlink was, that to which it leads


def place_of(path: str) -> Place:
    """Return where a file goes that is wanted at a path; OSError where none can.

    A symlink is followed, as cp does, where the kernel follows it; one that comes later is not.
    """
    is_link = os.path.islink(path)
    try:
        found = os.stat(path)
    except FileNotFoundError:
        if os.path.basename(path) in ("", ".", ".."):  # the name of a directory alone
            raise
        return Place(Way.BESIDE, os.path.realpath(path) if is_link else path)
    if modes.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not modes.S_ISREG(found.st_mode):
        return Place(Way.DEVICE, path)
    if not _has_name(path):
        return Place(Way.INTO, path)
    return Place(Way.BESIDE, os.path.realpath(path) if is_link else path)


def _has_name(path: str) -> bool:
    """Return whether a path leads to a regular file with a name, under which it can be replaced.

    What /dev/fd/N leads to may have no name (a link such as '/tmp/x (deleted)'). If it has one, the
    user still means the open file, to which other processes may write.
    """
    real = os.path.realpath(path)
    if not (os.path.isfile(real) and os.path.samefile(path, real)):
        return False
    while os.path.islink(path):  # it is no endless loop, or there would be no file
        directory, _ = os.path.split(path)
        if _OF_DESCRIPTORS.fullmatch(os.path.realpath(directory)):
            return False
        path = os.path.join(directory, os.readlink(path))
    return True


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Raise local errors of the block with the user's name, and not with a temporary file's."""
    try:
        yield
    except ClientError:  # which may be an OSError, too
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), path) from None
