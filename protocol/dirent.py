"""Directory entries in the replies to READDIR and READDIRPLUS, parsed strictly.

Source: ``struct fuse_dirent`` and ``struct fuse_direntplus`` in ``include/uapi/linux/fuse.h``.

::

    READDIR      | ino u64 | off u64 | namelen u32 | type u32 | name | zeros up to a multiple of 8 |
    READDIRPLUS  | struct fuse_entry_out (128 bytes) | the same |
"""

import struct
from typing import Final, NamedTuple

from protocol import Check, MalformedError
from protocol.fuse import ENTRY_SIZE, NAME_MAX, Entry, decode_entry_at

_DIRENT = struct.Struct("=QQII")
DIRENT_SIZE: Final = _DIRENT.size
#: READDIRPLUS with less room than the longest record can answer as if the directory ended.
LONGEST_RECORD: Final = ENTRY_SIZE + DIRENT_SIZE + NAME_MAX + 1


class DirectoryEntry(NamedTuple):
    """One name of a directory.

    ``offset`` is where the directory goes on after it (opaque), ``type`` the ``DT_*`` number
    (``mode >> 12``). ``entry`` is the node that READDIRPLUS looked up, with one lookup count to
    give back.
    """

    name: bytes
    ino: int
    offset: int
    type: int
    entry: Entry | None


def decode_directory(buffer: bytes, *, plus: bool) -> tuple[list[DirectoryEntry], int | None]:
    """Decode a whole reply to READDIR, or to READDIRPLUS with ``plus``.

    Returns:
        The entries but "." and "..", and the offset to go on from: None at the directory's end.

    Raises:
        MalformedError: a record that leaves the buffer, a name that Linux lets no file system show
            (empty, with a slash or a NUL), or a node for "." or "..".

    """
    entries: list[DirectoryEntry] = []
    head = ENTRY_SIZE if plus else 0
    offset = position = 0
    end = len(buffer)
    while position < end:
        if end - position < head + DIRENT_SIZE:
            raise MalformedError(
                f"{end - position} bytes left where a directory entry belongs", Check.DIRECTORY
            )
        entry = decode_entry_at(buffer, position) if plus else None
        ino, offset, length, kind = _DIRENT.unpack_from(buffer, position + head)
        start = position + head + DIRENT_SIZE
        position = start + length + (-length % 8)
        if not 1 <= length <= NAME_MAX:
            raise MalformedError(f"a name of {length} bytes", Check.DIRECTORY)
        if position > end:
            raise MalformedError("a directory entry that leaves its buffer", Check.DIRECTORY)
        name = buffer[start : start + length]
        if b"/" in name or b"\0" in name:
            raise MalformedError(f"a name that no directory can hold: {name!r}", Check.DIRECTORY)
        if name in (b".", b".."):
            if entry is not None:
                raise MalformedError(f"a node for {name.decode()!r}", Check.DIRECTORY)
            continue
        entries.append(DirectoryEntry(name, ino, offset, kind, entry))
    return entries, offset if buffer else None
