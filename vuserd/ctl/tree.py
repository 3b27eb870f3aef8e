"""``vuserctl tree``: print a directory with all below it, as a drawing or as nested JSON.

The tree is walked without recursion and printed as it is walked, since the host decides how deep
and large it is.
"""

import json
import sys
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from vuserd.client.errors import RemoteError
from vuserd.client.records import Entry
from vuserd.client.sync_client import Client
from vuserd.ctl.ls import link_targets, sorted_entries
from vuserd.ctl.output import emit, entry_fields, fits_screen, printable, shown, with_target
from vuserd.ctl.target import Target


class Turn(Enum):
    """The kind of a step of the walk."""

    ENTER = "enter"  #: a directory whose entries come next
    LEAF = "leaf"  #: anything else, or a directory that cannot be listed
    LEAVE = "leave"  #: the end of a directory's entries


class Step(NamedTuple):
    """One step of the walk; ``last`` if the entry is the last in its directory."""

    turn: Turn
    entry: Entry
    last: bool = True
    link: str | None = None
    error: RemoteError | None = None


class _Directory(NamedTuple):
    target: Target
    entry: Entry
    links: dict[str, str]
    rest: list[Entry]  # those still to come, in reverse


def walk(client: Client, root: Target) -> Iterator[Step]:
    """Walk all that is below ``root``, in order of names, without following symlinks.

    Raise RemoteError at once if ``root`` cannot be listed; below it such an error is part of a
    step.
    """
    return _walk(client, [_open(client, root, Entry("", "dir", 0))])


def _walk(client: Client, directories: list[_Directory]) -> Iterator[Step]:
    while directories:
        directory = directories[-1]
        if not directory.rest:
            directories.pop()
            if directories:
                yield Step(Turn.LEAVE, directory.entry)
            continue
        entry = directory.rest.pop()
        last = not directory.rest
        if entry.type != "dir":
            yield Step(Turn.LEAF, entry, last, directory.links.get(entry.name))
            continue
        try:
            opened = _open(client, directory.target.child(entry.name), entry)
        except RemoteError as error:
            yield Step(Turn.LEAF, entry, last, error=error)
        else:
            yield Step(Turn.ENTER, entry, last)
            directories.append(opened)


def _open(client: Client, target: Target, entry: Entry) -> _Directory:
    entries = [_typed(client, target, entry) for entry in sorted_entries(client, target)]
    return _Directory(target, entry, link_targets(client, target, entries), entries[::-1])


def _typed(client: Client, target: Target, entry: Entry) -> Entry:
    """Return an entry with its type, asking for it if the file system's listing has none."""
    if entry.type != "unknown":
        return entry
    try:
        kind = client.stat(*target.child(entry.name), follow=False).type
    except RemoteError:  # the file is gone meanwhile
        return entry
    return entry._replace(type=kind)


def draw(client: Client, root: Target) -> int:
    """Print the tree with box characters and a summary; return the exit code."""
    steps = walk(client, root)
    pipe, tee, corner = _box()
    directories = files = failures = 0
    indent: list[str] = []
    emit(shown(str(root)))
    for step in steps:
        if step.turn is Turn.LEAVE:
            indent.pop()
            continue
        line = with_target(step.entry.name, step.link)
        if step.error is not None:
            failures += 1
            line += f" [{printable(str(step.error))}]"
        emit("".join(indent) + (corner if step.last else tee) + line)
        if step.entry.type == "dir":
            directories += 1
        else:
            files += 1
        if step.turn is Turn.ENTER:
            indent.append("    " if step.last else pipe)
    emit()
    emit(
        f"{directories} {'directory' if directories == 1 else 'directories'}, "
        f"{files} {'file' if files == 1 else 'files'}"
    )
    return 1 if failures else 0


def _box() -> tuple[str, str, str]:
    """Return the indentation, the branch and the last branch, in ASCII if the terminal needs it."""
    box = ("\u2502   ", "\u251c\u2500\u2500 ", "\u2514\u2500\u2500 ")
    return box if fits_screen("".join(box)) else ("|   ", "|-- ", "`-- ")


def print_json(client: Client, root: Target) -> int:
    """Print the tree as JSON, each directory with its ``entries``; return the exit code."""
    failures = 0
    steps = walk(client, root)
    head = json.dumps({"name": str(root), "type": "dir"})
    sys.stdout.write(head[:-1] + ', "entries": [')
    empty = [True]  # for each open directory, whether no entry was printed yet
    for step in steps:
        if step.turn is Turn.LEAVE:
            empty.pop()
            sys.stdout.write("]}")
            continue
        fields = entry_fields(step.entry, step.link)
        if step.error is not None:
            failures += 1
            fields["error"] = {"code": step.error.code, "message": step.error.message}
        text = json.dumps(fields)
        separator = "" if empty[-1] else ","
        empty[-1] = False
        sys.stdout.write(separator + "\n" + "  " * len(empty))
        if step.turn is Turn.ENTER:
            sys.stdout.write(text[:-1] + ', "entries": [')
            empty.append(True)
        else:
            sys.stdout.write(text)
    emit("]}")
    return 1 if failures else 0
