"""Recognize directories of an export that a copy writes into, which it would fetch without end.

No inode number proves that a directory of the export is one of the destination: two file systems
may use the same number, and one directory has two when seen through another file system (overlayfs,
FUSE).  A file that is put into the one and then seen in the other does prove it.
"""

import os
from typing import Final

from vuserd.client.errors import RemoteError, TimedOut
from vuserd.client.records import Stat
from vuserd.client.sync_client import Client
from vuserd.ctl.copying.atomic_file import open_below, probe
from vuserd.ctl.target import Target

_SECOND: Final = 1_000_000_000


class OwnCopies:
    """The directories below an open one, ``root``, that a copy has entered."""

    def __init__(self, client: Client, root: int) -> None:
        self._client = client
        self._root = root
        #: The names that lead from the root to a directory, by its inode number.
        self._entered: dict[int, list[tuple[str, ...]]] = {}
        #: A directory that has not changed since then is not the root; None if the root is not
        #: writable.
        self._since_ns: int | None = None

    def begin(self, target: Target, *, made: bool) -> bool:
        """Enter the root, which was ``made`` just now or before; return whether it is the target.

        This changes the root, which distinguishes it from most other directories.
        """
        found = not made and self._is(target, ())
        status = os.fstat(self._root)
        self.enter((), status)
        if os.access(".", os.W_OK, dir_fd=self._root):
            # Some file systems in user space have times in whole seconds.
            self._since_ns = status.st_ctime_ns - status.st_ctime_ns % _SECOND
        return found

    def enter(self, names: tuple[str, ...], status: os.stat_result) -> None:
        """Add the directory that a path of names leads to."""
        self._entered.setdefault(status.st_ino, []).append(names)

    def include(self, target: Target, stat: Stat) -> bool:
        """Return whether a directory of the export is one that the copy has entered."""
        alike = self._entered.get(stat.ino, [])
        if self._since_ns is not None and stat.ctime_ns >= self._since_ns and () not in alike:
            alike = [(), *alike]
        return any(self._is(target, names) for names in alike)

    def _is(self, target: Target, names: tuple[str, ...]) -> bool:
        try:
            fileno = open_below(self._root, names)
        except OSError:
            return False
        try:
            with probe(fileno) as name:
                self._client.stat(*target.child(name), follow=False)
        except TimedOut:
            raise
        except (OSError, RemoteError):  # a directory that is not writable is not a destination
            return False
        else:
            return True
        finally:
            os.close(fileno)
