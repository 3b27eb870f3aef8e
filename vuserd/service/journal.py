"""Log to the journal in its native protocol, so that fields can be searched for."""

import contextlib
import logging
import os
import re
import socket
import struct
from collections.abc import Mapping
from typing import Final

from vuserd import __version__

#: https://systemd.io/JOURNAL_NATIVE_PROTOCOL
JOURNAL_SOCKET: Final = "/run/systemd/journal/socket"
IDENTIFIER: Final = "vuserd"

#: Bytes of one value. A larger one may not fit into a datagram, and would have to go as a file.
LONGEST_VALUE: Final = 64 << 10
_LENGTH: Final = struct.Struct("<Q")
#: Names that begin with an underscore are reserved for the journal.
_FIELD: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")

#: The lowest level of each syslog(3) priority: LOG_CRIT, LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG.
_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
_DEBUG: Final = 7


def priority(level: int) -> int:
    """Return the syslog priority of a level of :mod:`logging`."""
    return next((number for least, number in _PRIORITIES if level >= least), _DEBUG)


def encode_entry(fields: Mapping[str, str]) -> bytes:
    r"""Return the datagram for one entry.

    ::

        NAME=value\n
        NAME\n  length (64 bits, little-endian)  value\n      where the value has line breaks

    Raises:
        ValueError: the journal does not accept a name.

    """
    parts = []
    for name, text in fields.items():
        if not _FIELD.fullmatch(name):
            raise ValueError(f"not a name of a journal field: {name!r}")
        value = text.encode(errors="backslashreplace")[:LONGEST_VALUE]
        if b"\n" in value:
            parts += [name.encode(), b"\n", _LENGTH.pack(len(value)), value, b"\n"]
        else:
            parts += [name.encode(), b"=", value, b"\n"]
    return b"".join(parts)


class JournalHandler(logging.Handler):
    """Writes records to the journal, with the fields given as ``extra={"fields": {...}}``.

    It never waits: entries that the journal does not take are dropped and counted, and the count is
    logged once the journal takes entries again.
    """

    def __init__(self, address: str = JOURNAL_SOCKET) -> None:
        super().__init__()
        self._address = address
        self._lost = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)  # noqa: FBT003 - the name is the standard library's

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        try:
            entry = encode_entry(self._fields(record))
        except Exception:  # as every handler does: a bad record must not stop the daemon
            self.handleError(record)
            return
        try:
            if self._lost:
                self._socket.sendto(self._confession(), self._address)
                self._lost = 0
            self._socket.sendto(entry, self._address)
        except OSError:
            self._lost += 1

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()

    def _fields(self, record: logging.LogRecord) -> dict[str, str]:
        own: Mapping[str, str] = getattr(record, "fields", {})
        return {
            "MESSAGE": self.format(record),
            "PRIORITY": str(priority(record.levelno)),
            "SYSLOG_IDENTIFIER": IDENTIFIER,
            "SYSLOG_PID": str(os.getpid()),
            "VUSERD_VERSION": __version__,
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName or "",
            **own,
        }

    def _confession(self) -> bytes:
        return encode_entry(
            {
                "MESSAGE": f"{self._lost} log entries were lost: the journal took none",
                "PRIORITY": str(priority(logging.WARNING)),
                "SYSLOG_IDENTIFIER": IDENTIFIER,
                "LOGGER": __name__,
            }
        )


def about_export(log: logging.Logger, name: str) -> "logging.LoggerAdapter[logging.Logger]":
    """Return a logger whose entries carry the export's name as a field."""
    return logging.LoggerAdapter(log, {"fields": {"VUSERD_EXPORT": name}})


def journal_handler(
    environ: Mapping[str, str], stderr_fileno: int, address: str = JOURNAL_SOCKET
) -> JournalHandler | None:
    """Return a handler if standard error goes to the journal, else None.

    ``JOURNAL_STREAM`` has the device and inode of the stream that the service manager opened
    (systemd.exec(5)); a standard error that was redirected since then stays in use. So does one of
    a service whose root directory lacks the journal's socket.
    """
    with contextlib.suppress(OSError):
        status = os.fstat(stderr_fileno)
        if environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}":
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
                probe.connect(address)
            return JournalHandler(address)
    return None
