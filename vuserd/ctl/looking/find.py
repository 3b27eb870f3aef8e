"""``vuserctl find``: the files of a tree that pass tests, as findutils' find names them."""

import os
import re
import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, Final

from vuserd.client.records import Entry, Stat
from vuserd.client.sync_client import Client
from vuserd.ctl.looking.walking import Turn, walk
from vuserd.ctl.operands import for_each
from vuserd.ctl.output import complain, emit_json, entry_fields, shown
from vuserd.ctl.target import Target

#: Whether a file is one of those that are looked for.
Test = Callable[[Entry], bool]

_TYPES: Final = {
    "f": "file", "d": "dir", "l": "symlink", "p": "fifo", "s": "socket", "c": "char", "b": "block",
}  # fmt: skip
_SIZE: Final = re.compile(r"([+-]?)([0-9]{1,18})([cwbkMG]?)", re.ASCII)
_UNITS: Final = {"c": 1, "w": 2, "b": 512, "": 512, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def named(pattern: str, *, any_case: bool = False) -> Test:
    """Return the test for a name that matches a shell's pattern."""
    if any_case:
        folded = pattern.lower()
        return lambda entry: fnmatchcase(entry.name.lower(), folded)
    return lambda entry: fnmatchcase(entry.name, pattern)


def of_type(letters: str) -> Test:
    """Return the test for a type, or for one of several with commas in between.

    Raises:
        ValueError: find has no such type.

    """
    unknown = set(letters.split(",")) - _TYPES.keys()
    if unknown:
        raise ValueError(f"{letters!r} is not of the types {','.join(_TYPES)}")
    types = {_TYPES[letter] for letter in letters.split(",")}
    return lambda entry: entry.type in types


def of_size(text: str) -> Test:
    """Return the test for a size: so many units, rounded up; more than that (+) or fewer (-).

    Raises:
        ValueError: the text is no such size.

    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 100c, +4k, -1M or 2G")
    sign, number, unit = match.groups()

    def test(stat: Stat) -> bool:
        units, wanted = -(-stat.size // _UNITS[unit]), int(number)
        return units > wanted if sign == "+" else units < wanted if sign else units == wanted

    return lambda entry: entry.stat is not None and test(entry.stat)


def newer_than(client: Client, name: str) -> Test:
    """Return the test for what was modified after a file, of an export or a local one.

    As with scp, a name with a slash before its first colon is local.

    Raises:
        ValueError: the name is of no file.
        RemoteError: the daemon has no such file.
        OSError: it cannot be looked at.

    """
    if ":" in name.partition("/")[0]:
        since = client.stat(*Target.parse(name)).mtime_ns
    else:
        since = os.stat(name).st_mtime_ns
    return lambda entry: entry.stat is not None and entry.stat.mtime_ns > since


def find(
    client: Client,
    targets: list[Target],
    tests: list[Test],
    *,
    depth: int | None = None,
    zero: bool = False,
    as_json: bool = False,
) -> int:
    """Print what passes all tests, of the targets and what is below; return the exit code.

    Args:
        client: the connection.
        targets: where to begin; a symlink is not followed.
        tests: all of them have to be passed.
        depth: how many levels to descend; 0 is the targets alone, None is all.
        zero: end each name by a null byte, and escape nothing.
        as_json: print a list.

    """
    maps: list[dict[str, Any]] = []
    codes: list[int] = []

    def look_at(target: Target, entry: Entry) -> None:
        if not all(test(entry) for test in tests):
            return
        if as_json:
            maps.append({"path": str(target)} | entry_fields(entry))
        else:
            _write(str(target), zero=zero)

    def begin(root: Target) -> None:
        stat = client.stat(*root, follow=False)
        look_at(root, Entry(root.name, stat.type, stat.ino, stat))
        if stat.type != "dir" or depth == 0:
            return
        for turn, target, entry, _, _, error in walk(client, root, depth=depth, attrs=True):
            if turn is not Turn.LEAVE:
                look_at(target, entry)
            if error is not None:
                codes.append(complain(f"{target}: {error.words}"))

    codes.append(for_each(client, targets, begin))
    if as_json:
        emit_json(maps)
    return max(codes)


def _write(name: str, *, zero: bool) -> None:
    sys.stdout.write(f"{name}\0" if zero else f"{shown(name)}\n")
