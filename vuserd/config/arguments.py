"""Parse and check the values of command-line options."""

import os
import re
from typing import Final

from vuserd.config.model import ExportConfig
from vuserd.errors import ConfigurationError, os_reason

SIZE: Final = re.compile(r"([0-9]{1,12})([KMG]?)")
DAY: Final = 86_400
SIZE_SHIFTS: Final = {"": 0, "K": 10, "M": 20, "G": 30}

#: Export names appear before a colon on command lines, and in logs.
NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def parse_export(text: str) -> ExportConfig:
    """Read ``NAME=DIR``. The directory need not exist yet.

    Raises:
        ConfigurationError: the form, the name or the path is wrong; the message says how.

    """
    name, equals, directory = text.partition("=")
    if not equals or not directory:
        raise ConfigurationError(f"--export {text}: give it as NAME=DIR, such as kernels=/boot")
    return ExportConfig(_checked(name), directory=_absolute(directory))


def parse_adopted(text: str) -> ExportConfig:
    """Read ``NAME=SOCKET``. The socket need not exist yet.

    Raises:
        ConfigurationError: the form, the name or the path is wrong; the message says how.

    """
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise ConfigurationError(
            f"--adopt {text}: give it as NAME=SOCKET, such as root=/run/vfs.sock"
        )
    return ExportConfig(_checked(name), socket=_absolute(path))


def parse_size(option: str, text: str) -> int:
    """Read a number of bytes, which may have a suffix K, M or G (powers of 1024).

    Raises:
        ConfigurationError: the text is not one.

    """
    match = SIZE.fullmatch(text)
    if match is None:
        raise ConfigurationError(
            f"{option} {text}: not a size: give bytes, such as 0, 4096, 64M or 2G"
        )
    return int(match[1]) << SIZE_SHIFTS[match[2]]


def parse_seconds(option: str, text: str) -> float:
    """Read a number of seconds, from a millisecond to a day.

    Raises:
        ConfigurationError: the text is not one.

    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.001 <= seconds <= DAY:
        raise ConfigurationError(
            f"{option} {text}: not a time: give seconds from 0.001 to {DAY}, such as 2.5"
        )
    return seconds


def check_names(exports: tuple[ExportConfig, ...]) -> None:
    """Refuse two exports with the same name.

    Raises:
        ConfigurationError: there are two; the message names them.

    """
    seen: dict[str, ExportConfig] = {}
    for export in exports:
        if export.name in seen:
            raise ConfigurationError(
                f"two exports are named {export.name}: {seen[export.name].source} and"
                f" {export.source}"
            )
        seen[export.name] = export


def check_sockets(exports: tuple[ExportConfig, ...], address: str) -> None:
    """Refuse to adopt what listens where clients connect, and one backend for two exports.

    Raises:
        ConfigurationError: the message names the export.

    """
    taken = {socket_identity(address): "it is where clients connect"}
    for export in exports:
        if export.socket is None:
            continue
        place = socket_identity(export.socket)
        if place in taken:
            raise ConfigurationError(f"--adopt {export.name}={export.socket}: {taken[place]}")
        taken[place] = f"export {export.name} has this socket"


def socket_identity(address: str) -> str:
    """Return what the addresses of one socket have in common."""
    return address if address.startswith("@") else os.path.realpath(address)


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ConfigurationError(
            f"export name {name!r}: use letters, digits, '_', '-' and '.', 64 at most"
        )
    return name


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError as error:  # the working directory was removed
        raise ConfigurationError(
            f"{path} is relative to the working directory: {os_reason(error)}"
        ) from error
