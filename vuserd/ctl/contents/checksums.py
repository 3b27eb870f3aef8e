"""``vuserctl sha256sum``: sums of files as they arrive, in the form of coreutils' sha256sum."""

import re
import sys
from collections.abc import Iterable
from hashlib import sha256
from typing import Final

from vuserd.client.errors import RemoteError
from vuserd.client.sync_client import Client
from vuserd.ctl.operands import for_each, report
from vuserd.ctl.output import complain, emit, emit_json, named, printable, shown
from vuserd.ctl.target import Target
from vuserd.errors import ErrorCode

_ATTEMPTS: Final = 3
#: A line: a backslash where the name has escapes, the sum, and a name.
_LINE: Final = re.compile(r"(\\?)([0-9a-fA-F]{64}) [ *](.+)")
_ESCAPES: Final = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
_ESCAPED: Final = {escape: character for character, escape in _ESCAPES.items()}


def checksum(client: Client, target: Target) -> str:
    """Return the SHA-256 of a file in hexadecimal; nothing of it is stored.

    Raises:
        RemoteError: CHANGED if it changed in each of three attempts, and what the daemon says.

    """
    for attempt in range(_ATTEMPTS):
        digest = sha256()
        try:
            client.stream(*target, digest.update)
            break
        except RemoteError as error:
            if error.code != ErrorCode.CHANGED or attempt == _ATTEMPTS - 1:
                raise
    return digest.hexdigest()


def sha256sum(client: Client, targets: list[Target], *, as_json: bool) -> int:
    """Print the sums of files; return the exit code."""
    sums: list[dict[str, str]] = []

    def show(target: Target) -> None:
        found = checksum(client, target)
        name = str(target)
        if as_json:
            sums.append({"path": name, "sha256": found})
            return
        escaped = re.sub(r"[\\\n\r]", lambda match: _ESCAPES[match[0]], name)
        is_plain = escaped == name or shown(name) != name  # a terminal is shown more escapes
        emit(f"{found}  {shown(name)}" if is_plain else f"\\{found}  {escaped}")

    code = for_each(client, targets, show)
    if as_json:
        emit_json(sums)
    return code


def check_sums(client: Client, file: str, directory: Target | None) -> int:
    """Compare files with the sums in a local file, '-' for standard input; return the exit code.

    Its names are EXPORT:PATH, or paths from a directory of an export where one is given.

    Raises:
        OSError: the local file cannot be read.

    """
    with named(file):
        if file == "-":
            return _check(client, sys.stdin, file, directory)
        with open(file, encoding=sys.getfilesystemencoding(), errors="surrogateescape") as lines:
            return _check(client, lines, file, directory)


def _check(client: Client, lines: Iterable[str], file: str, directory: Target | None) -> int:
    failed = wrong = right = 0
    for line in lines:
        match = _LINE.fullmatch(line.rstrip("\r\n"))
        target = None if match is None else _named(match[3], directory, is_escaped=bool(match[1]))
        if match is None or target is None:
            wrong += bool(line.strip()) and not line.startswith("#")
            continue
        try:
            is_same = checksum(client, target) == match[2].lower()
        except RemoteError as error:
            report(client, target, error)
            failed += 1
            emit(f"{printable(str(target))}: FAILED open or read")
            continue
        right += is_same
        failed += not is_same
        emit(f"{printable(str(target))}: {'OK' if is_same else 'FAILED'}")
    if wrong:
        complain(f"{file}: {wrong} {'line is' if wrong == 1 else 'lines are'} not of a checksum")
    if not right + failed:
        return complain(f"{file}: no checksums of EXPORT:PATH")
    if failed:
        return complain(f"{file}: {failed} of {right + failed} files did not match")
    return 0


def _named(name: str, directory: Target | None, *, is_escaped: bool) -> Target | None:
    """Return the file that a line names; None if it is none of an export."""
    if is_escaped:
        name = re.sub(r"\\[\\nr]", lambda match: _ESCAPED[match[0]], name)
    if directory is not None:
        return directory.child(name.removeprefix("./"))
    try:
        return Target.parse(name)
    except ValueError:
        return None
