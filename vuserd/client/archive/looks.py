"""Two looks at a whole tree: one before its archive is written, and one after."""

import os
from collections.abc import Callable, Iterable
from typing import TypeAlias

from vuserd.client import calls
from vuserd.client.calls import RemotePath
from vuserd.client.core.conversation import Talk
from vuserd.client.core.procedure import Procedure
from vuserd.client.errors import BadReply, RemoteError
from vuserd.client.listing.columns import PAGE_OF_COLUMNS
from vuserd.client.listing.following import Following
from vuserd.client.records import Stat

#: Attributes by path, from the tree's root.
Tree: TypeAlias = dict[bytes, Stat]

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

    def add(name: bytes, stat: Stat) -> None:
        above, slash, last = name.rpartition(b"/")
        parent = tree.get(above)
        if last in (b"", b".", b"..") or b"\0" in last or (slash and parent is None):
            raise BadReply(f"the daemon sent {name!r}, which is no path of a file")
        if parent is not None and parent.type != "dir":
            raise BadReply(f"the daemon sent {name!r}, which is below no directory")
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

    def compare(name: bytes, stat: Stat) -> None:
        seen.add(name)
        before = tree.get(name)
        if before != stat and (
            before is None or before.type != stat.type or not before.same_file(stat)
        ):
            changed.add(name)

    problems = yield from _look(talk, export, path, exclusion, compare)
    if problems and problems[0].code not in GONE:
        raise problems[0]
    return sorted(changed.union(tree.keys() - seen))


def _look(
    talk: Talk,
    export: str,
    path: RemotePath,
    exclusion: Exclusion,
    take: Callable[[bytes, Stat], None],
) -> Procedure[list[RemoteError]]:
    """Hand over each file below a directory; return why directories could not be read."""
    problems: list[RemoteError] = []
    pages = Following()
    columns = yield from talk.has_columns()
    limit = PAGE_OF_COLUMNS if columns else calls.PAGE_ENTRIES
    try:
        while True:
            after = pages.after
            page = yield from talk.ask(
                calls.walk(export, path, attrs=True, limit=limit, after=after, columns=columns)
            )
            pages.take(page.next, is_empty=page.is_empty)
            for entry in page.entries:
                name = os.fsencode(entry.path)
                if exclusion.covers(name):
                    continue
                stat = entry.stat
                if stat is None:
                    stat = yield from _attributes(talk, export, below(path, name))
                if stat is not None:
                    take(name, stat)
            problems += [
                problem.error
                for problem in page.problems
                if not exclusion.covers(os.fsencode(problem.path))
            ]
            if pages.after is None:
                return problems
    finally:
        talk.link.core.held.discard(calls.walk_going_on(pages.after))


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
