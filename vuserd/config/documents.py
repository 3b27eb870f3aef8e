"""Read one configuration file: its tables, with each value checked by itself and its line."""

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from vuserd.config.lines import Lines, Path, find_lines
from vuserd.config.meant import unknown, unquoted
from vuserd.config.schema import TABLES, heading, spelled
from vuserd.config.values import WrongValue, shown
from vuserd.errors import Problem, UnsafePath, in_a_sentence, os_reason
from vuserd.trust.path import own_trust, require_own, route

_LARGEST: Final = 1 << 20
#: The end of a message of tomllib.
_PLACE: Final = re.compile(
    r" \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$"
)


class Place(NamedTuple):
    """A place in a configuration file."""

    file: str
    line: int | None

    def __str__(self) -> str:
        """Return the place as the lines of problems begin with it."""
        return self.file if self.line is None else f"{self.file}:{self.line}"


class Value(NamedTuple):
    """A value that is right by itself."""

    value: Any
    place: Place


@dataclass
class Section:
    """One table of a file, or the top of the file."""

    table: str
    place: Place
    values: dict[str, Value] = field(default_factory=dict)
    #: All keys with their values as the file has them, right or wrong.
    given: Mapping[str, Any] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)

    def place_of(self, key: str) -> Place:
        """Return where a key stands; if it is not given, where the table does."""
        return self.places.get(key, self.place)

    def problem(self, key: str, wrong: str, right: str) -> Problem:
        """Return a problem with a key of this table."""
        return Problem(*self.place_of(key), spelled(self.table, key), wrong, right)


def read_document(file: str, problems: list[Problem]) -> list[Section]:
    """Return a file's tables in the order of the schema; add mistakes to ``problems``."""
    name = file if file.isprintable() else ascii(file)
    try:
        text = _text(file)
    except WrongValue as error:
        problems.append(Problem(name, None, "", str(error), error.right))
        return []
    try:
        document = tomllib.loads(text)
    except RecursionError:
        problems.append(Problem(name, None, "", "values are nested too deeply", ""))
        return []
    except ValueError as error:  # tomllib's own is one, and so is int()'s of too many digits
        problems.append(_syntax(name, text, str(error)))
        return []
    return _Reader(name, os.path.dirname(file), find_lines(text), problems).read(document)


def _text(file: str) -> str:
    """Read a file that only trusted users control, without waiting, whatever kind of file it is.

    Raises:
        WrongValue: it cannot be read, or other users control what it says.

    """
    trust = own_trust()
    try:
        with route(file, trust) as found:
            mode = found.status.st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError
            if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
                raise WrongValue("is not a file", "give a file")
            if stat.S_ISREG(mode):
                require_own(found, file, trust)
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            with open(os.open(f"/proc/self/fd/{found.descriptor}", flags), "rb") as opened:
                content = opened.read(_LARGEST + 1) or b""
    except UnsafePath as error:
        raise WrongValue(error.wrong, error.right) from None
    except IsADirectoryError:
        example = os.path.join(file, "vuserd.toml")
        raise WrongValue("is a directory", f"give a file, such as {example}") from None
    except WrongValue:
        raise
    except (OSError, ValueError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else "no path has a NUL byte"
        raise WrongValue(f"cannot be read: {reason}") from None
    if len(content) > _LARGEST:
        raise WrongValue("is too large", f"write {_LARGEST} bytes at most")
    try:
        return content.decode().removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise WrongValue(f"line {line} is not UTF-8", "save the file as UTF-8") from None


def _syntax(file: str, text: str, message: str) -> Problem:
    match = _PLACE.search(message)
    if match is None:
        return Problem(file, None, "", "a number has too many digits", "")
    lines = text.split("\n")
    line = int(match["line"]) if match["line"] else len(text.splitlines()) or 1
    right = unquoted(message, lines[line - 1], int(match["column"])) if match["column"] else ""
    wrong = in_a_sentence(message[: match.start()])
    return Problem(file, line, "", wrong, right or "write it as TOML: toml.io")


class _Reader:
    """Checks the values of one document by the schema."""

    def __init__(self, file: str, folder: str, lines: Lines, problems: list[Problem]) -> None:
        self._file = file
        self._folder = folder
        self._lines = lines
        self._problems = problems

    def read(self, document: dict[str, Any]) -> list[Section]:
        """Return the sections of a document."""
        top = {key: value for key, value in document.items() if key not in TABLES or not key}
        sections = [self._section("", top, ())]
        for name, table in TABLES.items():
            if not name or name not in document:
                continue
            content = document[name]
            if table.repeated and isinstance(content, list):
                for number, element in enumerate(content):
                    sections += self._table(name, element, (name, number))
            elif table.repeated:
                self._malformed(name, content, (name,))
            else:
                sections += self._table(name, content, (name,))
        return sections

    def _table(self, name: str, content: Any, path: Path) -> list[Section]:
        if isinstance(content, dict):
            return [self._section(name, content, path)]
        self._malformed(name, content, path)
        return []

    def _malformed(self, name: str, content: Any, path: Path) -> None:
        self._add(path, name, f"{shown(content)} is wrong here", f"write it below {heading(name)}")

    def _section(self, table: str, content: dict[str, Any], path: Path) -> Section:
        keys = TABLES[table].keys
        section = Section(table, self._place(path), given=content)
        for name, value in content.items():
            place = section.places[name] = self._place((*path, name))
            if name not in keys:
                self._add(
                    (*path, name), spelled(table, _printable(name)), *unknown(table, name, value)
                )
                continue
            kind = keys[name].kind
            try:
                section.values[name] = Value(kind.check(value, self._folder), place)
            except WrongValue as error:
                right = error.right or kind.right
                self._add((*path, name), spelled(table, name), str(error), right)
        for name, key in keys.items():
            if key.required and name not in content:
                self._add(path, spelled(table, name), "is missing", key.kind.right)
        return section

    def _place(self, path: Path) -> Place:
        return Place(self._file, self._lines.line(path))

    def _add(self, path: Path, key: str, wrong: str, right: str) -> None:
        self._problems.append(Problem(self._file, self._lines.line(path), key, wrong, right))


def _printable(name: str) -> str:
    return name[:64] if name.isprintable() and name else shown(name)
