"""Path resolution, all of it on this side of the socket, and never out of the export.

One component a LOOKUP; "." and ".." and slashes never reach the backend. Like openat2(2) with
RESOLVE_IN_ROOT: ".." stops at the root, an absolute symlink begins there, and 40 symlinks are the
most that one path may cross.
"""

import errno
import stat
from collections import deque
from collections.abc import Callable
from typing import Final

from protocol.fuse import NAME_MAX
from vuserd.device.procedure import Procedure
from vuserd.errors import FileError
from vuserd.fs.nodes import Node

#: Linux's limits: a path with its NUL, and the symlinks in it.
PATH_MAX: Final = 4096
MAX_SYMLINKS: Final = 40

Lookup = Callable[[Node, bytes], Procedure[Node]]
Readlink = Callable[[Node], Procedure[bytes]]


def components(path: bytes) -> list[bytes]:
    """Split a path; a slash at its end leaves an empty component, which asks for a directory.

    Raises:
        FileError: EINVAL for a NUL, ENAMETOOLONG for what Linux would not take.

    """
    if b"\0" in path:
        raise FileError(errno.EINVAL, "a path cannot contain a NUL byte")
    if len(path) >= PATH_MAX:
        raise FileError(errno.ENAMETOOLONG)
    names = path.lstrip(b"/").split(b"/")
    if max(map(len, names)) > NAME_MAX:
        raise FileError(errno.ENAMETOOLONG)
    return names


def resolve(
    directories: list[Node], path: list[bytes], *, follow: bool, lookup: Lookup, readlink: Readlink
) -> Procedure[Node]:
    """Walk ``path``; return the node it leads to. The empty path is the root.

    Args:
        directories: the way to where it begins: the export's root directory, then those below it.
        path: its :func:`components`.
        follow: whether a symlink at the path's end is followed, as one with a slash always is.
        lookup: finds a name in a directory.
        readlink: reads a symlink's target.

    Raises:
        FileError: ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG, or what the backend says.

    """
    ahead = deque(path)
    symlinks = 0
    while ahead:
        name = ahead.popleft()
        here = directories[-1]
        if not stat.S_ISDIR(here.attributes.mode):
            raise FileError(errno.ENOTDIR)
        if name in (b"", b"."):
            continue
        if name == b"..":
            if len(directories) > 1:
                directories.pop()
            continue
        node = yield from lookup(here, name)
        if stat.S_ISLNK(node.attributes.mode) and (ahead or follow):
            symlinks += 1
            if symlinks > MAX_SYMLINKS:
                raise FileError(errno.ELOOP)
            target = yield from readlink(node)
            if not target:  # as path_resolution(7) has it
                raise FileError(errno.ENOENT, "a symbolic link with an empty target")
            if target.startswith(b"/"):
                del directories[1:]
            ahead.extendleft(reversed(components(target)))
            continue
        directories.append(node)
    return directories[-1]
