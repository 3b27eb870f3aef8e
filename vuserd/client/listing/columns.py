"""Pages of listings and walks, made of what came in columns or as maps.

Columns are checked and made into records all at once: a list a field, all of one length. What is in
maps is checked an entry at a time, by :mod:`vuserd.client.records`.
"""

import sys
from collections.abc import Callable, Iterable
from itertools import compress, repeat
from typing import Any, Final, NamedTuple, TypeVar

from vuserd.client.errors import BadReply
from vuserd.client.records import (
    DirectoryPage,
    Entry,
    PageToken,
    Stat,
    WalkEntry,
    WalkPage,
    WalkProblem,
    field_of,
    next_token,
    require_possible,
    to_list,
    to_name,
)

#: The daemon's API level from which on it sends columns.
COLUMNS_LEVEL: Final = 3
#: The one from which on it reads ahead for a client that asks for all pages.
AHEAD_LEVEL: Final = 5

T = TypeVar("T")

#: Entries of a page where all pages are asked for: more than of maps, and so fewer calls.
PAGE_OF_COLUMNS: Final = 4000
#: And of names without attributes, of which a daemon sends no more at once.
PAGE_OF_NAMES: Final = 10_000
#: The fields of a stat but the first and the last one, which have types of their own.
_NUMBERS: Final = Stat._fields[1:-1]
_NO_NAMES: Final = frozenset({"", ".", ".."})
_INT: Final = frozenset({int})
_INT_OR_NIL: Final = frozenset({int, type(None)})


class RawPage(NamedTuple):
    """A page of a directory, its entries as they came: so the next one can be asked for first."""

    entries: Any
    next: PageToken | None

    @classmethod
    def from_wire(cls, value: Any) -> "RawPage":
        """Make it of what ``readdir`` returns."""
        return cls(field_of(value, "entries", _to_entries), next_token(value))

    @property
    def is_empty(self) -> bool:
        """Whether it has no entries."""
        return not _has_any(self.entries, "name")

    def decoded(self) -> DirectoryPage:
        """Return the page with its entries as records."""
        if isinstance(self.entries, dict):
            values = _entry_values(self.entries, "name")
            return DirectoryPage([*_records(Entry, values)], self.next)
        return DirectoryPage([Entry.from_wire(entry) for entry in self.entries], self.next)


def directory_page(value: Any) -> DirectoryPage:
    """Make a page of what ``readdir`` returns."""
    return RawPage.from_wire(value).decoded()


class RawWalkPage(NamedTuple):
    """A page of a tree, its entries as they came."""

    entries: Any
    problems: list[WalkProblem]
    next: PageToken | None

    @classmethod
    def from_wire(cls, value: Any) -> "RawWalkPage":
        """Make it of what ``walk`` returns."""
        problems = field_of(value, "problems", to_list)
        return cls(
            field_of(value, "entries", _to_entries),
            [WalkProblem.from_wire(problem) for problem in problems],
            next_token(value),
        )

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing of the tree."""
        return not (self.problems or _has_any(self.entries, "path"))

    def decoded(self) -> WalkPage:
        """Return the page with its entries as records."""
        if isinstance(self.entries, dict):
            values = _entry_values(self.entries, "path")
            return WalkPage([*_records(WalkEntry, values)], self.problems, self.next)
        entries = [WalkEntry.from_wire(entry) for entry in self.entries]
        return WalkPage(entries, self.problems, self.next)


def walk_page(value: Any) -> WalkPage:
    """Make a page of what ``walk`` returns."""
    return RawWalkPage.from_wire(value).decoded()


def _has_any(entries: Any, key: str) -> bool:
    """Return whether there are any."""
    return bool(entries.get(key) if isinstance(entries, dict) else entries)


def _to_entries(value: object) -> Any:
    """Return columns or maps, whichever they are."""
    return value if isinstance(value, dict) else to_list(value)


def _entry_values(columns: dict[str, Any], key: str) -> Iterable[tuple[Any, ...]]:
    """Return the values of each entry: name or path, type, inode number, attributes or None."""
    names = _names(field_of(columns, key, to_list), key)
    count = len(names)
    kinds = _kinds(_column(columns, "type", count))
    inos = _numbers(columns, "ino", count, _INT)
    has_stats = "mode" in columns
    stats = _stats(columns, kinds, inos) if has_stats else repeat(None, count)
    return zip(names, kinds, inos, stats, strict=True)


def _records(record: type[T], rows: Iterable[tuple[Any, ...]]) -> Iterable[T]:
    """Return records of values that were checked by their columns."""
    new: Callable[..., T] = tuple.__new__
    return map(new, repeat(record), rows)


def _names(values: list[Any], key: str) -> list[str]:
    """Return names or paths as records have them."""
    try:
        joined = "".join(values)
    except TypeError:  # one is no str: most likely a bin
        values = [to_name(value) for value in values]
        joined = "".join(values)
    has_odd = _has_odd_name if key == "name" else _has_odd_path
    if "\0" in joined or has_odd(values, joined):
        raise BadReply(f"the daemon sent a {key} that no file can have")
    if joined.isascii():
        return values
    return to_name("\0".join(values)).split("\0")


def _has_odd_name(names: list[str], joined: str) -> bool:
    """Return whether one is no name of a file."""
    return "/" in joined or not _NO_NAMES.isdisjoint(names)


def _has_odd_path(paths: list[str], _: str) -> bool:
    """Return whether one has a component that is no name of a file."""
    components = "/{}/".format("/".join(paths))
    return bool(paths) and any(odd in components for odd in ("//", "/./", "/../"))


def _kinds(values: list[Any]) -> list[str]:
    """Return types, of which there are few: a str is kept once."""
    try:
        return [*map(sys.intern, values)]
    except TypeError:
        raise BadReply("the daemon sent a type that is no str") from None


def _stats(columns: dict[str, Any], kinds: list[str], inos: list[int]) -> Iterable[Stat | None]:
    """Return the attributes of all entries; None for one whose attributes are nil."""
    count = len(kinds)
    modes = _column(columns, "mode", count)
    submounts = [False] * count
    if "submount" in columns:
        submounts = [*map(bool, _column(columns, "submount", count))]
    if None not in modes:
        return _made_stats(columns, kinds, inos, submounts)
    has_stat = [mode is not None for mode in modes]
    there = {
        field: [*compress(_column(columns, field, count), has_stat)]
        for field in ("type", "ino", *_NUMBERS)
    }
    chosen = compress(submounts, has_stat)
    made = iter(_made_stats(there, there["type"], there["ino"], chosen))
    return [next(made) if has else None for has in has_stat]


def _made_stats(
    columns: dict[str, Any], kinds: list[str], inos: list[int], submounts: Iterable[bool]
) -> Iterable[Stat]:
    count = len(kinds)
    numbers = [
        inos
        if field == "ino"
        else _numbers(columns, field, count, _INT_OR_NIL if field in ("uid", "gid") else _INT)
        for field in _NUMBERS
    ]
    return _records(Stat, zip(kinds, *numbers, submounts, strict=True))


def _column(columns: dict[str, Any], field: str, count: int) -> list[Any]:
    """Return one column, which has a value of each entry."""
    values: list[Any] = field_of(columns, field, to_list)
    if len(values) != count:
        raise BadReply(f"the daemon sent {len(values)} values of {field!r} for {count} entries")
    return values


def _numbers(columns: dict[str, Any], field: str, count: int, kinds: frozenset[type]) -> list[Any]:
    values = _column(columns, field, count)
    if not {*map(type, values)} <= kinds:
        raise BadReply(f"the daemon sent a {field!r} of the wrong type")
    require_possible(field, values)
    return values
