"""Files that a pattern matches, as :mod:`glob` has it: the client matches what the daemon lists."""

import os
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from vuserd.client import calls
from vuserd.client.core.conversation import Talk
from vuserd.client.core.procedure import Emit, Procedure, Stream
from vuserd.client.errors import RemoteError
from vuserd.client.records import Entry, WalkEntry

_MAGIC: Final = re.compile(r"[*?]|\[[^/]+\]")
_ANY_DEPTH: Final = "**"
#: Errors of a path that names no file.
_NOT_THERE: Final = frozenset({"ENOENT", "ENOTDIR", "ENAMETOOLONG", "ELOOP"})


class Lists(NamedTuple):
    """How to list what is in a directory, and all that is below it."""

    entries: Callable[[str], Procedure[list[Entry]]]
    tree: Callable[[str], Procedure[list[WalkEntry]]]


def glob(talk: Talk, export: str, pattern: str, lists: Lists) -> Stream[str]:
    """Emit the paths that a pattern matches, each once, in the order of each directory's names.

    Errors of directories below are passed over, as :func:`glob.glob` does.
    """
    root = "/" if pattern.startswith("/") else ""
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    at = next((i for i, part in enumerate(parts) if _MAGIC.search(part)), len(parts))
    base, rest = root + "/".join(parts[:at]), _without_repeats(parts[at:])
    if not rest:
        if (yield from _is_there(talk, export, base)):
            yield Emit([base])
    elif _ANY_DEPTH in rest:
        yield Emit((yield from _matches_below(talk, export, lists, base, rest)))
    else:
        yield from _level(talk, export, lists, base, rest)


def _without_repeats(parts: list[str]) -> list[str]:
    pairs = zip(parts, ["", *parts], strict=False)
    return [part for part, before in pairs if not part == before == _ANY_DEPTH]


def _level(
    talk: Talk, export: str, lists: Lists, directory: str, rest: Sequence[str]
) -> Stream[str]:
    """Emit what matches in a directory and, by the parts after the first, below it."""
    part, *below = rest
    if not _MAGIC.search(part):
        names = [part]
    else:
        entries = yield from lists.entries(directory)
        names = sorted(
            entry.name
            for entry in entries
            if _matches(entry.name, part) and not (below and entry.type == "file")
        )
    found = [_join(directory, name) for name in names]
    if below:
        for path in found:
            yield from _level(talk, export, lists, path, below)
    elif _MAGIC.search(part) or (yield from _is_there(talk, export, found[0])):
        yield Emit(found)


def _matches_below(
    talk: Talk, export: str, lists: Lists, directory: str, parts: Sequence[str]
) -> Procedure[list[str]]:
    """Return what matches in a tree, where symlinks lead nowhere."""
    entries = yield from lists.tree(directory)
    found = [
        _join(directory, entry.path) for entry in entries if _fit(entry.path.split("/"), parts)
    ]
    is_of_all = set(parts) == {_ANY_DEPTH} and directory not in ("", "/")
    if is_of_all and (entries or (yield from _is_there(talk, export, directory))):
        found.append(directory)
    return sorted(found)


def _fit(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Return whether the components of a path match the parts of a pattern, all of both."""
    reached = _with_any_depth({0}, parts)
    for name in names:
        following = set()
        for at in reached - {len(parts)}:
            if parts[at] != _ANY_DEPTH:
                if _matches(name, parts[at]):
                    following.add(at + 1)
            elif name[:1] != ".":
                following.add(at)
        reached = _with_any_depth(following, parts)
    return len(parts) in reached


def _with_any_depth(reached: set[int], parts: Sequence[str]) -> set[int]:
    """Add the parts that come next where ``**`` stands for nothing."""
    return reached | {at + 1 for at in reached if at < len(parts) and parts[at] == _ANY_DEPTH}


def _matches(name: str, part: str) -> bool:
    return (name[:1] != "." or part[:1] == ".") and fnmatchcase(name, part)


def _join(directory: str, name: str) -> str:
    return os.path.join(directory, name) if directory else name


def _is_there(talk: Talk, export: str, path: str) -> Procedure[bool]:
    try:
        yield from talk.ask(calls.stat(export, path, follow=False))
    except RemoteError as error:
        if error.code not in _NOT_THERE:
            raise
        return False
    return True
