"""The files that a command's operands name: one after the other, and those that patterns match.

As with scp, it is the client that matches: ``*``, ``?`` and ``[...]`` in each component of a path,
which a backslash makes ordinary characters.  A file that is really named so comes before that.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from vuserd.client.errors import ClientError, ConnectionLost, RemoteError, TimedOut
from vuserd.client.records import Entry
from vuserd.client.sync_client import Client
from vuserd.ctl.listing import is_name, sorted_entries
from vuserd.ctl.output import complain
from vuserd.ctl.target import Target
from vuserd.ctl.usage.suggestions import suggestion
from vuserd.errors import ErrorCode

_MAGIC: Final = re.compile(r"[*?]|\[[^/]+\]")
_QUOTED: Final = re.compile(r"\\(.)", re.DOTALL)
#: Errors of a path that names no file.
_NOT_THERE: Final = frozenset({"ENOENT", "ENOTDIR", "ENAMETOOLONG"})
#: Errors of a directory that this user may not look into.
_CLOSED: Final = frozenset({"EACCES", "EPERM"})


def for_each(client: Client, targets: Iterable[Target], do: Callable[[Target], object]) -> int:
    """Do something with each file that the targets name or match; return the exit code.

    The daemon's error for one is reported, and the others have their turn.

    Raises:
        ConnectionLost: the daemon is gone; named after the file.
        TimedOut: it did not answer in time; likewise.

    """
    code = 0
    for target in targets:
        try:
            for found in expand(client, target):
                try:
                    do(found)
                except RemoteError as error:
                    code = report(client, found, error)
                except (ConnectionLost, TimedOut) as error:
                    raise type(error)(f"{found}: {error.words}") from error
        except RemoteError as error:
            code = report(client, target, error)
    return code


def report(
    client: Client, target: Target | None, error: RemoteError, *, export: str | None = None
) -> int:
    """Print the daemon's error for a file, or an export; return the exit code for a failure."""
    hint = ""
    export = export if target is None else target.export
    if error.code == ErrorCode.UNKNOWN_EXPORT and export is not None:
        with suppress(ClientError):
            hint = suggestion(export, [found.name for found in client.exports()])
    file = error.filename if target is None else target
    return complain(f"{error.words}{hint}" if file is None else f"{file}: {error.words}{hint}")


def expand(client: Client, target: Target) -> Iterable[Target]:
    """Return the targets that a pattern matches, in order; without a pattern, the target itself.

    Hidden names are matched by a pattern that begins with a dot alone. Directories that are closed
    to this user are passed over, as a shell does.

    Raises:
        RemoteError: ENOENT if there is none, or the error of a directory that is closed; and what
            the daemon says.

    """
    if not _MAGIC.search(target.path):
        return [target]
    try:
        client.stat(*target, follow=False)
    except RemoteError as error:
        if error.code not in _NOT_THERE:
            raise
        return _expand(client, target, error)
    return [target]


def _expand(client: Client, target: Target, nothing: RemoteError) -> list[Target]:
    found = [Target(target.export, "/" if target.path.startswith("/") else "")]
    closed: list[RemoteError] = []
    is_sure = True  # that all of them are there
    for component in filter(None, target.path.split("/")):
        is_sure = _MAGIC.search(component) is not None
        if is_sure:
            found = [each for above in found for each in _matches(client, above, component, closed)]
        else:
            found = [above.child(_QUOTED.sub(r"\1", component)) for above in found]
    if not is_sure:
        found = [each for named in found for each in _if_there(client, named, closed)]
    if not found:
        raise closed[0] if closed else nothing
    return found


@contextmanager
def _passing_over(closed: list[RemoteError]) -> Iterator[None]:
    """Pass over what is not there, and what is closed, whose error is added."""
    try:
        yield
    except RemoteError as error:
        if error.code in _CLOSED:
            closed.append(error)
        elif error.code not in _NOT_THERE:
            raise


def _if_there(client: Client, target: Target, closed: list[RemoteError]) -> list[Target]:
    """Return a target; nothing where it is not there."""
    found: list[Target] = []
    with _passing_over(closed):
        client.stat(*target, follow=False)
        found.append(target)
    return found


def _matches(
    client: Client, directory: Target, pattern: str, closed: list[RemoteError]
) -> list[Target]:
    """Return what a pattern matches in a directory; nothing where that is none."""
    from fnmatch import fnmatchcase

    translated = _QUOTED.sub(_as_set, pattern)
    entries: list[Entry] = []
    with _passing_over(closed):
        entries = sorted_entries(client, directory)
    return [
        directory.child(entry.name)
        for entry in entries
        if is_name(entry.name)  # "*" matches slashes, too
        and (entry.name[:1] != "." or pattern[:1] == ".")
        and fnmatchcase(entry.name, translated)
    ]


def _as_set(quoted: re.Match[str]) -> str:
    """Return a character after a backslash as fnmatch takes it literally."""
    return f"[{quoted[1]}]" if quoted[1] in "*?[" else quoted[1]
