"""Walk a directory with all below it, for the commands that show or compare trees.

There is no recursion, and what is found is used as the walk goes on, since the host decides how
deep and large a tree is.
"""

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from vuserd.client.errors import RemoteError
from vuserd.client.records import Entry
from vuserd.client.sync_client import Client
from vuserd.ctl.listing import link_targets, sorted_entries
from vuserd.ctl.target import Target


class Turn(Enum):
    """The kind of a step of the walk."""

    ENTER = "enter"  #: a directory whose entries come next
    LEAF = "leaf"  #: anything else, or a directory that cannot be listed
    LEAVE = "leave"  #: the end of a directory's entries


class Step(NamedTuple):
    """One step of the walk; ``last`` if the entry is the last in its directory."""

    turn: Turn
    target: Target
    entry: Entry
    last: bool = True
    link: str | None = None
    error: RemoteError | None = None


class _Directory(NamedTuple):
    target: Target
    entry: Entry
    links: dict[str, str]
    rest: list[Entry]  # those still to come, in reverse


def walk(
    client: Client,
    root: Target,
    *,
    depth: int | None = None,
    attrs: bool = False,
    links: bool = False,
) -> Iterator[Step]:
    """Walk all that is below ``root``, in order of names, without following symlinks.

    Raise RemoteError at once if ``root`` cannot be listed; below it such an error is part of a
    step.

    Args:
        client: the connection.
        root: a directory.
        depth: how many levels of directories are listed, at least 1; None for all.
        attrs: whether entries have their attributes, where these can be had.
        links: whether steps have the targets of symlinks.

    """
    walked = _Walk(client, depth, attrs=attrs, links=links)
    return walked.steps([walked.open(root, Entry("", "dir", 0))])


class _Walk:
    def __init__(self, client: Client, depth: int | None, *, attrs: bool, links: bool) -> None:
        self._client = client
        self._depth = depth
        self._attrs = attrs
        self._links = links

    def steps(self, directories: list[_Directory]) -> Iterator[Step]:
        while directories:
            directory = directories[-1]
            if not directory.rest:
                directories.pop()
                if directories:
                    yield Step(Turn.LEAVE, directory.target, directory.entry)
                continue
            entry = directory.rest.pop()
            target = directory.target.child(entry.name)
            last = not directory.rest
            if entry.type != "dir" or len(directories) == self._depth:
                yield Step(Turn.LEAF, target, entry, last, directory.links.get(entry.name))
                continue
            try:
                opened = self.open(target, entry)
            except RemoteError as error:
                yield Step(Turn.LEAF, target, entry, last, error=error)
            else:
                yield Step(Turn.ENTER, target, entry, last)
                directories.append(opened)

    def open(self, target: Target, entry: Entry) -> _Directory:
        listed = sorted_entries(self._client, target, attrs=self._attrs)
        entries = [self._typed(target, each) for each in listed]
        links = link_targets(self._client, target, entries) if self._links else {}
        return _Directory(target, entry, links, entries[::-1])

    def _typed(self, target: Target, entry: Entry) -> Entry:
        """Return an entry with its type, asking for it if the file system's listing has none."""
        if entry.type != "unknown":
            return entry
        try:
            found = self._client.stat(*target.child(entry.name), follow=False)
        except RemoteError:  # the file is gone meanwhile
            return entry
        return entry._replace(type=found.type, stat=found if self._attrs else None)
