"""``vuserctl ls``, and what all listings share: sorted entries and targets of symlinks."""

import os
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

from vuserd.client import calls
from vuserd.client.core.ticket import Ticket
from vuserd.client.errors import RemoteError
from vuserd.client.records import Entry
from vuserd.client.sync_client import Client
from vuserd.ctl.output import emit, emit_json, emit_long, entry_fields, shown
from vuserd.ctl.target import Target

_WINDOW = 16  # calls in flight


def sorted_entries(client: Client, target: Target, *, attrs: bool = False) -> list[Entry]:
    """Return all entries of a directory in the order of their names' bytes."""
    entries = client.iterdir(target.export, target.path, attrs=attrs)
    return sorted(entries, key=lambda entry: os.fsencode(entry.name))


def link_targets(client: Client, target: Target, entries: Iterable[Entry]) -> dict[str, str]:
    """Return the targets of the symlinks among a directory's entries, by name."""
    targets: dict[str, str] = {}
    in_flight: deque[tuple[str, Ticket[str]]] = deque()

    def finish_first() -> None:
        name, ticket = in_flight.popleft()
        with suppress(RemoteError):  # it may have been removed since the directory was read
            targets[name] = client.finish(ticket)

    for entry in entries:
        if entry.type == "symlink":
            if len(in_flight) == _WINDOW:
                finish_first()
            call = calls.readlink(target.export, target.child(entry.name).path)
            in_flight.append((entry.name, client.begin(call)))
    while in_flight:
        finish_first()
    return targets


def ls(client: Client, target: Target, *, long: bool, as_json: bool) -> None:
    """Print a directory's entries, or the file itself if it is not a directory."""
    detailed = long or as_json
    try:
        entries = sorted_entries(client, target, attrs=detailed)
    except RemoteError as error:
        if error.code != "ENOTDIR":
            raise
        stat = client.stat(target.export, target.path, follow=False)
        entries = [Entry(target.path, stat.type, stat.ino, stat)]
        targets = {}
        if stat.type == "symlink":
            targets = {target.path: client.readlink(target.export, target.path)}
    else:
        targets = link_targets(client, target, entries) if detailed else {}
    if as_json:
        emit_json([entry_fields(entry, targets.get(entry.name)) for entry in entries])
    elif long:
        emit_long(entries, targets)
    else:
        for entry in entries:
            emit(shown(entry.name))
