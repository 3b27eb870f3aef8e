"""Whether somebody listens on a unix socket, found out without a connection to it.

A virtiofsd takes one connection in its life, and systemd starts a daemon for one. The kernel tells
by netlink (unix_diag, ``linux/unix_diag.h``), of the sockets in this process's network namespace.
What pyroute2 needs for that is as much memory again as the daemon has, so this is for ``vuserd
check``. The daemon connects to a socket that it adopts: where nobody listens that costs nothing.
"""

import os
import socket


def is_listened_on(path: str) -> bool | None:
    """Tell whether a socket in this network namespace listens on ``path``; None: nobody tells."""
    from pyroute2 import DiagSocket, NetlinkError  # it takes a quarter of a second
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
    # Of the inode there are 32 bits, of the device what the kernel has inside (linux/kdev_t.h).
    wanted = (
        os.major(status.st_dev) << 20 | os.minor(status.st_dev),
        status.st_ino & 0xFFFFFFFF,
    )
    return wanted in [
        (file["udiag_vfs_dev"], file["udiag_vfs_ino"]) for file in files if file is not None
    ]
