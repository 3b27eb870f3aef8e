"""Print for vuserctl: names as a terminal can show them, errors, tables, sizes and times."""

import errno
import io
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from vuserd.errors import VuserdError, in_a_sentence
from vuserd.service.standard_streams import NAME_ERRORS, STANDARD_OUTPUT

if TYPE_CHECKING:
    from vuserd.client.records import Entry, Stat

_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}

#: The encoding that standard output had, if not UTF-8: the terminal shows only its characters.
_screens: list[str] = []


def take_streams() -> None:
    """Make the streams take names as their own bytes, and never fail to encode a message.

    Python has decoded names by the locale's encoding of file names, which need not be that of
    standard output (it may be set by PYTHONIOENCODING).
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding=sys.getfilesystemencoding(), errors="surrogateescape")
    if isinstance(sys.stdout, io.TextIOWrapper):
        _screens[:] = [] if _is_utf8(sys.stdout.encoding) else [sys.stdout.encoding]
        sys.stdout.reconfigure(encoding=sys.getfilesystemencoding(), errors=NAME_ERRORS)
    if isinstance(sys.stderr, io.TextIOWrapper):
        encoding = sys.stderr.encoding
        if "a\n".encode(encoding) != b"a\n":  # UTF-16, say: no terminal shows that
            encoding = sys.getfilesystemencoding()
        sys.stderr.reconfigure(encoding=encoding, errors="backslashreplace")


def _is_utf8(encoding: str) -> bool:
    return encoding.lower().replace("_", "-") in ("utf-8", "utf8")


def fits_screen(text: str) -> bool:
    """Return whether a terminal could show a text, judging by the encodings."""
    try:
        for encoding in (sys.getfilesystemencoding(), *_screens):
            text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """Escape unprintable characters byte by byte, as ``ls -b`` does."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_escape, text))


def _escape(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    return character if character.isprintable() else _octal(character)


def _octal(character: str) -> str:
    name = character.encode(sys.getfilesystemencoding(), NAME_ERRORS)
    return "".join(f"\\{byte:03o}" for byte in name)


def shown(text: str) -> str:
    """Return a name as it is printed: escaped on a terminal, unchanged into a pipe."""
    if not sys.stdout.isatty():
        return text
    text = printable(text)
    if fits_screen(text):
        return text
    return "".join(each if fits_screen(each) else _octal(each) for each in text)


def complain(message: str) -> int:
    """Print on standard error what went wrong; return the exit code for a failure."""
    sys.stderr.write(f"vuserctl: {printable(message)}\n")
    return 1


def is_of_output(error: OSError) -> bool:
    """Return whether an error is of standard output, and so of no file that is worked on."""
    return bool(error.filename == STANDARD_OUTPUT)


def local_fault(error: OSError) -> str:
    """Return the text of a local error, in the form of the daemon's errors."""
    if error.errno is None:
        text = str(error)
    else:
        text = error.strerror or os.strerror(error.errno)
        text = f"{in_a_sentence(text)} ({errno.errorcode.get(error.errno)})"
    if not isinstance(error.filename, str | bytes):
        return text
    return f"{os.fsdecode(error.filename) or repr('')}: {text}"


@contextmanager
def named(name: str) -> Iterator[None]:
    """Add a local file's name to an OSError of the block, which only opening does by itself."""
    try:
        yield
    except OSError as error:
        if error.filename is None and not isinstance(error, VuserdError):
            error.filename = name
        raise


def screen_width() -> int:
    """Return $COLUMNS, or else the columns of the terminal on standard output, or else 80."""
    said = os.environ.get("COLUMNS", "")
    with suppress(OSError):
        return (int(said) if said.isdecimal() else 0) or os.get_terminal_size().columns or 80
    return 80


def is_dumb() -> bool:
    """Return whether the terminal, if there is one, obeys no control sequences."""
    return os.environ.get("TERM") == "dumb"


def emit(line: str = "") -> None:
    """Print one line."""
    sys.stdout.write(line + "\n")


def emit_json(value: object, *, in_a_line: bool = False) -> None:
    """Print a value as JSON; a byte that is not UTF-8 becomes a lone surrogate, as in Python."""
    import json  # most calls do not need it, and it is slow to import

    indent = None if in_a_line else 2
    emit(json.dumps(value, indent=indent, default=_json_default, skipkeys=True))


def _json_default(value: object) -> object:
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)


def emit_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table with columns as wide as needed, and None as a dash."""
    table = [[*head], *([cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        emit("  ".join(map(str.ljust, row, widths)).rstrip())


def cell(value: object) -> str:
    """Return the text of one value in a table."""
    if value is None or value == "":
        return "-"
    return shown(os.fsdecode(value) if isinstance(value, bytes) else str(value))


def entry_fields(entry: "Entry", target: str | None = None) -> dict[str, Any]:
    """Return an entry as a flat map, for JSON."""
    fields: dict[str, Any] = {"name": entry.name, "type": entry.type, "ino": entry.ino}
    if entry.stat is not None:
        fields |= entry.stat._asdict()
    if target is not None:
        fields["target"] = target
    return fields


def with_target(name: str, target: str | None) -> str:
    """Return a name, followed by the target of a symlink."""
    return shown(name) if target is None else f"{shown(name)} -> {shown(target)}"


def known(number: int | None) -> str:
    """Return a number, or '?' if it is unknown, such as an owner that this machine cannot name."""
    return "?" if number is None else str(number)


def clock(seconds: int, form: str) -> str:
    """Return a time in the local zone; the number of seconds if it cannot be represented."""
    try:
        return time.strftime(form, time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"@{seconds}"


def size_or_device(attributes: "Stat") -> str:
    """Return the size in bytes, or a device's major and minor number."""
    if attributes.type in ("char", "block"):
        device = attributes.rdev & 0xFFFF_FFFF_FFFF_FFFF
        return f"{os.major(device)}, {os.minor(device)}"
    return str(attributes.size)


def long_time(time_ns: int) -> str:
    """Return a time to the nanosecond, in the local zone, as ``stat`` prints it."""
    seconds, fraction = divmod(time_ns, 10**9)
    return f"{clock(seconds, '%Y-%m-%d %H:%M:%S')}.{fraction:09} {clock(seconds, '%z')}"


def binary_size(count: object) -> str:
    """Return a number of bytes with a binary unit."""
    if not isinstance(count, int):
        return cell(count)
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def rounded_size(count: int) -> str:
    """Return a number of bytes as ``ls -h`` and ``du -h`` do: 512, 4.0K, 12M; rounded up."""
    unit = 1
    for letter in ("", *"KMGTPE"):
        tenths = -(-count * 10 // unit)
        if not letter and count < 1024:
            return str(count)
        if letter and tenths < 100:
            return f"{tenths // 10}.{tenths % 10}{letter}"
        if letter and -(-count // unit) < 1024:
            return f"{-(-count // unit)}{letter}"
        unit <<= 10
    return str(count)


def duration(seconds: object) -> str:
    """Return a time span in its two largest units."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return cell(seconds)
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    while len(units) > 1 and not units[0][0]:
        del units[0]
    return " ".join(f"{count} {unit}" for count, unit in units[:2])
