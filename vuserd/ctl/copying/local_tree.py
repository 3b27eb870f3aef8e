"""The local side of ``vuserctl get -r``: what is made below the destination, and what fails there.

Every name is used relative to its directory, which is open: whatever happens to the paths
meanwhile, all that is made stays inside.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from vuserd.client.errors import RemoteError, TimedOut
from vuserd.client.records import Stat
from vuserd.client.sync_client import Client
from vuserd.ctl.copying.atomic_file import (
    make_directory,
    new_link,
    new_symlink,
    open_below,
    open_directory,
    put_file,
    set_times,
)
from vuserd.ctl.copying.get import fetch_new
from vuserd.ctl.copying.how import How
from vuserd.ctl.copying.own_copies import OwnCopies
from vuserd.ctl.copying.progress import Shown
from vuserd.ctl.output import complain, is_of_output, local_fault
from vuserd.ctl.target import Target

Names = tuple[str, ...]


class _Made(NamedTuple):
    """A directory that was made, with the time and permissions to set at the end."""

    names: Names
    stat: Stat


class LocalTree:
    """The destination, whose directories are known by the names that lead to them from there."""

    def __init__(
        self, client: Client, local: str, root: int, how: How, show: Shown, *, is_new: bool
    ) -> None:
        self.how = how
        #: The exit code so far.
        self.code = 0
        #: Whether it was made just now.
        self.is_new = is_new
        self.root = root
        self._client = client
        self._local = local
        self._show = show
        self._copies = OwnCopies(client, root)
        self._made: list[_Made] = []
        self._files = self._bytes = 0

    def is_copied_from(self, target: Target) -> bool:
        """Return whether it is the directory that is to be fetched."""
        return self._copies.begin(target, made=self.is_new)

    def open(self, names: Names) -> int:
        """Open a directory of it; OSError if a symlink leads there."""
        return open_below(self.root, names)

    # -- what is put into it -----------------------------------------------------------------------

    def make_directory(self, above: int, names: Names, target: Target, stat: Stat) -> bool | None:
        """Make a directory, or find it there; return whether it was made.

        None for one of the export's that this copy has entered, which is not to be fetched.
        """
        if self._copies.include(target, stat):
            self.fail(f"{target}: not copied into itself")
            return None
        is_new = True
        try:
            # Writable for now; a directory that exists already stays as it is.
            make_directory(names[-1], stat.mode & 0o777, above)
            self._made.append(_Made(names, stat))
        except FileExistsError:
            is_new = False
        status = os.stat(names[-1], dir_fd=above, follow_symlinks=False)
        self._copies.enter(names, status)
        return is_new

    def put_symlink(self, above: int, names: Names, link: str | None, of: Stat) -> None:
        """Make a symlink, with the time of the one that is fetched."""
        if not link or "\0" in link:
            raise ValueError(f"a symlink to {link!r}, which cannot be made")
        new_symlink(above, names[-1], link, (of.atime_ns, of.mtime_ns))

    def put_file(
        self, above: int, names: Names, stat: Stat, content: memoryview, *, is_new: bool = False
    ) -> None:
        """Put a small file in place; ``is_new`` says that its directory was made just now."""
        put_file(above, names[-1], stat, content, self.how.set_permissions, is_new=is_new)

    def put_link(self, above: int, names: Names, first: Names, identity: tuple[int, int]) -> bool:
        """Make another name of a file that was put before; return whether that could be done."""
        try:
            directory = self.open(first[:-1])
        except OSError:
            return False
        try:
            return new_link(directory, first[-1], above, names[-1], identity)
        finally:
            os.close(directory)

    def fetch(self, above: int, names: Names, target: Target, stat: Stat) -> int:
        """Fetch a file by itself, with calls of its own; return its size."""
        return fetch_new(self._client, target, stat, above, names[-1], self.how)

    # -- what became of it -------------------------------------------------------------------------

    def there(self, target: Callable[[], Target], names: Names, size: int) -> None:
        """Report and count a file that is in place."""
        if self.how.verbose:
            self.how.tell(target(), os.path.join(self._local, *names))
        self._files += 1
        self._bytes += size
        if self._show is not None:
            self._show(self._files, self._bytes)

    def fail(self, message: str) -> None:
        """Report a failure, after which the rest goes on."""
        self.code = complain(message)

    def failed(self, error: Exception, target: Target, names: Names) -> None:
        """Report what was raised for a target, or for the file at ``names``.

        Raises:
            Exception: the error, where it is about neither.

        """
        if isinstance(error, RemoteError):
            self.fail(f"{target}: {error.words}")
        elif isinstance(error, OSError) and not (
            isinstance(error, TimedOut) or is_of_output(error)
        ):
            local = os.path.join(self._local, *names)
            self.fail(local_fault(OSError(error.errno, error.strerror, local)))
        elif isinstance(error, OverflowError | ValueError):  # no local file can have it
            self.fail(f"{target}: {error}")
        else:
            raise error

    def finish(self, stat: Stat) -> None:
        """Set the times and permissions of directories, once nothing more is put into them."""
        if self.is_new:
            self._made.insert(0, _Made((), stat))
        while self._made:
            self._leave_as_it_was(self._made.pop())

    def _leave_as_it_was(self, made: _Made) -> None:
        try:
            fileno = open_below(self.root, made.names, readable=True)
            try:
                self.how.set_permissions_of_directory(fileno, made.stat)
                set_times(fileno, made.stat.atime_ns, made.stat.mtime_ns)
            finally:
                os.close(fileno)
        except (OSError, OverflowError) as error:
            local = os.path.join(self._local, *made.names)
            if isinstance(error, OSError):
                self.fail(local_fault(OSError(error.errno, error.strerror, local)))
            else:
                self.fail(f"{local}: {error}")


@contextmanager
def opened_tree(
    client: Client, local: str, stat: Stat, how: How, show: Shown
) -> Iterator[LocalTree]:
    """Make the destination, or find it there, and keep it open for the block's time."""
    is_new = False
    with suppress(FileExistsError):
        make_directory(local, stat.mode & 0o777)
        is_new = True
    root = open_directory(local)
    try:
        yield LocalTree(client, local, root, how, show, is_new=is_new)
    finally:
        os.close(root)
