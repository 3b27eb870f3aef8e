"""Listings in which each entry has its attributes."""

import os
from collections.abc import Iterable
from operator import itemgetter
from typing import TYPE_CHECKING

from vuserd.client import calls
from vuserd.client.calls import RemotePath
from vuserd.client.core.conversation import Talk
from vuserd.client.core.procedure import Emit, Procedure, Running, Stream
from vuserd.client.errors import RemoteError
from vuserd.client.records import Entry, Stat

_STAT = itemgetter(Entry._fields.index("stat"))


class StatEntry(Entry):
    """An :class:`Entry` whose attributes were asked for: a name for it that type checkers know."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def stat(self) -> Stat:
            """Its attributes.

            Raises:
                RemoteError: why it has none; the listing has the entry all the same.

            """


class _WithoutStat(StatEntry):
    """An entry whose attributes cannot be had: asking for them raises the reason."""

    error: RemoteError

    @classmethod
    def of(cls, entry: Entry, error: RemoteError) -> "_WithoutStat":
        found = cls(entry.name, entry.type, entry.ino)
        found.error = error
        return found

    @property
    def stat(self) -> Stat:
        raise self.error


def with_attributes(
    talk: Talk, export: str, path: RemotePath, listing: Stream[Entry]
) -> Stream[Entry]:
    """Emit all entries of a directory, with their attributes, of a listing that asks for them.

    What is gone meanwhile is left out. What has none for another reason raises that as its
    ``stat``: an odd entry spoils no listing.
    """
    running = Running(listing)
    while (step := running.next_step()) is not None:
        try:
            if isinstance(step, Emit):
                entries = [*step.values]
                if not all(map(_STAT, entries)):
                    entries = yield from _completed(talk, export, path, entries)
                yield Emit(entries)
            else:
                running.came((yield step))
        except BaseException as error:
            running.failed(error)


def _completed(
    talk: Talk, export: str, path: RemotePath, entries: Iterable[Entry]
) -> Procedure[list[Entry]]:
    completed: list[Entry] = []
    for entry in entries:
        if entry.stat is not None:
            completed.append(entry)
            continue
        name = os.path.join(os.fsdecode(path), entry.name)
        try:
            stat = yield from talk.ask(calls.stat(export, name, follow=False))
        except RemoteError as error:
            if error.code != "ENOENT":
                completed.append(_WithoutStat.of(entry, error))
        else:
            completed.append(Entry(entry.name, stat.type, stat.ino, stat))
    return completed
