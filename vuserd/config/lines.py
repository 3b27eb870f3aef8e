"""Find the line of each key in a TOML document, which tomllib does not tell.

tomllib has read the text before, so it is known to be well-formed; anything unexpected is skipped,
and its lines are then missing. Keys inside inline tables and arrays have the line of the key that
the table or array belongs to.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Final

#: Names of tables and keys, and after an array of tables the number of the element.
Path = tuple[str | int, ...]

_SPACE: Final = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_BLANK: Final = re.compile(r"[ \t]*")
_KEY: Final = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\[^\n])*"|'[^'\n]*'""")
#: The tokens of a value. Up to two quotes may stand before the three that end a string. No group is
#: repeated possessively: before 3.11.5, Python matches less than such a pattern says.
_TOKEN: Final = re.compile(
    r'''
      """ (?: [^"\\]++ | \\. | "(?!"") )* """ "{0,2}
    | \'\'\' (?: [^']++ | '(?!\'\') )* \'\'\' '{0,2}
    | " (?: [^"\\\n]++ | \\. )* "
    | ' [^'\n]* '
    | \#[^\n]*
    | [^"'\#\[\]{}\n]+
    | .
    ''',
    re.VERBOSE | re.DOTALL,
)


class Lines:
    """Finds the line of a key by its path, such as ``("export", 0, "name")``."""

    def __init__(self, found: Mapping[Path, int]) -> None:
        self._found = found

    def line(self, path: Path) -> int | None:
        """Return the line of a key, or of the innermost table around it that has one."""
        for length in range(len(path), 0, -1):
            if (line := self._found.get(path[:length])) is not None:
                return line
        return None


def find_lines(text: str) -> Lines:
    """Return the lines of a document that tomllib has read."""
    scanner = _Scanner(text)
    return Lines(scanner.scan())


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._counted = 0
        self._line = 1
        #: How many tables each array of tables has so far.
        self._counts: dict[Path, int] = {}

    def scan(self) -> dict[Path, int]:
        """Scan the statements, headers and keys with their values; return the line of each."""
        found: dict[Path, int] = {}
        table: Path = ()
        while self._take(_SPACE) is not None and self._at < len(self._text):
            line = self._line_here()
            brackets = 2 if self._text.startswith("[[", self._at) else 1
            if self._text[self._at] == "[":
                self._at += brackets
                table = self._enter(tuple(self._key()), repeated=brackets == 2)
                for length in range(1, len(table) + 1):
                    found.setdefault(table[:length], line)
                self._at += brackets
            else:
                path = table
                for name in self._key():
                    path = (*path, name)
                    found.setdefault(path, line)
                if path == table:
                    break
                self._at += 1  # the '='
                self._skip_value()
        return found

    def _enter(self, names: Path, *, repeated: bool) -> Path:
        """Return the path that a header names; in an array of tables it means the last element."""
        path: Path = ()
        for depth, name in enumerate(names, 1):
            path = (*path, name)
            if repeated and depth == len(names):
                self._counts[path] = self._counts.get(path, 0) + 1
            if path in self._counts:
                path = (*path, self._counts[path] - 1)
        return path

    def _key(self) -> Iterator[str]:
        """Yield the parts of a dotted key, and stop after the last."""
        while True:
            self._take(_BLANK)
            part = self._take(_KEY)
            if not part:
                return
            yield _decoded(part) if part[0] in "\"'" else part
            self._take(_BLANK)
            if not self._text.startswith(".", self._at):
                return
            self._at += 1

    def _skip_value(self) -> None:
        """Skip to the end of the line on which the value ends."""
        depth = 0
        while token := self._take(_TOKEN):
            if token in ("[", "{"):
                depth += 1
            elif token in ("]", "}"):
                depth -= 1
            elif token == "\n" and depth <= 0:
                return

    def _take(self, pattern: re.Pattern[str]) -> str | None:
        match = pattern.match(self._text, self._at)
        if match is None:
            return None
        self._at = match.end()
        return match[0]

    def _line_here(self) -> int:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line


def _decoded(quoted: str) -> str:
    name: str = tomllib.loads(f"name = {quoted}")["name"]
    return name
