"""Two looks at a whole tree: one before its archive is written, and one after."""

import os
from collections.abc import Callable, Iterable
from itertools import compress
from operator import not_
from typing import TypeAlias

from vuserd.client import calls
from vuserd.client.calls import RemotePath
from vuserd.client.core.conversation import Talk
from vuserd.client.core.procedure import Procedure
from vuserd.client.core.walking import walk_raw
from vuserd.client.errors import BadReply, RemoteError
from vuserd.client.listing.following import Following
from vuserd.client.records import Stat

#: Attributes by path, from the tree's root.
Tree: TypeAlias = dict[bytes, Stat]

#: What no file is called.
_NO_NAMES = frozenset({b"", b".", b".."})
#: Errors of a name that is there no more.
GONE = frozenset({"ENOENT", "ENOTDIR", "ESTALE"})


class Exclusion:
    """What is left out of a tree: what patterns match, and all below that.

    A pattern without a slash matches names at any depth; another one paths from the tree's root,
    component by component.
    """

    def __init__(self, patterns: Iterable[str | bytes]) -> None:
        self._patterns = [os.fsencode(pattern).strip(b"/").split(b"/") for pattern in patterns]
        self._cut: set[bytes] = set()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left out."""
        return not self._patterns

    def covers(self, path: bytes) -> bool:
        """Return whether a path is left out; its parents are asked about first."""
        if not self._patterns or not path:
            return False
        parent, _, name = path.rpartition(b"/")
        if parent in self._cut or self._matches(path.split(b"/"), name):
            self._cut.add(path)
            return True
        return False

    def _matches(self, components: list[bytes], name: bytes) -> bool:
        from fnmatch import fnmatchcase

        return any(
            fnmatchcase(name, pattern[0])
            if len(pattern) == 1
            else len(pattern) == len(components) and all(map(fnmatchcase, components, pattern))
            for pattern in self._patterns
        )


def first_look(talk: Talk, export: str, path: RemotePath, exclusion: Exclusion) -> Procedure[Tree]:
    """Return all that is below a directory.

    Raises:
        RemoteError: a directory cannot be read, or what the daemon says else.

    """
    tree: Tree = {}
    directory = b""  # that it is one was seen

    def add(names: list[bytes], stats: list[Stat]) -> None:
        nonlocal directory
        for name, stat in zip(names, stats, strict=True):
            above, _, last = name.rpartition(b"/")
            if last in _NO_NAMES or name.startswith(b"/"):
                raise BadReply(f"the daemon sent {name!r}, which is no path of a file")
            if above != directory and above:
                parent = tree.get(above)
                if parent is None or parent.type != "dir":
                    raise BadReply(f"the daemon sent {name!r}, which is below no directory")
                directory = above
            tree.setdefault(name, stat)

    problems = yield from _look(talk, export, path, exclusion, add)
    if problems:
        raise problems[0]
    return tree


def second_look(
    talk: Talk, export: str, path: RemotePath, exclusion: Exclusion, tree: Tree
) -> Procedure[list[bytes]]:
    """Return the paths of what differs from the first look, sorted."""
    seen: set[bytes] = set()
    changed: set[bytes] = set()

    def compare(names: list[bytes], stats: list[Stat]) -> None:
        seen.update(names)
        before = [*map(tree.get, names)]
        if before != stats:
            changed.update(
                name
                for name, old, new in zip(names, before, stats, strict=True)
                if old is None or old.type != new.type or not old.same_file(new)
            )

    problems = yield from _look(talk, export, path, exclusion, compare)
    if problems and problems[0].code not in GONE:
        raise problems[0]
    return sorted(changed.union(tree.keys() - seen))


def _look(
    talk: Talk,
    export: str,
    path: RemotePath,
    exclusion: Exclusion,
    take: Callable[[list[bytes], list[Stat]], None],
) -> Procedure[list[RemoteError]]:
    """Hand over all files below a directory; return why directories could not be read.

    The daemon reads a page while the one before it is taken.
    """
    problems: list[RemoteError] = []
    pages = Following()
    columns = yield from talk.has_columns(export, path)
    ticket = talk.begin(walk_raw(export, path, None, attrs=True, columns=columns))
    try:
        while True:
            page = yield from talk.finish(ticket)
            after = pages.take(page.next, is_empty=page.is_empty)
            if after is not None:
                call = walk_raw(export, path, after, attrs=True, columns=columns)
                ticket = talk.begin(call, ticket.core)
            entries = page.decoded().entries
            names = names_of([entry.path for entry in entries])
            stats = [entry.stat for entry in entries]
            if not exclusion.is_empty:
                covered = [*map(exclusion.covers, names)]
                names = [*compress(names, map(not_, covered))]
                stats = [*compress(stats, map(not_, covered))]
            if None in stats:
                for at, name in enumerate(names):
                    if stats[at] is None:
                        stats[at] = yield from _attributes(talk, export, below(path, name))
                names = [*compress(names, stats)]
            take(names, [stat for stat in stats if stat is not None])
            problems += [
                problem.error
                for problem in page.problems
                if not exclusion.covers(os.fsencode(problem.path))
            ]
            if after is None:
                return problems
    finally:
        talk.abandon(ticket)
        ticket.core.held.discard(calls.walk_going_on(pages.after))


def names_of(paths: list[str]) -> list[bytes]:
    """Return paths as bytes.

    Raises:
        BadReply: one has a NUL in it.

    """
    names = os.fsencode("\0".join(paths)).split(b"\0") if paths else []
    if len(names) != len(paths):
        raise BadReply("the daemon sent a path with a NUL in it")
    return names


def _attributes(talk: Talk, export: str, path: bytes) -> Procedure[Stat | None]:
    """Ask for what a listing did not have; None where the file is gone."""
    try:
        return (yield from talk.ask(calls.stat(export, path, follow=False)))
    except RemoteError as error:
        if error.code in GONE:
            return None
        raise


def below(path: RemotePath, name: bytes) -> bytes:
    """Return where in the export a path of the tree is."""
    return os.fsencode(path).rstrip(b"/") + b"/" + name
