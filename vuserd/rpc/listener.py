"""The daemon's unix sockets: with the mode that was asked for, never taken from the living."""

import contextlib
import fcntl
import logging
import os
import socket
import stat
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from vuserd.address import SYSTEM_SOCKET, to_sockaddr
from vuserd.config.model import ListenConfig
from vuserd.errors import ConfigurationError, os_reason

_LOG = logging.getLogger(__name__)

_BACKLOG: Final = 128
_LOCK_TRIES: Final = 50
_LOCK_PAUSE: Final = 0.01


class Listener(NamedTuple):
    """A socket that clients connect to, and what is behind it."""

    address: str
    socket: socket.socket
    #: The network namespace that it is in; None for the daemon's own.
    rig: str | None = None
    #: The exports that may be seen through it; None for all.
    exports: Container[str] | None = None
    #: Whether it is the service manager's, which goes on listening when this process ends.
    inherited: bool = False


@contextmanager
def listening(config: ListenConfig) -> Iterator[socket.socket]:
    """Listen on a path (``@name`` for an abstract socket) for the block's time.

    The file never has a wider mode than its own. A socket that somebody listens on is left alone,
    one that a dead daemon left behind is replaced; the folder is locked meanwhile, so two daemons
    that start at once cannot both replace it.

    Raises:
        ConfigurationError: the socket cannot be had; the message says what to do.

    """
    path = config.address
    try:
        listener = _bound(config)
    except OSError as error:
        reason = "its path is too long" if error.errno is None else os_reason(error)
        raise ConfigurationError(
            f"cannot listen on {path}: {reason}; choose another path with --socket"
        ) from error
    with listener:
        identity = None if path.startswith("@") else _identity(path)
        try:
            yield listener
        finally:
            if identity is not None and _identity(path) == identity:
                _remove(path)


def _bound(config: ListenConfig) -> socket.socket:
    """Return a socket that listens, and does not block."""
    path = config.address
    with contextlib.ExitStack() as undo:
        listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        if path.startswith("@"):
            listener.bind(to_sockaddr(path))
        else:
            folder = os.path.dirname(path) or "."
            if path == SYSTEM_SOCKET:
                os.makedirs(folder, mode=0o755, exist_ok=True)
            with _locked(folder):
                _remove_stale(path)
                # bind() makes the file with this mode, less the umask: nobody else connects before
                # it has the one that is wanted.
                os.fchmod(listener.fileno(), 0o600)
                listener.bind(path)
                undo.callback(_remove, path)
                permit(config)
        listener.listen(_BACKLOG)
        listener.setblocking(False)  # noqa: FBT003 - the name is the standard library's
        undo.pop_all()
        return listener


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def permit(config: ListenConfig) -> None:
    """Give a socket's file its group and its mode.

    Raises:
        OSError: the system refuses that.

    """
    if not config.address.startswith("@"):
        os.chown(config.address, -1, os.getegid() if config.group is None else config.group)
        os.chmod(config.address, config.mode)


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for _ in range(_LOCK_TRIES):  # another daemon holds it for a moment
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(_LOCK_PAUSE)
        else:  # a stranger, and anybody who may read the folder can: no reason not to serve
            _LOG.warning("%s stays locked by another process; going on without the lock", folder)
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
