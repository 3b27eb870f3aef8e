"""Who listens on a socket whose name anybody might have taken."""

import errno
import os
import pwd
import socket
import struct

from vuserd.address import RIG_SOCKET

_UCRED = struct.Struct("=iII")
_ROOT = 0
#: The user of the system's daemon, as the package makes it.
_SERVICE = "vuserd"


def check_listener(sock: socket.socket, address: str) -> None:
    """Refuse a rig's socket that is not the daemon's.

    A path can only be taken by who may write to its folder, but an abstract name by any process of
    the network namespace. It is believed where root listens, the service's user or the client's.

    Raises:
        PermissionError: somebody else does.

    """
    if address != RIG_SOCKET:
        return
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(credentials)
    if uid not in (_ROOT, os.geteuid()) and uid != _service_user():
        raise PermissionError(errno.EPERM, f"uid {uid} listens there, who is not the daemon")


def _service_user() -> int | None:
    try:
        return pwd.getpwnam(_SERVICE).pw_uid
    except KeyError:
        return None
