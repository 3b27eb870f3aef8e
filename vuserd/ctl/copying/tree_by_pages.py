"""Fetch a directory for ``vuserctl get -r`` by pages of its tree, which bring small files whole."""

import os
from collections import OrderedDict
from typing import Final

from vuserd.client.files.tree_page import TreeEntry
from vuserd.client.records import Stat
from vuserd.client.sync_client import Client
from vuserd.ctl.copying.how import SKIPPED
from vuserd.ctl.copying.local_tree import LocalTree, Names
from vuserd.ctl.output import complain
from vuserd.ctl.target import Target
from vuserd.errors import ErrorCode

#: Local directories that are open at once.
_MOST_OPEN: Final = 64


def fetch_by_pages(client: Client, target: Target, tree: LocalTree) -> None:
    """Fetch all below a directory; what fails is reported, and the rest comes.

    Raises:
        RemoteError: the directory itself cannot be fetched.

    """
    fetch = _PagesFetch(target, tree)
    try:
        for entry in client.tree(target.export, target.path):
            fetch.take(entry)
    finally:
        fetch.close()


class _Linked:
    """A file with several names of which one was put; ``left`` more may come."""

    __slots__ = ("first", "identity", "left", "stat")

    def __init__(self, first: Names, stat: Stat, identity: tuple[int, int]) -> None:
        self.first = first
        self.stat = stat
        self.identity = identity
        self.left = stat.nlink - 1


class _PagesFetch:
    def __init__(self, target: Target, tree: LocalTree) -> None:
        self._target = target
        self._tree = tree
        #: The names of each directory that is there, by its path, and whether it was made.
        self._directories: dict[str, tuple[Names, bool]] = {"": ((), tree.is_new)}
        #: Those that are not fetched, or could not be made: nor is what is in them.
        self._left_out: set[str] = set()
        self._open: OrderedDict[str, int] = OrderedDict()
        self._linked: dict[bytes, _Linked] = {}

    def close(self) -> None:
        """Close all directories."""
        while self._open:
            os.close(self._open.popitem()[1])

    def take(self, entry: TreeEntry) -> None:
        """Put an entry in place, or report why it is not."""
        path = entry.path
        above, _, name = path.rpartition("/")
        directory = self._directories.get(above)
        if directory is None:
            if above in self._left_out:
                self._left_out.add(path)
            else:
                self._tree.fail(f"{self._of(path)}: comes before its directory")
            return
        if not path:  # the directory itself
            self._tree.fail(f"{self._target}: {entry.error.words if entry.error else ''}")
            return
        names = (*directory[0], name)
        try:
            self._put(entry, above, names, is_new=directory[1])
        except Exception as error:
            self._tree.failed(error, self._of(path), names)
            if entry.stat is not None and entry.stat.type == "dir":
                self._directories.pop(path, None)
                self._left_out.add(path)

    def _of(self, path: str) -> Target:
        return self._target.child(path)

    def _put(self, entry: TreeEntry, above: str, names: Names, *, is_new: bool) -> None:
        tree, stat, content = self._tree, entry.stat, entry.content
        if content is not None and entry.link is None and stat is not None:
            if not tree.how.update or not tree.how.is_current(stat, names[-1], self._opened(above)):
                tree.put_file(self._opened(above), names, stat, content, is_new=is_new)
                self._there(entry, names, len(content))
            return
        if entry.error is not None and (stat is None or entry.error.code != ErrorCode.CHANGED):
            raise entry.error
        assert stat is not None
        if stat.type == "dir":
            made = tree.make_directory(self._opened(above), names, self._of(entry.path), stat)
            if made is None:
                self._left_out.add(entry.path)
            else:
                self._directories[entry.path] = names, made
                if not made:  # it may be a file, or a link to elsewhere
                    self._opened(entry.path)
        elif stat.type == "symlink":
            tree.put_symlink(self._opened(above), names, entry.target, stat)
            self._there(entry, names, 0)
        elif stat.type in SKIPPED:
            complain(f"{self._of(entry.path)}: skipped, a {stat.type}")
        elif stat.type != "file":
            tree.fail(f"{self._of(entry.path)}: of a type that is not known, {stat.type!r}")
        elif not tree.how.is_current(stat, names[-1], self._opened(above)):
            self._put_file(entry, stat, self._opened(above), names)

    def _put_file(self, entry: TreeEntry, stat: Stat, above: int, names: Names) -> None:
        """Put a file that has several names, or that comes by itself."""
        linked = None if entry.link is None else self._linked.get(entry.link)
        if linked is not None and linked.stat.same_file(stat):
            linked.left -= 1
            if linked.left <= 0 and entry.link is not None:
                del self._linked[entry.link]
            if self._tree.put_link(above, names, linked.first, linked.identity):
                self._there(entry, names, 0)
                return
        if entry.content is not None:
            self._tree.put_file(above, names, stat, entry.content)
            size = len(entry.content)
        else:
            size = self._tree.fetch(above, names, self._of(entry.path), stat)
        if linked is None and entry.link is not None and stat.nlink > 1:
            status = os.stat(names[-1], dir_fd=above, follow_symlinks=False)
            identity = status.st_dev, status.st_ino
            self._linked[entry.link] = _Linked(names, stat, identity)
        self._there(entry, names, size)

    def _there(self, entry: TreeEntry, names: Names, size: int) -> None:
        self._tree.there(lambda: self._of(entry.path), names, size)

    def _opened(self, path: str) -> int:
        """Return a directory, open; the one used longest ago is closed for it."""
        fileno = self._open.get(path)
        if fileno is None:
            if len(self._open) >= _MOST_OPEN:
                os.close(self._open.popitem(last=False)[1])
            fileno = self._open[path] = self._tree.open(self._directories[path][0])
        else:
            self._open.move_to_end(path)
        return fileno
