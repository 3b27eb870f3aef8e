"""What was probably meant, by what a configuration file says: words to add to a mistake."""

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any, Final

from vuserd.config.schema import TABLES, heading

_ABOVE: Final = "above the first [table]"
#: A value without quotes, and a key before it on the same line.
_BARE: Final = re.compile(r"[^\s,\[\]{}#\"']+")
_KEY: Final = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=\s*")
_WORDS: Final = ("true", "false")


def unknown(table: str, name: str, value: Any) -> tuple[str, str]:
    """Return what is wrong and what would be right about an unknown key or table."""
    if not table and _is_table(value):
        tables = {name: heading(name) for name in TABLES if name}
        close = closest(name, tables)
        right = f"did you mean {tables[close]}?" if close else f"there are {_listed(tables)}"
        return "there is no such table", right
    wrong = "there is no such key"
    elsewhere = [other for other in TABLES if other != table and name in TABLES[other].keys]
    if elsewhere:
        places = " or ".join(f"below {heading(other)}" if other else _ABOVE for other in elsewhere)
        return f"{wrong} here", f"write it {places}"
    known = [*TABLES[table].keys, *(filter(None, TABLES) if not table else ())]
    if close := closest(name, known):
        return wrong, f'did you mean "{close}"?'
    return wrong, f"those of {heading(table)} are {', '.join(known)}"


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the word that is most like this one, whatever its case; None if none is."""
    close = difflib.get_close_matches(word.lower(), list(known), 1)
    return close[0] if close else None


def unquoted(message: str, line: str, column: int) -> str:
    """Return what is right where tomllib finds no value at a column; empty if that is not known."""
    if not message.startswith(("Invalid value", "Expected newline")):
        return ""
    key = _KEY.match(line)
    whole = _BARE.match(line, key.end()) if key is not None else None
    if key is not None and whole is not None:
        return f"did you mean {key[1]} = {_quoted(whole[0])}?"
    part = _BARE.match(line, column - 1)
    return "" if part is None else f"did you mean {_quoted(part[0])}?"


def _quoted(word: str) -> str:
    return word.lower() if word.lower() in _WORDS else json.dumps(word)


def _is_table(value: Any) -> bool:
    elements = value if isinstance(value, list) and value else [value]
    return all(isinstance(element, dict) for element in elements)


def _listed(tables: dict[str, str]) -> str:
    return ", ".join(tables.values())
