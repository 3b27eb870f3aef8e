"""Find out from proc(5) whether a backend has opened the directory that the daemon checked.

A backend opens its directory by name. After the daemon has checked the path, a user who may change
a folder on the way can still lead the backend elsewhere. So the directory that it has opened is
compared with the checked one before it is asked for anything. Until then the backend has done
nothing but start, and is trusted.
"""

import os

#: Sandboxes in which the directory is the root of the process; in others it is a descriptor.
_AT_ROOT = ("namespace", "chroot")


def has_opened(process: int, sandbox: str, device: int, inode: int) -> bool:
    """Return whether a process serves this directory. This may wait for a file system.

    Raises:
        OSError: the process has ended, or this user may not look at it.

    """
    if sandbox in _AT_ROOT:
        return _is(f"/proc/{process}/root", device, inode)
    folder = f"/proc/{process}/fd"
    return any(_is(f"{folder}/{each}", device, inode) for each in os.listdir(folder))


def _is(link: str, device: int, inode: int) -> bool:
    try:
        status = os.stat(link)
    except FileNotFoundError:  # the descriptor was closed meanwhile
        return False
    return (status.st_dev, status.st_ino) == (device, inode)
