"""What the daemon is to do, checked as far as that is possible without doing it."""

import os
import re
from dataclasses import dataclass, field
from typing import Final

from vuserd.backend.process import BackendOptions
from vuserd.device.session import SessionOptions
from vuserd.errors import ConfigurationError

_SIZE: Final = re.compile(r"([0-9]{1,12})([KMG]?)")
_DAY: Final = 86_400
_SHIFTS: Final = {"": 0, "K": 10, "M": 20, "G": 30}

#: Names are spelt in front of a colon on command lines, and in logs.
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class ExportConfig:
    """One export: a directory of ours with a backend of ours, or a socket of somebody's backend."""

    name: str
    directory: str | None = None
    socket: str | None = None

    @property
    def source(self) -> str:
        """The directory or socket, for people."""
        return self.directory or f"unix:{self.socket}"


@dataclass(frozen=True)
class DaemonConfig:
    """All that ``vuserd serve`` needs to know."""

    socket: str
    exports: tuple[ExportConfig, ...]
    backend: str | None = None
    backend_options: BackendOptions = field(default_factory=BackendOptions)
    session_options: SessionOptions = field(default_factory=SessionOptions)
    #: Nodes that nobody uses and that stay known, in each export.
    idle_nodes: int = 4096
    #: Bytes of sealed images that are kept for a next fetch; 0 keeps none.
    image_cache: int = 1 << 30
    #: Backends that an export may lose in a row, without a call served, before it has failed.
    restarts: int = 8
    #: Seconds before the second try in a row, doubled with each more, and the longest of them.
    restart_delays: tuple[float, float] = (0.05, 5.0)
    #: Seconds that calls in progress may take when the daemon is told to end.
    drain: float = 5.0


def parse_export(text: str) -> ExportConfig:
    """Read ``NAME=DIR``.

    Raises:
        ConfigurationError: the form, the name or the directory is wrong; the message says how.

    """
    name, equals, directory = text.partition("=")
    if not equals or not directory:
        raise ConfigurationError(f"--export {text}: give it as NAME=DIR, such as kernels=/boot")
    directory = os.path.abspath(directory)
    if not os.path.isdir(directory):
        what = "is not a directory" if os.path.exists(directory) else "does not exist"
        raise ConfigurationError(f"--export {text}: {directory} {what}")
    return ExportConfig(_checked(name), directory=directory)


def parse_adopted(text: str) -> ExportConfig:
    """Read ``NAME=SOCKET``. The socket may come later than the daemon.

    Raises:
        ConfigurationError: the form or the name is wrong.

    """
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise ConfigurationError(
            f"--adopt {text}: give it as NAME=SOCKET, such as root=/run/vfs.sock"
        )
    return ExportConfig(_checked(name), socket=os.path.abspath(path))


def parse_size(option: str, text: str) -> int:
    """Read a number of bytes, with a suffix K, M or G (of 1024) where that is shorter.

    Raises:
        ConfigurationError: it is none.

    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigurationError(
            f"{option} {text}: not a size: give bytes, such as 0, 4096, 64M or 2G"
        )
    return int(match[1]) << _SHIFTS[match[2]]


def parse_seconds(option: str, text: str) -> float:
    """Read a time from a millisecond to a day.

    Raises:
        ConfigurationError: it is none.

    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.001 <= seconds <= _DAY:
        raise ConfigurationError(
            f"{option} {text}: not a time: give seconds from 0.001 to {_DAY}, such as 2.5"
        )
    return seconds


def check_names(exports: tuple[ExportConfig, ...]) -> None:
    """Refuse two exports of one name.

    Raises:
        ConfigurationError: naming them.

    """
    seen: dict[str, ExportConfig] = {}
    for export in exports:
        if export.name in seen:
            raise ConfigurationError(
                f"two exports are named {export.name}: {seen[export.name].source} and"
                f" {export.source}"
            )
        seen[export.name] = export


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"export name {name!r}: use letters, digits, '_', '-' and '.', 64 at most"
        )
    return name
