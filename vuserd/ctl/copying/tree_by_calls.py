"""Fetch a directory for ``vuserctl get -r`` by listings and reads, many of them in flight.

It is for daemons that have no ``tree``, and for copies that are brought up to date: of those most
files are not wanted.  A small file is fetched by one read, for which the daemon guarantees one
version.  Its time is that of the listing: if it changed in between, the copy is newer than its time
says, never older.
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
from vuserd.client.listing.following import Following
from vuserd.client.records import DirectoryPage, Entry, PageToken, Stat
from vuserd.client.sync_client import Client
from vuserd.ctl.copying.how import SKIPPED
from vuserd.ctl.copying.local_tree import LocalTree, Names
from vuserd.ctl.listing import is_name
from vuserd.ctl.output import complain
from vuserd.ctl.target import Target

_WINDOW: Final = 32  # calls in flight
_WINDOW_BYTES: Final = 8 << 20  # of files in flight
_SMALL: Final = 1 << 20  # bytes: a file up to this size is fetched by one read


def fetch_by_calls(client: Client, target: Target, tree: LocalTree) -> None:
    """Fetch all below a directory; what fails is reported, and the rest comes."""
    _CallsFetch(client, tree).run(target)


class _Directory:
    """A directory on both sides; the local one is open while anything in it is in flight."""

    def __init__(self, target: Target, names: Names) -> None:
        self.target = target
        self.names = names  # the path from the destination
        self.fileno = -1
        #: The names listed so far, to notice one that comes twice.
        self.listed: set[str] = set()
        self.pages = Following()
        self._users = 0

    def use(self, tree: LocalTree) -> None:
        if not self._users:
            self.fileno = tree.open(self.names)
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

    @property
    def names(self) -> Names:
        return (*self.directory.names, self.name)


class _Job(NamedTuple):
    """A call in flight, and what to do with its answer."""

    ticket: Ticket[Any]
    directory: _Directory
    target: Target
    then: Callable[[Any], None]
    size: int


class _CallsFetch:
    """One run: it requests listings and files ahead, and uses the answers in the same order."""

    def __init__(self, client: Client, tree: LocalTree) -> None:
        self._client = client
        self._tree = tree
        self._jobs: deque[_Job] = deque()
        self._size = 0  # bytes of files in flight
        self._items: deque[_Item] = deque()
        self._listings: list[tuple[_Directory, Any]] = []  # a directory, the token of its next page

    def run(self, target: Target) -> None:
        """Fetch everything."""
        try:
            self._listings.append((_Directory(target, ()), None))
            while self._fill():
                self._finish_first()
        finally:
            for job in self._jobs:
                self._client.abandon(job.ticket)

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
        directory.use(self._tree)
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
        except Exception as error:
            self._tree.failed(error, target, (*directory.names, target.name))
        finally:
            directory.leave()

    # -- directories -------------------------------------------------------------------------------

    def _begin_listing(self, directory: _Directory, after: PageToken | None) -> None:
        def arrived(page: DirectoryPage) -> None:
            if directory.pages.take(page.next, is_empty=not page.entries) is not None:
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
            self._tree.failed(error, directory.target, directory.names)

    def _add(self, directory: _Directory, entry: Entry) -> None:
        name = entry.name
        if not is_name(name):
            self._tree.fail(
                f"{directory.target}: the daemon sent {name!r}, which is no name of a file"
            )
            return
        if name in directory.listed:
            self._tree.fail(f"{directory.target.child(name)}: listed twice, and fetched once")
            return
        directory.listed.add(name)
        directory.use(self._tree)
        self._items.append(_Item(directory, name, entry.stat))

    def _make_directory(self, item: _Item, stat: Stat) -> None:
        made = self._tree.make_directory(item.directory.fileno, item.names, item.target, stat)
        if made is not None:
            self._listings.append((_Directory(item.target, item.names), None))

    # -- what is in them ---------------------------------------------------------------------------

    def _begin_item(self, item: _Item) -> None:
        directory, stat = item.directory, item.stat
        if stat is None:  # the listing had no attributes: ask for them, or for the reason
            call = calls.stat(*item.target, follow=False)

            def arrived(found: Stat) -> None:
                directory.use(self._tree)
                self._items.appendleft(item._replace(stat=found))

            self._begin(call, directory, item.target, arrived)
        elif stat.type == "dir":
            self._make_directory(item, stat)
        elif stat.type == "symlink":
            self._begin(
                calls.readlink(*item.target),
                directory,
                item.target,
                lambda target: self._put_symlink(item, target, stat),
            )
        elif stat.type in SKIPPED:
            complain(f"{item.target}: skipped, a {stat.type}")
        elif stat.type != "file":
            self._tree.fail(f"{item.target}: of a type that is not known, {stat.type!r}")
        elif self._tree.how.is_current(stat, item.name, directory.fileno):
            pass
        elif stat.size <= _SMALL and not self._tree.how.growing:
            self._begin_small(item, stat)
        else:
            self._fetch_alone(item, stat)

    def _put_symlink(self, item: _Item, target: str, stat: Stat) -> None:
        self._tree.put_symlink(item.directory.fileno, item.names, target, stat)
        self._tree.there(lambda: item.target, item.names, 0)

    def _begin_small(self, item: _Item, stat: Stat) -> None:
        buffer = bytearray(stat.size + 1)  # one byte more shows whether the file has grown

        def arrived(count: int) -> None:
            if count != stat.size:
                self._fetch_alone(item, stat)
                return
            content = memoryview(buffer)[:count]
            self._tree.put_file(item.directory.fileno, item.names, stat, content)
            self._tree.there(lambda: item.target, item.names, count)

        call = calls.read_into(*item.target, 0, buffer)
        self._begin(call, item.directory, item.target, arrived, stat.size)

    def _fetch_alone(self, item: _Item, stat: Stat) -> None:
        """Fetch a file with nothing else in flight: the daemon drops clients that do not read."""
        for job in self._jobs:
            with suppress(RemoteError):  # reported when its turn comes
                self._client.finish(job.ticket)
        size = self._tree.fetch(item.directory.fileno, item.names, item.target, stat)
        self._tree.there(lambda: item.target, item.names, size)
