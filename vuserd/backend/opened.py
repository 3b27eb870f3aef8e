"""Which directory a backend has opened, as the kernel tells of its process (proc(5)).

A backend opens its directory by name. Between the look at a path and that, whoever may change a
folder on the way can lead it elsewhere: so what it came to open is compared with what was looked
at, before anything is asked of it. Until then it has done nothing but start, and is believed.
"""

import os

#: Sandboxes in which the directory is the root of the process; in the others it has it open.
_AT_ROOT = ("namespace", "chroot")


def has_opened(process: int, sandbox: str, device: int, inode: int) -> bool:
    """Tell whether a process serves this directory. This may wait for a file system.

    Raises:
        OSError: the process is not there any more, or is not this user's to look at.

    """
    if sandbox in _AT_ROOT:
        return _is(f"/proc/{process}/root", device, inode)
    folder = f"/proc/{process}/fd"
    return any(_is(f"{folder}/{each}", device, inode) for each in os.listdir(folder))


def _is(link: str, device: int, inode: int) -> bool:
    try:
        status = os.stat(link)
    except FileNotFoundError:  # a descriptor that was closed meanwhile
        return False
    return (status.st_dev, status.st_ino) == (device, inode)
