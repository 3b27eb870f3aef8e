"""Arguments of ``vuserctl`` as types of argparse, which reports a ValueError as wrong usage."""

import argparse
from typing import Final, NoReturn

from vuserd.ctl.target import Target

#: How usage names an operand that is an export.
EXPORT: Final = "EXPORT"
#: How usage names a command.
COMMAND: Final = "COMMAND"
#: How usage names a file of an export.
FILE: Final = "EXPORT:PATH"


def target_argument(text: str) -> Target:
    """Read EXPORT:PATH."""
    try:
        return Target.parse(text)
    except ValueError as error:
        refuse(str(error))


def number_argument(text: str) -> int:
    """Read a number by :func:`vuserd.ctl.load.parse_number`."""
    from vuserd.ctl.load import parse_number

    try:
        return parse_number(text)
    except ValueError as error:
        refuse(str(error))


def owner_argument(text: str) -> tuple[int, int]:
    """Read UID:GID."""
    numbers = text.split(":")
    if len(numbers) != 2 or not all(_is_number(number, 32) for number in numbers):
        refuse(f"{text!r} is not UID:GID, two numbers")
    return int(numbers[0]), int(numbers[1])


def time_argument(text: str) -> int:
    """Read a number of seconds since 1970."""
    if not _is_number(text, 32):
        refuse(f"{text!r} is not a number of seconds since 1970")
    return int(text)


def _is_number(text: str, bits: int) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= bits and int(text) < 1 << bits


def count_argument(text: str) -> int:
    """Read a decimal number of at least 1."""
    if not text.isdecimal() or not int(text):
        refuse(f"{text!r} is not a number of at least 1")
    return int(text)


def seconds_argument(text: str) -> float:
    """Read a number of seconds, from 0.1 to a day."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.1 <= seconds <= 86400:
        refuse(f"{text!r} is not a number of seconds from 0.1 to 86400")
    return seconds


def refuse(reason: str) -> NoReturn:
    """Report wrong usage of the argument that is being read."""
    raise argparse.ArgumentTypeError(reason)
