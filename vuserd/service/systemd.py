"""Talk to the service manager: take its sockets (sd_listen_fds(3)), notify it (sd_notify(3))."""

import contextlib
import ctypes
import fcntl
import logging
import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from typing import Final, Self

from vuserd.errors import ConfigurationError, os_reason
from vuserd.wire.address import to_sockaddr

_LOG = logging.getLogger(__name__)

#: SD_LISTEN_FDS_START
_FIRST_DESCRIPTOR: Final = 3
#: What sd_listen_fds_with_names(3) calls a descriptor without a name.
_UNNAMED: Final = "unknown"
#: Of these only the latest holds: one that could not be sent is dropped when another follows.
_STATES: Final = frozenset({"READY", "RELOADING", "STOPPING"})

#: Bytes of a value. systemd reads messages of 4096 bytes, and leaves aside what is longer.
_LONGEST_VALUE: Final = 2048

#: <linux/prctl.h>, <linux/capability.h>
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_LOWER: Final = 3
_CAP_SYS_ADMIN: Final = 21


def listen_sockets(environ: MutableMapping[str, str], pid: int) -> list[tuple[str, socket.socket]]:
    """Take the listening sockets that the service manager opened for process ``pid``.

    Return pairs of name and socket; the sockets are close-on-exec and non-blocking. The variables
    are always removed from ``environ``, since processes started later would believe them. Sockets
    meant for another process are left alone.

    Raises:
        ConfigurationError: the variables contradict each other, or a descriptor is not a listening
            unix stream socket. All of the descriptors are closed then.

    """
    owner, count, names = (
        environ.pop(variable, None) for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    )
    environ.pop("LISTEN_PIDFDID", None)
    if count is None or owner != str(pid):
        return []
    if not count.isdecimal() or len(count) > 5:
        raise ConfigurationError(f"LISTEN_FDS={count} is not a number of sockets")
    descriptors = range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count))
    labels = [_UNNAMED] * len(descriptors) if names is None else names.split(":")
    if names is not None and len(labels) != len(descriptors) and (names or descriptors):
        raise ConfigurationError(f"LISTEN_FDS={count}, but LISTEN_FDNAMES={names}")
    taken: list[tuple[str, socket.socket]] = []
    try:
        for name, descriptor in zip(labels, descriptors, strict=False):
            taken.append((name, _listener(name, descriptor)))
    except ConfigurationError:
        for _, sock in taken:
            sock.detach()
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        raise
    return taken


def _listener(name: str, descriptor: int) -> socket.socket:
    """Return a descriptor as a socket.

    Raises:
        ConfigurationError: clients cannot be accepted from it. The descriptor stays open.

    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigurationError(
            f"the service manager's socket {name} (descriptor {descriptor}): {os_reason(error)}"
        ) from error
    kind = (sock.family, sock.type)
    if kind == (socket.AF_UNIX, socket.SOCK_STREAM) and sock.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    ):
        sock.setblocking(False)  # noqa: FBT003 - the name is the standard library's
        return sock
    sock.detach()
    raise ConfigurationError(
        f"the service manager's socket {name} (descriptor {descriptor}) is not a unix stream socket"
        " that listens: give ListenStream= a path, and leave out Accept="
    )


def withhold_privileges() -> None:
    """Withhold CAP_SYS_ADMIN, which a unit grants to enter rigs, from processes started later."""
    # This fails where the kernel has no ambient capabilities, and then there is none to withhold.
    ctypes.CDLL(None).prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_LOWER, _CAP_SYS_ADMIN, 0, 0)


class Notifier:
    """Notifies the service manager of the daemon's state; does nothing without a manager.

    No method waits or raises. What a full socket did not take is sent with the next message.
    """

    def __init__(self, address: str | None, watchdog_interval: float | None = None) -> None:
        self._address = to_sockaddr(address or "")
        self._watchdog_interval = watchdog_interval
        self._owed: dict[str, str] = {}
        self._complained = False
        self._socket = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)  # noqa: FBT003 - the name is the standard library's

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Self:
        """Make a notifier from the manager's variables, and remove them from ``environ``.

        They are for this process, not for the processes that it starts.
        """
        address = environ.pop("NOTIFY_SOCKET", None)
        period = environ.pop("WATCHDOG_USEC", "")
        owner = environ.pop("WATCHDOG_PID", str(os.getpid()))
        interval = None
        if address and period.isdecimal() and int(period) > 0 and owner == str(os.getpid()):
            interval = int(period) / 1e6 / 2
        return cls(address, interval)

    @property
    def watchdog_interval(self) -> float | None:
        """Seconds after which :meth:`watchdog` is due again: half of the limit; None for never."""
        return self._watchdog_interval

    def ready(self, status: str) -> None:
        """Report that the start, or a reload, is complete."""
        self._send({"READY": "1", "STATUS": status})

    def status(self, text: str) -> None:
        """Report the daemon's state in one line; ``systemctl status`` shows it."""
        self._send({"STATUS": text})

    def reloading(self) -> None:
        """Report that the configuration is being reloaded, until :meth:`ready`."""
        self._send({"RELOADING": "1", "MONOTONIC_USEC": str(time.monotonic_ns() // 1000)})

    def stopping(self, status: str) -> None:
        """Report that the daemon is about to end."""
        self._send({"STOPPING": "1", "STATUS": status})

    def extend_timeout(self, seconds: float) -> None:
        """Ask for ``seconds`` more, from now, for the start or the end."""
        self._send({"EXTEND_TIMEOUT_USEC": str(max(1, round(seconds * 1e6)))})

    def watchdog(self) -> None:
        """Report that the daemon makes progress."""
        self._send({"WATCHDOG": "1"})

    def close(self) -> None:
        """Report nothing from here on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, assignments: Mapping[str, str]) -> None:
        if self._socket is None:
            return
        if not _STATES.isdisjoint(assignments):
            self._owed = {k: v for k, v in self._owed.items() if k not in _STATES}
        self._owed.update(assignments)
        lines = (b"%s=%s\n" % (key.encode(), _in_a_line(text)) for key, text in self._owed.items())
        message = b"".join(lines)
        try:
            self._socket.sendto(message, self._address)
        except OSError as error:
            if not self._complained:
                self._complained = True
                _LOG.warning("cannot tell the service manager: %s", os_reason(error))
        else:
            self._owed.clear()


def _in_a_line(text: str) -> bytes:
    """Return a value cut short, without line breaks, which would begin another assignment."""
    value = " ".join(text.splitlines()).encode(errors="backslashreplace")
    if len(value) <= _LONGEST_VALUE:
        return value
    return value[:_LONGEST_VALUE].decode(errors="ignore").encode() + b"..."
