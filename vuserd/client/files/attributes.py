"""Listings in which each entry has its attributes."""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from vuserd.client import calls
from vuserd.client.calls import RemotePath
from vuserd.client.core.conversation import Talk
from vuserd.client.core.procedure import Emit, Procedure, Running, Stream
from vuserd.client.errors import RemoteError
from vuserd.client.records import Entry, Stat


class StatEntry(Entry):
    """An :class:`Entry` whose attributes were asked for: a name for it that type checkers know."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def stat(self) -> Stat:
            """Its attributes."""


def with_attributes(
    talk: Talk, export: str, path: RemotePath, listing: Stream[Entry]
) -> Stream[Entry]:
    """Emit all entries of a directory, with their attributes, of a listing that asks for them.

    What is gone meanwhile is left out. What has none for another reason is, too, and the first such
    error is raised after all others were given.
    """
    running = Running(listing)
    problems: list[RemoteError] = []
    while (step := running.next_step()) is not None:
        try:
            if isinstance(step, Emit):
                entries = [*step.values]
                if any(entry.stat is None for entry in entries):
                    entries = yield from _completed(talk, export, path, entries, problems)
                yield Emit(entries)
            else:
                running.came((yield step))
        except BaseException as error:
            running.failed(error)
    if problems:
        raise problems[0]


def _completed(
    talk: Talk,
    export: str,
    path: RemotePath,
    entries: Iterable[Entry],
    problems: list[RemoteError],
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
                problems.append(error)
        else:
            completed.append(Entry(entry.name, stat.type, stat.ino, stat))
    return completed
