"""``vuserctl diff``: what differs between a file or tree of an export and a local one.

Names, types, targets of symlinks, sizes and contents are compared; nothing is stored, and a file's
bytes are compared as they arrive.  The exit code is 1 where anything differs, 2 where something
could not be compared.
"""

import os
import stat as modes
from collections import deque
from typing import Any, Final, NamedTuple

from vuserd.client.errors import RemoteError, TimedOut
from vuserd.client.records import Entry
from vuserd.client.sync_client import Client
from vuserd.ctl.listing import sorted_entries
from vuserd.ctl.operands import report
from vuserd.ctl.output import complain, emit, emit_json, is_of_output, local_fault, shown
from vuserd.ctl.target import Target

TROUBLE: Final = 2
_TYPES: Final = {
    modes.S_IFREG: "file",
    modes.S_IFDIR: "dir",
    modes.S_IFLNK: "symlink",
    modes.S_IFIFO: "fifo",
    modes.S_IFSOCK: "socket",
    modes.S_IFCHR: "char",
    modes.S_IFBLK: "block",
}


class _Differs(Exception):  # noqa: N818 - never leaves this module
    """The bytes that have come are not those of the local file."""


class _Pair(NamedTuple):
    """A file of the export and a local one that are compared."""

    target: Target
    local: str


def diff(client: Client, target: Target, local: str, *, as_json: bool) -> int:
    """Print what differs, a line each; return the exit code."""
    comparison = _Comparison(client, as_json=as_json)
    comparison.run(target, local)
    if as_json:
        emit_json(comparison.maps)
    return TROUBLE if comparison.trouble else int(comparison.count > 0)


class _Comparison:
    def __init__(self, client: Client, *, as_json: bool) -> None:
        self._client = client
        self._as_json = as_json
        self._directories: deque[_Pair] = deque()
        self.maps: list[dict[str, Any]] = []
        self.count = 0
        self.trouble = False

    def run(self, target: Target, local: str) -> None:
        """Compare two files or trees; symlinks that are named are followed, others are not."""
        try:
            remote = self._client.stat(*target)
            found = os.stat(local)
            if remote.type != "dir" and modes.S_ISDIR(found.st_mode):
                local = os.path.join(local, target.name)  # as diff does
                found = os.stat(local)
            self._compare(_Pair(target, local), Entry("", remote.type, 0, remote), found)
        except RemoteError as error:
            self.trouble = bool(report(self._client, target, error))
        except TimedOut:  # which is an OSError, too
            raise
        except OSError as error:
            self.trouble = bool(complain(local_fault(error)))
        while self._directories:
            pair = self._directories.popleft()
            self._try(pair, self._compare_directories)

    def _try(self, pair: _Pair, compare: Any, *more: Any) -> None:
        """Compare a pair; report what cannot be compared."""
        try:
            compare(pair, *more)
        except RemoteError as error:
            self.trouble = bool(complain(f"{pair.target}: {error.words}"))
        except TimedOut:
            raise
        except OSError as error:
            if is_of_output(error):
                raise
            fault = OSError(error.errno, error.strerror, pair.local)
            self.trouble = bool(complain(local_fault(fault)))

    def _compare_directories(self, pair: _Pair) -> None:
        names = {os.fsencode(name) for name in os.listdir(pair.local)}
        entries = {
            os.fsencode(entry.name): entry
            for entry in sorted_entries(self._client, pair.target, attrs=True)
        }
        for name in sorted(names | entries.keys()):
            text = os.fsdecode(name)
            inner = _Pair(pair.target.child(text), os.path.join(pair.local, text))
            if name not in names:
                self._differ(inner, f"only in {pair.target}", "only remote")
            elif name not in entries:
                self._differ(inner, f"only in {pair.local}", "only local")
            else:
                self._try(inner, self._compare_entries, entries[name])

    def _compare_entries(self, pair: _Pair, entry: Entry) -> None:
        if entry.stat is None:  # the listing had no attributes: ask for them, or for the reason
            stat = self._client.stat(*pair.target, follow=False)
            entry = entry._replace(type=stat.type, stat=stat)
        self._compare(pair, entry, os.lstat(pair.local))

    def _compare(self, pair: _Pair, entry: Entry, found: os.stat_result) -> None:
        kind = _TYPES.get(modes.S_IFMT(found.st_mode), "unknown")
        if entry.type != kind:
            self._differ(pair, f"types differ, {entry.type} and {kind}", "type")
        elif kind == "dir":
            self._directories.append(pair)
        elif kind == "symlink":
            theirs, ours = self._client.readlink(*pair.target), os.readlink(pair.local)
            if theirs != ours:
                self._differ(pair, f"links differ, to {theirs} and to {ours}", "target")
        elif kind == "file":
            size = 0 if entry.stat is None else entry.stat.size
            if size != found.st_size:
                self._differ(pair, f"sizes differ, {size} and {found.st_size}", "size")
            elif not self._has_same_bytes(pair):
                self._differ(pair, "contents differ", "contents")

    def _has_same_bytes(self, pair: _Pair) -> bool:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        with open(os.open(pair.local, flags), "rb") as local:

            def compare(payload: memoryview) -> None:
                if local.read(len(payload)) != payload:
                    raise _Differs

            try:
                self._client.stream(*pair.target, compare)
            except _Differs:
                return False
            return not local.read(1)

    def _differ(self, pair: _Pair, text: str, kind: str) -> None:
        self.count += 1
        if self._as_json:
            names = {"path": str(pair.target), "local": pair.local}
            self.maps.append(names | {"difference": kind})
        elif kind.startswith("only"):
            emit(shown(f"{text}: {pair.target.name}"))
        else:
            emit(shown(f"{pair.target} and {pair.local}: {text}"))
