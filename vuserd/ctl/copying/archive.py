"""``vuserctl archive``: a directory with all below it as one cpio or tar archive."""

import errno
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from vuserd.client.errors import ClientError, RemoteError
from vuserd.client.sync_client import Client
from vuserd.ctl.copying.atomic_file import new_file, open_directory, open_existing
from vuserd.ctl.copying.places import Way, naming, place_of
from vuserd.ctl.copying.progress import progress_of_file
from vuserd.ctl.operands import report
from vuserd.ctl.output import complain
from vuserd.ctl.target import Target
from vuserd.errors import ErrorCode
from vuserd.service.standard_streams import STANDARD_OUTPUT, require_output

#: The tree changed: worth another try (EX_TEMPFAIL of sysexits.h).
CHANGED: Final = 75


def archive(client: Client, target: Target, options: Namespace) -> int:
    """Write an archive; return the exit code."""
    owner, mtime = options.owner, options.mtime
    if options.reproducible:
        owner = (0, 0) if owner is None else owner
        mtime = _epoch() if mtime is None else mtime
    if client.stat(*target).type != "dir":  # before any file is opened or emptied
        raise RemoteError("ENOTDIR", "it is no directory")
    try:
        with _output(options.output) as to, progress_of_file(target.path) as progress:
            done = client.archive(
                *target,
                to,
                format=options.format,
                owner=owner,
                mtime=mtime,
                exclude=options.exclude,
                special=options.special,
                allow_changes=options.allow_changes,
                progress=progress,
            )
    except RemoteError as error:
        if error.code != ErrorCode.CHANGED:
            raise
        paths = error.fields.get("paths")
        if not isinstance(paths, list) or not paths:  # it is the daemon's own, with what it says
            report(client, target, error)
            return CHANGED
        for path in paths:
            complain(f"{_named(target, str(path))}: changed while the tree was read")
        return CHANGED
    for path, kind in done.special:
        complain(f"{_named(target, path)}: kept, a {kind}")
    for path, kind in done.left_out:
        complain(f"{_named(target, path)}: left out, a {kind}")
    for path in done.changed:
        complain(f"{_named(target, path)}: changed while the tree was read")
    return 0


def _named(target: Target, path: str) -> Target:
    return target if path == "." else target.child(path)


def _epoch() -> int:
    """Return the time that builds which can be reproduced agree on, 1970 by default."""
    said = os.environ.get("SOURCE_DATE_EPOCH", "0")
    if not said.isdecimal():
        raise OSError(errno.EINVAL, f"$SOURCE_DATE_EPOCH is no number: {said!r}")
    return int(said)


@contextmanager
def _output(path: str | None) -> Iterator[int]:
    """Yield where the archive goes: a file is there once it is whole."""
    if path in (None, "-"):
        require_output()
        if sys.stdout.isatty():
            raise OSError(errno.EINVAL, "a terminal takes no archive; name a file by -o", "-")
        sys.stdout.flush()
        try:
            yield sys.stdout.fileno()
        except OSError as error:
            if not isinstance(error, ClientError) and error.filename is None:
                error.filename = STANDARD_OUTPUT
            raise
        return
    assert path is not None
    with naming(path):
        way, path = place_of(path)
        if way is not Way.BESIDE:
            flags = os.O_WRONLY | os.O_CLOEXEC
            fileno = open_existing(path, None) if way is Way.INTO else os.open(path, flags)
            with open(fileno, "wb", buffering=0) as device:
                yield device.fileno()
            return
        parent, name = os.path.split(path)
        directory = open_directory(parent or ".")
        try:
            with new_file(directory, name, 0o666) as fileno:
                yield fileno
        finally:
            os.close(directory)
