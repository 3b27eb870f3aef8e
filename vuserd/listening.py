"""Whether somebody listens on a unix socket, found out without a connection to it.

A virtiofsd takes one connection in its life, and systemd starts a daemon for one. The kernel tells
by netlink (unix_diag, ``linux/unix_diag.h``), of the sockets in this process's network namespace.
What pyroute2 needs for that is as much memory again as the daemon has, so this is for ``vuserd
check``. The daemon connects to a socket that it adopts: where nobody listens that costs nothing.
"""

import os
import socket


def is_listened_on(path: str) -> bool:
    """Tell whether a socket in this network namespace listens on what is at ``path``.

    Raises:
        OSError: there is nothing there, or the kernel does not tell.

    """
    from pyroute2 import DiagSocket, NetlinkError  # it takes a quarter of a second
    from pyroute2.netlink.diag import SS_LISTEN, UDIAG_SHOW_VFS

    status = os.stat(path)
    # Of the inode there are 32 bits, of the device what the kernel has inside (linux/kdev_t.h).
    wanted = (
        os.major(status.st_dev) << 20 | os.minor(status.st_dev),
        status.st_ino & 0xFFFFFFFF,
    )
    try:
        with DiagSocket() as diag:
            listening = diag.get_sock_stats(
                family=socket.AF_UNIX, states=1 << SS_LISTEN, show=UDIAG_SHOW_VFS
            )
            files = [each.get_attr("UNIX_DIAG_VFS") for each in listening]
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code)) from error
    return wanted in [
        (file["udiag_vfs_dev"], file["udiag_vfs_ino"]) for file in files if file is not None
    ]
