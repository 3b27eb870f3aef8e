"""Procedures that ask the backend for what a tree has: parts of jobs."""

import errno
import functools
import stat
from typing import Final

from protocol import fuse
from protocol.dirent_columns import DirectoryColumns, decode_directory_columns
from protocol.fuse import Entry, NodeId
from vuserd.device.lane.lane import Lane
from vuserd.device.procedure import Procedure
from vuserd.device.request import Ask, Seen
from vuserd.device.results import body_of, length_of
from vuserd.errors import FileError
from vuserd.fs.directories.offsets import Offsets
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.lookups import ATTEMPTS, not_told_apart, was_raced
from vuserd.fs.nodes import is_mount
from vuserd.fs.tree.found import Branch

#: Bytes of a directory that are read at once: some two hundred entries.
_BATCH_SIZE: Final = 32 << 10


def look_up(files: FileSystem, directory: NodeId, name: bytes) -> Procedure[Entry]:
    """Return the entry of a name; its node is borrowed."""
    ask = Ask(fuse.lookup(directory, name), None, files.lookups.undo_lookup)
    for _ in range(ATTEMPTS):
        [answer] = yield [ask]
        if not was_raced(answer):
            break
    entry = files.session.lane.decoded(fuse.decode_lookup, body_of(answer))
    if entry is None:
        raise FileError(errno.ENOENT)
    if entry.node in (fuse.ROOT_ID, directory):
        files.nodes.forget(entry.node)
        raise not_told_apart()
    files.nodes.borrow(entry.node, directory, name)
    return entry


def go(files: FileSystem, here: NodeId, path: bytes) -> Procedure[tuple[Entry, bool]]:
    """Look all names of a path up, from a directory on; no symlink is followed.

    Returns:
        The entry of the last one, and whether a directory before it is a mount.

    """
    passed, is_over_mount = None, False
    *directories, last = path.split(b"/")
    try:
        for name in directories:
            entry = yield from look_up(files, here, name)
            if passed is not None:
                files.nodes.give_back(passed)
            passed = here = entry.node
            if not stat.S_ISDIR(entry.attributes.mode):
                raise FileError(errno.ENOTDIR)
            is_over_mount |= is_mount(entry.attributes)
        return (yield from look_up(files, here, last)), is_over_mount
    finally:
        if passed is not None:
            files.nodes.give_back(passed)


def open_directory(lane: Lane, branch: Branch) -> Procedure[None]:
    """Open a directory, to be read from its beginning."""
    node = branch.node
    assert node is not None

    def undo(body: bytes) -> None:
        lane.post(fuse.releasedir(node, fuse.decode_open(body)))

    [opened] = yield [Ask(fuse.opendir(node), None, undo)]
    branch.handle = lane.decoded(fuse.decode_open, body_of(opened))
    branch.position = branch.barren = 0
    branch.offsets = Offsets()
    branch.given.come_again()


def read_entries(
    files: FileSystem, branch: Branch, room: Seen
) -> Procedure[tuple[DirectoryColumns, int | None]]:
    """Return entries, each node of which has a lookup count to give back, and where to go on.

    If one entry cannot be looked up, backends return its error for the whole READDIRPLUS:
    READDIR then shows whether the error is one entry's or the directory's own.
    """
    node, handle = branch.node, branch.handle
    assert node is not None
    assert handle is not None
    lane, nodes = files.session.lane, files.nodes

    def undo(body: bytes) -> None:
        nodes.forget_each(decode_directory_columns(body, plus=True)[0].nodes)

    request = fuse.readdirplus(node, handle, branch.position, _BATCH_SIZE)
    [read] = yield [Ask(request, room, undo)]
    plus = True
    try:
        length = length_of(read)
    except FileError as error:
        if error.is_exhaustion:
            raise
        plus = False
        request = fuse.readdir(node, handle, branch.position, _BATCH_SIZE)
        [read] = yield [Ask(request, room)]
        length = length_of(read)
    body = bytes(room.view[:length])
    decode = functools.partial(decode_directory_columns, plus=plus)
    entries, following = lane.decoded(decode, body)
    return entries if plus else entries.without_nodes(), following
