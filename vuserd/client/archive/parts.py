"""Parts of a tree that come at once, with the bytes of their small files: one call for hundreds.

The daemon sends a tree in the order of its directories, and an archive is sorted: so a part is a
directory with all below it whose small files are few bytes, and what came of it waits for its turn.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

from vuserd.client.archive.looks import below
from vuserd.client.archive.members import Member
from vuserd.client.calls import RemotePath
from vuserd.client.core.procedure import Procedure, Stream, drained
from vuserd.client.errors import RemoteError
from vuserd.client.records import Stat
from vuserd.errors import ErrorCode

if TYPE_CHECKING:
    from vuserd.client.files.tree_page import TreeEntry

#: Asks for all that is below a directory.
Subtree: TypeAlias = "Callable[[bytes], Stream[TreeEntry]]"

#: The largest file whose bytes come with the part that it is in.
SMALL: Final = 1 << 20
#: Bytes of small files that wait for their turn.
_HELD: Final = 16 << 20


class Parts:
    """What has come, and which part is to be asked for.

    Args:
        subtree: asks for a part, by its path in the export.
        path: where the tree is in the export.
        tree: what is in the tree.

    """

    def __init__(self, subtree: Subtree, path: RemotePath, tree: Mapping[bytes, Stat]) -> None:
        self._subtree, self._path, self._tree = subtree, path, tree
        self._contents: dict[bytes, bytes] = {}
        self._held = 0
        self._asked: set[bytes] = set()
        self._is_known = True  # to the daemon
        #: The bytes of small files, and of links' targets, below each directory.
        self._sums: dict[bytes, int] = {}
        for name, stat in tree.items():
            if _comes_along(stat):
                for above in _above(name):
                    self._sums[above] = self._sums.get(above, 0) + stat.size

    def take(self, member: Member) -> bytes | None:
        """Return what has come of a member: a file's bytes, or where a symlink leads."""
        content = self._contents.pop(member.path, None)
        self._held -= len(content or b"")
        return content

    def wanted(self, member: Member) -> bytes | None:
        """Return the part that a member would come with, if that was not asked for yet."""
        if not self._is_known or member.path in self._contents:
            return None
        if not _comes_along(self._tree[member.path]):
            return None
        for above in reversed([*_above(member.path)]):
            if self._sums[above] <= _HELD:
                return None if above in self._asked else above
        return None

    def ask(self, part: bytes) -> Procedure[None]:
        """Ask for a part, and take in what comes. What does not is for the reader of each file."""
        self._asked.add(part)

        def add(entries: "Iterable[TreeEntry]") -> None:
            for entry in entries:
                self._add(part, entry)

        try:
            yield from drained(self._subtree(below(self._path, part)), add)
        except RemoteError as error:
            if error.code == ErrorCode.UNKNOWN_METHOD:  # to an older daemon
                self._is_known = False

    def _add(self, part: bytes, entry: "TreeEntry") -> None:
        name = os.fsencode(entry.path)
        name = part + b"/" + name if part else name
        before = self._tree.get(name)
        if before is None or entry.stat is None or not entry.stat.same_file(before):
            return
        content = content_of(before, entry)
        if content is None or not _comes_along(before) or self._held + len(content) > _HELD:
            return
        self._contents[name] = bytes(content)
        self._held += len(content)


def content_of(before: Stat, entry: "TreeEntry") -> bytes | memoryview | None:
    """Return what an entry has of a file or symlink; None if that does not fit what it was.

    A daemon that is not believed could write members of its own into the archive otherwise.
    """
    if entry.stat is None or entry.stat.type != before.type:
        return None
    if before.type == "symlink":
        return None if entry.target is None else os.fsencode(entry.target)
    content = entry.content
    return content if content is not None and len(content) == before.size else None


def _comes_along(stat: Stat) -> bool:
    """Return whether a file comes with its part; one with several names is read by itself."""
    if stat.type == "symlink":
        return True
    return stat.type == "file" and stat.nlink == 1 and stat.size <= SMALL


def _above(path: bytes) -> Iterable[bytes]:
    """Yield the directories that a path is in, from the innermost to the root."""
    while path:
        path = path.rpartition(b"/")[0]
        yield path
