"""The daemon's unix socket: bound for its owner alone, never taken from a daemon that lives."""

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from vuserd.address import SYSTEM_SOCKET, to_sockaddr
from vuserd.errors import ConfigurationError, os_reason

_BACKLOG = 128


@contextmanager
def listening(path: str) -> Iterator[trio.SocketListener]:
    """Listen on ``path`` (``@name`` for an abstract socket) for the block's time.

    The file has mode 0600 from its first moment on. A socket that somebody listens on is left
    alone, one that a dead daemon left behind is replaced; the folder is locked meanwhile, so two
    daemons that start at once cannot both replace it.

    Raises:
        ConfigurationError: the socket cannot be had; the message says what to do.

    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as unbound:
        try:
            if path.startswith("@"):
                unbound.bind(to_sockaddr(path))
            else:
                folder = os.path.dirname(path) or "."
                if path == SYSTEM_SOCKET:
                    os.makedirs(folder, mode=0o755, exist_ok=True)
                with _locked(folder):
                    _remove_stale(path)
                    os.fchmod(unbound.fileno(), 0o600)  # bind() makes the file with this mode
                    unbound.bind(path)
            unbound.listen(_BACKLOG)
        except OSError as error:
            reason = "its path is too long" if error.errno is None else os_reason(error)
            raise ConfigurationError(
                f"cannot listen on {path}: {reason}; choose another path with --socket"
            ) from error
        identity = None if path.startswith("@") else _identity(path)
        try:
            yield trio.SocketListener(trio.socket.from_stdlib_socket(unbound))
        finally:
            if identity is not None and _identity(path) == identity:
                os.unlink(path)


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(f"cannot listen on {path}: it exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # noqa: FBT003 - the name is the standard library's
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its queue is full: somebody listens
    raise ConfigurationError(
        f"another daemon serves {path}: stop it, or choose another path with --socket"
    )


def _identity(path: str) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        return status.st_dev, status.st_ino
    return None
