"""Bind the daemon's unix sockets, with the right mode and never in place of one in use."""

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from vuserd.config.model import ListenConfig
from vuserd.errors import ConfigurationError, os_reason
from vuserd.trust.path import keeps_entries, name_of, own_trust, require_answers, route
from vuserd.wire.address import SYSTEM_SOCKET, to_sockaddr

_LOG = logging.getLogger(__name__)

_BACKLOG: Final = 128
_LOCK_TRIES: Final = 50
_LOCK_PAUSE: Final = 0.01
_AS_IT_IS: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
#: The temporary name of a socket's file.
_HIDDEN: Final = "s"


class Bound(NamedTuple):
    """A listening, non-blocking socket."""

    socket: socket.socket
    #: The socket's own file, opened with O_PATH, whatever its path leads to by now; None for an
    #: abstract socket.
    file: int | None

    def permit(self, config: ListenConfig) -> None:
        """Set the group and mode of the socket's file.

        Raises:
            OSError: the system refuses that.

        """
        if self.file is not None:
            file = f"/proc/self/fd/{self.file}"
            os.chown(file, -1, os.getegid() if config.group is None else config.group)
            os.chmod(file, config.mode)

    def is_at(self, path: str) -> bool:
        """Return whether a path is still this socket's; that of an abstract one always is."""
        if self.file is None:
            return True
        try:
            there = os.stat(path, follow_symlinks=False)
            return os.path.samestat(there, os.fstat(self.file))
        except OSError:
            return False


@contextmanager
def listening(config: ListenConfig) -> Iterator[Bound]:
    """Listen on a path (``@name`` for an abstract socket) for the block's time.

    The file's mode is never wider than configured, not even for a moment. A socket that a process
    listens on is left alone; one that a dead daemon of this user left behind is replaced. The
    folder is locked meanwhile, so that two daemons that start at once cannot both replace it.
    Another user who may write to the folder can remove the socket, but cannot make the daemon treat
    another file as if it were the socket's.

    Raises:
        ConfigurationError: the socket cannot be bound; the message says what to do.

    """
    path = config.address
    with contextlib.ExitStack() as stack:
        try:
            bound = _bound(config, stack)
        except OSError as error:
            reason = "its path is too long" if error.errno is None else os_reason(error)
            raise ConfigurationError(
                f"cannot listen on {path}: {reason}; choose another path with --socket"
            ) from error
        yield bound


def _bound(config: ListenConfig, stack: contextlib.ExitStack) -> Bound:
    """Return the socket; the stack closes it, and removes its file."""
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    if config.address.startswith("@"):
        listener.bind(to_sockaddr(config.address))
        bound = Bound(listener, None)
    else:
        bound = _bound_to_file(listener, config, stack)
    listener.listen(_BACKLOG)
    listener.setblocking(False)  # noqa: FBT003 - the name is the standard library's
    return bound


def _bound_to_file(
    listener: socket.socket, config: ListenConfig, stack: contextlib.ExitStack
) -> Bound:
    path, trust = config.address, own_trust()
    parent, name = os.path.split(path)
    if path == SYSTEM_SOCKET:
        os.makedirs(parent, mode=0o755, exist_ok=True)
    folder = stack.enter_context(route(parent or ".", trust))
    require_answers(folder, parent, trust)
    with _locked(folder.descriptor, parent):
        _remove_stale(folder.descriptor, name, path)
        # bind() makes the file with this mode, less the umask: no other user can connect before the
        # file has its final mode.
        os.fchmod(listener.fileno(), 0o600)
        if keeps_entries(folder, trust):
            bound = _bound_in(folder.descriptor, name, path, listener, config, stack)
        else:
            with _hidden_folder(folder.descriptor, name) as hidden:
                address = f"/proc/self/fd/{hidden}/{_HIDDEN}"
                bound = _bound_in(hidden, _HIDDEN, address, listener, config, stack)
                try:
                    os.rename(_HIDDEN, name, src_dir_fd=hidden, dst_dir_fd=folder.descriptor)
                except OSError:
                    os.unlink(_HIDDEN, dir_fd=hidden)
                    raise
        assert bound.file is not None
        stack.callback(_remove, folder.descriptor, name, bound.file)
    return bound


def _bound_in(
    folder: int,
    name: str,
    address: str,
    listener: socket.socket,
    config: ListenConfig,
    stack: contextlib.ExitStack,
) -> Bound:
    """Bind a socket in a folder in which the file of that name is certainly the socket's."""
    listener.bind(address)
    try:
        file = os.open(name, _AS_IT_IS, dir_fd=folder)
        stack.callback(os.close, file)
        bound = Bound(listener, file)
        bound.permit(config)
    except OSError:
        os.unlink(name, dir_fd=folder)
        raise
    return bound


@contextmanager
def _hidden_folder(parent: int, name: str) -> Iterator[int]:
    """Make a private folder for the block's time, where others may write to the parent.

    In it no other user can replace a file between its creation and its opening.
    """
    hidden = f".{name}.{secrets.token_hex(8)}"
    os.mkdir(hidden, 0o700, dir_fd=parent)
    try:
        descriptor = os.open(hidden, _AS_IT_IS | os.O_DIRECTORY, dir_fd=parent)
        try:
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            yield descriptor
        finally:
            os.close(descriptor)
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(hidden, dir_fd=parent)


def _remove(folder: int, name: str, file: int) -> None:
    """Remove a file, unless its name belongs to another file by now."""
    with contextlib.suppress(OSError):
        if os.path.samestat(os.stat(name, dir_fd=folder, follow_symlinks=False), os.fstat(file)):
            os.unlink(name, dir_fd=folder)


@contextmanager
def _locked(folder: int, name: str) -> Iterator[None]:
    descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        for _ in range(_LOCK_TRIES):  # another daemon holds it for a moment
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(_LOCK_PAUSE)
        else:  # any user who may read the folder can hold the lock: no reason not to serve
            _LOG.warning("%s stays locked by another process; going on without the lock", name)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(folder: int, name: str, path: str) -> None:
    """Remove a socket that this user owns and no process listens on.

    Raises:
        ConfigurationError: the name belongs to anything else.

    """
    try:
        file = os.open(name, _AS_IT_IS, dir_fd=folder)
    except FileNotFoundError:
        return
    try:
        status = os.fstat(file)
        if not stat.S_ISSOCK(status.st_mode):
            raise ConfigurationError(f"cannot listen on {path}: it exists and is no socket")
        if _is_listened_on(file):
            raise ConfigurationError(
                f"another daemon serves {path}: stop it, or choose another path with --socket"
            )
        if status.st_uid != os.geteuid():
            owner = name_of(status.st_uid)
            raise ConfigurationError(
                f"cannot listen on {path}: {owner} has left a socket there: remove it"
            )
        _remove(folder, name, file)
    finally:
        os.close(file)


def _is_listened_on(file: int) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # noqa: FBT003 - the name is the standard library's
        try:
            probe.connect(f"/proc/self/fd/{file}")
        except ConnectionRefusedError:
            return False
        except BlockingIOError:  # its queue is full
            return True
    return True
