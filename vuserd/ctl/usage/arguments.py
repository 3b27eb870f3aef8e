"""Arguments of ``vuserctl`` as types of argparse, which reports a ValueError as wrong usage."""

import argparse
import re
from typing import Final, NoReturn

from vuserd.ctl.target import Target

#: How usage names an operand that is an export.
EXPORT: Final = "EXPORT"
#: How usage names a command.
COMMAND: Final = "COMMAND"
#: How usage names a file of an export.
FILE: Final = "EXPORT:PATH"

#: A number and its suffix: a pattern of the one command that has numbers, compiled there.
_NUMBER: Final = r"(0[xX][0-9a-fA-F]+|[0-9]+)([KMG]?)"
_SHIFTS: Final = {"": 0, "K": 10, "M": 20, "G": 30}
#: The highest offset in a file.
_MOST: Final = (1 << 63) - 1


def target_argument(text: str) -> Target:
    """Read EXPORT:PATH."""
    try:
        return Target.parse(text)
    except ValueError as error:
        refuse(str(error))


def parse_number(text: str) -> int:
    """Read a decimal or 0x hexadecimal number, with an optional suffix K, M or G.

    Raises:
        ValueError: the text is no such number, or more than a file's highest offset.

    """
    match = re.fullmatch(_NUMBER, text, re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is not a number such as 4096, 0x80000, 64K or 1G")
    digits, suffix = match.groups()
    number = int(digits, 16 if digits[:2] in ("0x", "0X") else 10) << _SHIFTS[suffix]
    if number > _MOST:
        raise ValueError(f"{text!r} is more than {_MOST}")
    return number


def number_argument(text: str) -> int:
    """Read a number by :func:`parse_number`."""
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
