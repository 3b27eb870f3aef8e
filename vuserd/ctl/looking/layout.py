"""How a listing is laid out: in lines of attributes, or in columns of names as on a terminal."""

import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Final

from vuserd.client.records import Entry, Stat
from vuserd.ctl.output import clock, known, rounded_size, shown, size_or_device

#: Returns how the name of an entry is shown.
Paint = Callable[[Entry, str], str]

_GAP: Final = 2  # spaces between two columns
_NARROWEST: Final = 1 + _GAP


def long_lines(
    entries: Iterable[Entry], targets: Mapping[str, str], paint: Paint, *, human: bool
) -> Iterator[str]:
    """Return entries in columns as ``ls -l`` does; ``targets`` are those of the symlinks."""
    rows = [(*_long_columns(entry.stat, human=human), entry) for entry in entries]
    widths = [max(map(len, column)) for column in zip(*(row[:-1] for row in rows), strict=True)]
    for mode, links, uid, gid, size, mtime, entry in rows:
        target = targets.get(entry.name)
        name = paint(entry, shown(entry.name))
        columns = (
            mode,
            links.rjust(widths[1]),
            uid.ljust(widths[2]),
            gid.ljust(widths[3]),
            size.rjust(widths[4]),
            mtime.ljust(widths[5]),
            name if target is None else f"{name} -> {shown(target)}",
        )
        yield " ".join(columns)


def _long_columns(attributes: Stat | None, *, human: bool) -> tuple[str, str, str, str, str, str]:
    if attributes is None:  # the file is gone, or this client may not see its attributes
        return ("??????????", "?", "?", "?", "?", "?")
    is_sized = human and attributes.type not in ("char", "block")
    return (
        stat.filemode(attributes.mode & 0o177777),
        str(attributes.nlink),
        known(attributes.uid),
        known(attributes.gid),
        rounded_size(attributes.size) if is_sized else size_or_device(attributes),
        clock(attributes.mtime_ns // 10**9, "%Y-%m-%d %H:%M"),
    )


def name_columns(entries: Sequence[Entry], paint: Paint, width: int) -> Iterator[str]:
    """Return names in as many columns as ``width`` has room for, downwards as ``ls`` does."""
    names = [shown(entry.name) for entry in entries]
    sizes = [_cells(name) for name in names]
    rows, widths = 1, list[int]()
    for columns in range(min(len(names), max(width // _NARROWEST, 1)), 0, -1):
        rows = -(-len(names) // columns)
        widths = [max(sizes[at : at + rows]) for at in range(0, len(names), rows)]
        if columns == 1 or sum(widths) + _GAP * (len(widths) - 1) <= width:
            break
    painted = [paint(entry, name) for entry, name in zip(entries, names, strict=True)]
    cells = list(zip(painted, sizes, strict=True))
    for row in zip_longest(*(cells[at : at + rows] for at in range(0, len(cells), rows))):
        line, pad = "", 0
        for cell, room in zip(row, widths, strict=True):
            if cell is not None:
                line += " " * pad + cell[0]
                pad = room - cell[1] + _GAP
        yield line


def _cells(text: str) -> int:
    """Return how many cells of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width  # large, and for such names alone

    return sum(0 if combining(each) else 1 + (east_asian_width(each) in "WF") for each in text)
