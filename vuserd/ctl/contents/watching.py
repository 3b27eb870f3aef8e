"""``vuserctl watch``: look at a file or tree again and again, and print what has changed.

It polls: a change that is undone between two looks is not seen, and several are one.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from vuserd.client.errors import NotTaken, RemoteError
from vuserd.client.records import Stat
from vuserd.client.sync_client import Client
from vuserd.ctl.looking.walking import Turn, walk
from vuserd.ctl.output import complain, emit, emit_json, printable, shown
from vuserd.ctl.signals import IGNORED_BY_PYTHON, Signalled
from vuserd.ctl.target import Target


class Look(NamedTuple):
    """What one look saw of a file: its content's version, and its attributes."""

    version: tuple[object, ...]
    attributes: tuple[object, ...]

    @classmethod
    def at(cls, stat: Stat) -> "Look":
        """Return what counts of attributes; of a directory not what its entries change."""
        owned = (stat.mode, stat.uid, stat.gid)
        if stat.type == "dir":
            return cls((stat.type, stat.ino), owned)
        return cls((stat.type, stat.ino, stat.size, stat.mtime_ns), (*owned, stat.ctime_ns))


Looks = Mapping[Target, Look]


def changes(before: Looks, now: Looks) -> Iterator[tuple[str, Target]]:
    """Return what has changed between two looks, and how."""
    for target in before.keys() - now.keys():
        yield "removed", target
    for target, look in now.items():
        if target not in before:
            yield "created", target
        elif look.version != before[target].version:
            yield "modified", target
        elif look != before[target]:
            yield "attributes", target


def watch(
    client: Client,
    target: Target,
    command: list[str],
    *,
    interval: float,
    count: int | None,
    as_json: bool,
) -> None:
    """Print changes, a line each, and run a command after those of each look.

    A look that fails is told, once while the error stays, and nothing has changed in it.

    Args:
        client: the connection.
        target: the file or directory.
        command: the command with its arguments; empty for none.
        interval: seconds between two looks.
        count: end after so many looks that saw changes; None to go on.
        as_json: print each change as a map.

    Raises:
        RemoteError: the file is not there in the beginning.
        OSError: the command cannot be run.

    """
    before, fault = _look(client, target, {}), ""
    words = f"polling {target} every {interval:g} s: what is undone in between is not seen"
    sys.stderr.write(f"vuserctl: {printable(words)}\n")
    sys.stderr.flush()
    while count is None or count > 0:
        time.sleep(interval)
        try:
            now = _look(client, target, before)
        except (RemoteError, NotTaken) as error:
            if not isinstance(error, RemoteError) or error.code not in ("ENOENT", "ENOTDIR"):
                if error.words != fault:
                    complain(f"{target}: {error.words}; looking again")
                fault = error.words
                continue
            now = {}
        fault = ""
        found = sorted(changes(before, now), key=lambda change: change[1])
        before = now
        if not found:
            continue
        for kind, changed in found:
            _print(kind, changed, as_json=as_json)
        sys.stdout.flush()
        if command:
            _run(command)
        count = None if count is None else count - 1


def _look(client: Client, target: Target, before: Looks) -> dict[Target, Look]:
    """Look at all; what is below a directory that cannot be listed stays as it was before."""
    stat = client.stat(*target)
    found = {target: Look.at(stat)}
    if stat.type != "dir":
        return found
    for turn, each, entry, _, _, error in walk(client, target, attrs=True):
        if turn is not Turn.LEAVE and entry.stat is not None:
            found[each] = Look.at(entry.stat)
        if error is not None and error.code not in ("ENOENT", "ENOTDIR"):
            below = f"{each.path}/"
            found |= {old: look for old, look in before.items() if old.path.startswith(below)}
    return found


def _print(kind: str, target: Target, *, as_json: bool) -> None:
    if as_json:
        emit_json({"time": time.time(), "change": kind, "path": str(target)}, in_a_line=True)
    else:
        emit(f"{time.strftime('%H:%M:%S')} {kind} {shown(str(target))}")


def _run(command: list[str]) -> None:
    """Run a command; a signal that ends this process is for the command, too, and waits for it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:  # no signal comes between the start of the command and the block that sends it on
        child = os.posix_spawnp(
            command[0], command, os.environ, setsigmask=before, setsigdef=IGNORED_BY_PYTHON
        )
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _, status = os.waitpid(child, 0)
    except (Signalled, KeyboardInterrupt) as ended:
        with suppress(ProcessLookupError, ChildProcessError):
            if isinstance(ended, Signalled):  # a terminal has sent SIGINT to both
                os.kill(child, ended.number)
            os.waitpid(child, 0)
        raise
    code = os.waitstatus_to_exitcode(status)
    if code:
        how = f"was ended by signal {-code}" if code < 0 else f"exited with status {code}"
        complain(f"{command[0]} {how}")
