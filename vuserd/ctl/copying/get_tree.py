"""``vuserctl get -r``: fetch a directory with all below it, many files at once.

The daemon is not trusted to stay inside the destination: a name has to be one component, and is
used relative to its directory, which is reached from the destination without following a symlink.

A small file is fetched by one read, for which the daemon guarantees one version.  Its time is that
of the listing: if it changed in between, the copy is newer than its time says, never older.

The destination may be below the fetched directory: files that this run makes are not fetched.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

from vuserd.client import calls
from vuserd.client.calls import Call
from vuserd.client.core.ticket import Ticket
from vuserd.client.errors import RemoteError, TimedOut
from vuserd.client.files.sinks import write_at
from vuserd.client.records import DirectoryPage, Entry, PageToken, Stat
from vuserd.client.sync_client import Client
from vuserd.ctl.copying.atomic_file import (
    new_file,
    new_symlink,
    open_below,
    open_directory,
    set_times,
)
from vuserd.ctl.copying.get import fetch_new, get, local_path
from vuserd.ctl.copying.how import SKIPPED, How
from vuserd.ctl.copying.own_copies import OwnCopies
from vuserd.ctl.copying.progress import Shown, progress_of_files
from vuserd.ctl.listing import is_name
from vuserd.ctl.output import complain, local_fault
from vuserd.ctl.target import Target

_RECURSIVE: Final = How(recursive=True)
_WINDOW: Final = 32  # calls in flight
_WINDOW_BYTES: Final = 8 << 20  # of files in flight
_SMALL: Final = 1 << 20  # bytes: a file up to this size is fetched by one read


def get_tree(client: Client, target: Target, destination: str | None, how: How = _RECURSIVE) -> int:
    """Fetch a directory to ``destination``, or into it if that exists; return the exit code.

    Failures are reported, and the rest goes on.
    """
    stat = client.stat(target.export, target.path)
    if stat.type != "dir":
        get(client, target, destination, how)
        return 0
    if destination == "-":
        return complain(f"{target} is a directory, and cannot go to standard output")
    local = destination if destination is not None and not target.name else None
    if local is None:
        local = local_path(target, destination)
    if how.dry_run:
        from vuserd.ctl.copying.dry_run import dry_run

        return dry_run(client, target, local, how)
    with progress_of_files(target.name or target.export, quiet=how.no_progress) as show:
        return _TreeFetch(client, local, show, how).run(target, stat)


class _Directory:
    """A directory on both sides; the local one is open while anything in it is in flight."""

    def __init__(self, target: Target, names: tuple[str, ...]) -> None:
        self.target = target
        self.names = names  # the path from the destination
        self.fileno = -1
        #: The names listed so far, to notice one that comes twice.
        self.listed: set[str] = set()
        self._users = 0

    def use(self, root: int) -> None:
        if not self._users:
            self.fileno = open_below(root, self.names)
        self._users += 1

    def leave(self) -> None:
        self._users -= 1
        if not self._users:
            os.close(self.fileno)
            self.fileno = -1


class _Item(NamedTuple):
    """An entry of a directory that is to be fetched."""

    directory: _Directory
    name: str
    stat: Stat | None

    @property
    def target(self) -> Target:
        return self.directory.target.child(self.name)


class _Job(NamedTuple):
    """A call in flight, and what to do with its answer."""

    ticket: Ticket[Any]
    directory: _Directory
    target: Target
    then: Callable[[Any], None]
    size: int


class _Made(NamedTuple):
    """A directory that was made, with the time and permissions to set at the end."""

    names: tuple[str, ...]
    stat: Stat


class _TreeFetch:
    """One run: it requests listings and files ahead, and uses the answers in the same order."""

    def __init__(self, client: Client, local: str, show: Shown, how: How) -> None:
        self._how = how
        self._client = client
        self._local = local
        self._show = show
        self._root = -1
        self._jobs: deque[_Job] = deque()
        self._size = 0  # bytes of files in flight
        self._items: deque[_Item] = deque()
        self._listings: list[tuple[_Directory, Any]] = []  # a directory, the token of its next page
        self._made: list[_Made] = []
        self._code = 0
        self._files = self._bytes = 0

    def run(self, target: Target, stat: Stat) -> int:
        """Fetch everything; return the exit code."""
        try:
            os.mkdir(self._local, stat.mode & 0o777 | 0o700)
            self._made.append(_Made((), stat))
        except FileExistsError:
            pass
        self._root = open_directory(self._local)
        try:
            self._copies = OwnCopies(self._client, self._root)
            if self._copies.begin(target, made=bool(self._made)):
                return complain(f"{target}: not copied into itself")
            self._listings.append((_Directory(target, ()), None))
            while self._fill():
                self._finish_first()
            while self._made:
                self._leave_as_it_was(self._made.pop())
        finally:
            for job in self._jobs:
                self._client.abandon(job.ticket)
            os.close(self._root)
        return self._code

    def _fill(self) -> bool:
        """Begin as many calls as may be in flight; return whether any is left to wait for."""
        while len(self._jobs) < _WINDOW and self._size < _WINDOW_BYTES:
            if self._items:
                item = self._items.popleft()
                with self._reporting(item.target, item.directory):
                    self._begin_item(item)
            elif self._listings:
                self._begin_listing(*self._listings.pop())
            else:
                break
        return bool(self._jobs)

    def _begin(
        self,
        call: Call[Any],
        directory: _Directory,
        target: Target,
        then: Callable[[Any], None],
        size: int = 0,
    ) -> None:
        ticket = self._client.begin(call)
        directory.use(self._root)
        self._jobs.append(_Job(ticket, directory, target, then, size))
        self._size += size

    def _finish_first(self) -> None:
        job = self._jobs.popleft()
        self._size -= job.size
        with self._reporting(job.target, job.directory):
            job.then(self._client.finish(job.ticket))

    @contextmanager
    def _reporting(self, target: Target, directory: _Directory) -> Iterator[None]:
        """Report what fails in the block, and leave the directory after it."""
        try:
            yield
        except RemoteError as error:
            self._fail(f"{target}: {error.words}")
        except TimedOut:  # which is an OSError, too
            raise
        except (OverflowError, ValueError) as error:  # attributes that no local file can have
            self._fail(f"{target}: {error}")
        except OSError as error:
            local = os.path.join(self._local, *directory.names, target.name)
            self._fail(local_fault(OSError(error.errno, error.strerror, local)))
        finally:
            directory.leave()

    def _fail(self, message: str) -> None:
        self._code = complain(message)

    # -- directories -------------------------------------------------------------------------------

    def _begin_listing(self, directory: _Directory, after: PageToken | None) -> None:
        def arrived(page: DirectoryPage) -> None:
            if page.next is not None:
                self._listings.append((directory, page.next))
            for entry in page.entries:
                self._add(directory, entry)
            if page.next is None:
                directory.listed.clear()

        call = calls.readdir(*directory.target, attrs=True, after=after)
        try:
            self._begin(call, directory, directory.target, arrived)
        except TimedOut:
            raise
        except OSError as error:  # it cannot be opened below the destination
            local = os.path.join(self._local, *directory.names)
            self._fail(local_fault(OSError(error.errno, error.strerror, local)))

    def _add(self, directory: _Directory, entry: Entry) -> None:
        name = entry.name
        if not is_name(name):
            self._fail(f"{directory.target}: the daemon sent {name!r}, which is no name of a file")
            return
        if name in directory.listed:
            self._fail(f"{directory.target.child(name)}: listed twice, and fetched once")
            return
        directory.listed.add(name)
        directory.use(self._root)
        self._items.append(_Item(directory, name, entry.stat))

    def _make_directory(self, item: _Item, stat: Stat) -> None:
        if self._copies.include(item.target, stat):
            self._fail(f"{item.target}: not copied into itself")
            return
        names = (*item.directory.names, item.name)
        above = item.directory.fileno
        try:
            # Writable for now; a directory that exists already stays as it is.
            os.mkdir(item.name, stat.mode & 0o777 | 0o700, dir_fd=above)
            self._made.append(_Made(names, stat))
        except FileExistsError:
            pass
        self._copies.enter(names, os.stat(item.name, dir_fd=above, follow_symlinks=False))
        self._listings.append((_Directory(item.target, names), None))

    def _leave_as_it_was(self, made: _Made) -> None:
        """Set a directory's time and permissions, once nothing more is put into it."""
        try:
            fileno = open_below(self._root, made.names, readable=True)
            try:
                os.fchmod(fileno, os.fstat(fileno).st_mode & made.stat.mode & 0o777)
                self._how.set_permissions(fileno, made.stat)
                set_times(fileno, made.stat.atime_ns, made.stat.mtime_ns)
            finally:
                os.close(fileno)
        except (OSError, OverflowError) as error:
            local = os.path.join(self._local, *made.names)
            if isinstance(error, OSError):
                self._fail(local_fault(OSError(error.errno, error.strerror, local)))
            else:
                self._fail(f"{local}: {error}")

    # -- what is in them ---------------------------------------------------------------------------

    def _begin_item(self, item: _Item) -> None:
        directory, stat = item.directory, item.stat
        if stat is None:  # the listing had no attributes: ask for them, or for the reason
            call = calls.stat(*item.target, follow=False)

            def arrived(found: Stat) -> None:
                directory.use(self._root)
                self._items.appendleft(item._replace(stat=found))

            self._begin(call, directory, item.target, arrived)
        elif stat.type == "dir":
            self._make_directory(item, stat)
        elif stat.type == "symlink":
            self._begin(
                calls.readlink(*item.target),
                directory,
                item.target,
                lambda target: self._put_symlink(item, target),
            )
        elif stat.type in SKIPPED:
            complain(f"{item.target}: skipped, a {stat.type}")
        elif stat.type != "file":
            self._fail(f"{item.target}: of a type that is not known, {stat.type!r}")
        elif self._how.is_current(stat, item.name, directory.fileno):
            pass
        elif stat.size <= _SMALL and not self._how.growing:
            self._begin_small(item, stat)
        else:
            self._fetch_alone(item, stat)

    def _put_symlink(self, item: _Item, target: str) -> None:
        if not target or "\0" in target:
            raise ValueError(f"a symlink to {target!r}, which cannot be made")
        new_symlink(item.directory.fileno, item.name, target)
        self._there(item, 0)

    def _begin_small(self, item: _Item, stat: Stat) -> None:
        buffer = bytearray(stat.size + 1)  # one byte more shows whether the file has grown

        def arrived(count: int) -> None:
            if count != stat.size:
                self._fetch_alone(item, stat)
                return
            permissions = stat.mode & 0o777
            with new_file(item.directory.fileno, item.name, permissions, stat) as fileno:
                write_at(fileno, memoryview(buffer)[:count], 0)
                self._how.set_permissions(fileno, stat)
                set_times(fileno, stat.atime_ns, stat.mtime_ns)
            self._there(item, count)

        call = calls.read_into(*item.target, 0, buffer)
        self._begin(call, item.directory, item.target, arrived, stat.size)

    def _fetch_alone(self, item: _Item, stat: Stat) -> None:
        """Fetch a file with nothing else in flight: the daemon drops clients that do not read."""
        for job in self._jobs:
            with suppress(RemoteError):  # reported when its turn comes
                self._client.finish(job.ticket)
        fileno = item.directory.fileno
        size = fetch_new(self._client, item.target, stat, fileno, item.name, self._how)
        self._there(item, size)

    def _there(self, item: _Item, size: int) -> None:
        self._how.tell(item.target, os.path.join(self._local, *item.directory.names, item.name))
        self._files += 1
        self._bytes += size
        if self._show is not None:
            self._show(self._files, self._bytes)
