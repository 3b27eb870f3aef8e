"""A directory's entries as listings need them: sorted, with links' targets, many calls at once."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final, TypeVar

from vuserd.client import calls
from vuserd.client.calls import Call
from vuserd.client.core.ticket import Ticket
from vuserd.client.errors import RemoteError
from vuserd.client.records import Entry, Stat
from vuserd.client.sync_client import Client
from vuserd.ctl.target import Target

T = TypeVar("T")

_WINDOW: Final = 16  # calls in flight


def sorted_entries(client: Client, target: Target, *, attrs: bool = False) -> list[Entry]:
    """Return all entries of a directory in the order of their names' bytes."""
    entries = client.iterdir(target.export, target.path, attrs=attrs)
    return sorted(entries, key=lambda entry: os.fsencode(entry.name))


def is_name(name: str) -> bool:
    """Return whether a listing may have this name: any other leads out of the directory."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def link_targets(client: Client, target: Target, entries: Iterable[Entry]) -> dict[str, str]:
    """Return the targets of the symlinks among a directory's entries, by name."""
    asked = (
        (entry.name, calls.readlink(target.export, target.child(entry.name).path))
        for entry in entries
        if entry.type == "symlink"
    )
    return dict(_answers(client, asked))


def followed(client: Client, target: Target, entries: list[Entry]) -> list[Entry]:
    """Return the entries with what symlinks lead to in place of those that lead somewhere."""
    asked = (
        (entry.name, calls.stat(target.export, target.child(entry.name).path))
        for entry in entries
        if entry.type == "symlink"
    )
    found: dict[str, Stat] = dict(_answers(client, asked))
    return [
        Entry(entry.name, stat.type, stat.ino, stat) if (stat := found.get(entry.name)) else entry
        for entry in entries
    ]


def _answers(client: Client, asked: Iterable[tuple[str, Call[T]]]) -> Iterator[tuple[str, T]]:
    """Do calls for names, a window of them at once; leave out what has been removed meanwhile."""
    in_flight: deque[tuple[str, Ticket[T]]] = deque()

    def finish_first() -> Iterator[tuple[str, T]]:
        name, ticket = in_flight.popleft()
        with suppress(RemoteError):
            yield name, client.finish(ticket)

    for name, call in asked:
        if len(in_flight) == _WINDOW:
            yield from finish_first()
        in_flight.append((name, client.begin(call)))
    while in_flight:
        yield from finish_first()
