"""Find out whether a process listens on a unix socket, without connecting to it.

A connection would use up a virtiofsd, which takes a single one in its life, or make systemd start a
daemon. Instead the kernel is asked by netlink (unix_diag, ``linux/unix_diag.h``), which knows the
sockets of this process's network namespace.

pyroute2 takes as much memory for that as the whole daemon, so only ``vuserd check`` does it. The
daemon simply connects to a socket that it adopts: where no process listens, that costs nothing.
"""

import os
import socket


def is_listened_on(path: str) -> bool | None:
    """Return whether a socket in this network namespace listens on ``path``; None if unknown."""
    from pyroute2 import DiagSocket, NetlinkError  # importing it takes a quarter of a second
    from pyroute2.netlink.diag import SS_LISTEN, UDIAG_SHOW_VFS

    try:
        status = os.stat(path)
        with DiagSocket() as diag:
            listening = diag.get_sock_stats(
                family=socket.AF_UNIX, states=1 << SS_LISTEN, show=UDIAG_SHOW_VFS
            )
            files = [each.get_attr("UNIX_DIAG_VFS") for each in listening]
    except FileNotFoundError:
        return False
    except (OSError, NetlinkError):  # a kernel without unix_diag, say
        return None
    # The inode has 32 bits here, the device the kernel's own encoding (linux/kdev_t.h).
    wanted = (
        os.major(status.st_dev) << 20 | os.minor(status.st_dev),
        status.st_ino & 0xFFFFFFFF,
    )
    return wanted in [
        (file["udiag_vfs_dev"], file["udiag_vfs_ino"]) for file in files if file is not None
    ]
