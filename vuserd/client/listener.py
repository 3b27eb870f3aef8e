"""Who listens on a socket whose name somebody else might have taken."""

import errno
import os
import pwd
import socket
import struct
from typing import Final

from vuserd.wire.address import Candidate

_UCRED = struct.Struct("=iII")
_ROOT = 0
#: The user of the system's daemon, as the package makes it.
_SERVICE = "vuserd"
#: What the kernel calls all users that a user namespace has no number for, unless this says else.
_OVERFLOW_FILE: Final = "/proc/sys/kernel/overflowuid"
_OVERFLOW: Final = 65534


def check_listener(sock: socket.socket, candidate: Candidate) -> None:
    """Refuse a daemon that may be another one than the user means.

    A path that the user named is in a folder whose owner the user trusts. An abstract name can be
    taken by any process of the network namespace, and what the environment says may be another
    user's (after ``su``, or ``sudo -E``). There root is believed, the service's user, and the
    client's own: those who called listen().

    Raises:
        PermissionError: somebody else did.

    """
    if not (candidate.is_guessed or candidate.is_abstract):
        return
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(credentials)
    if not _is_believed(uid):
        raise PermissionError(
            errno.EPERM, f"uid {uid} listens there, which is not root, {_SERVICE!r} or you"
        )


def _is_believed(uid: int) -> bool:
    if uid == _ROOT:
        return True
    return uid in (os.geteuid(), _service_user()) and uid != _overflow_user()


def _service_user() -> int | None:
    try:
        return pwd.getpwnam(_SERVICE).pw_uid
    except KeyError:
        return None


def _overflow_user() -> int:
    try:
        with open(_OVERFLOW_FILE) as file:
            return int(file.read())
    except (OSError, ValueError):
        return _OVERFLOW
