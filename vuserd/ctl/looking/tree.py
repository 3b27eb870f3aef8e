"""``vuserctl tree``: print a directory with all below it, as a drawing or as nested JSON."""

import json
import sys

from vuserd.client.sync_client import Client
from vuserd.ctl.looking.walking import Turn, walk
from vuserd.ctl.output import emit, entry_fields, fits_screen, printable, shown, with_target
from vuserd.ctl.target import Target


def draw(client: Client, root: Target, *, depth: int | None = None) -> int:
    """Print the tree with box characters and a summary; return the exit code."""
    steps = walk(client, root, depth=depth, links=True)
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
            line += f" [{printable(step.error.words)}]"
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


def print_json(client: Client, root: Target, *, depth: int | None = None) -> int:
    """Print the tree as JSON, each directory with its ``entries``; return the exit code."""
    failures = 0
    steps = walk(client, root, depth=depth, links=True)
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
