"""cpio's format newc, which Linux unpacks as an initramfs.

A member is a magic and thirteen numbers of eight hexadecimal digits, the name with a NUL, and the
content; name and content are padded to four bytes. Source: the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import os
from typing import Final

from vuserd.client.archive.members import Member, require_numbers, unfit

_NUMBERS: Final = b"070701" + b"%08X" * 13
_LENGTH: Final = 6 + 13 * 8
#: A NUL and what it is padded with, by how many bytes of a block are before it.
_AFTER_NAME: Final = [bytes(4 - odd) for odd in range(4)]
_TRAILER: Final = b"TRAILER!!!"
#: Bytes of the blocks that cpio writes.
_BLOCK: Final = 512
_MOST: Final = 0xFFFF_FFFF
#: The kernel passes longer names over in silence: PATH_MAX, with the NUL.
_LONGEST: Final = 4096


class Newc:
    """Writes newc."""

    block = 4
    content_is_last = True  # as cpio does it
    lacks: frozenset[str] = frozenset()

    def require(self, member: Member) -> None:
        """Raise RemoteError if a member does not fit in."""
        path = member.path
        require_numbers(member)
        if member.size > _MOST:
            raise unfit("EFBIG", path, "newc has no room for a file of 4 GiB; tar has")
        if not 0 <= member.mtime_ns // 10**9 <= _MOST:
            raise unfit("EOVERFLOW", path, "newc has no room for its time; name one for all files")
        if len(path) >= _LONGEST:
            raise unfit("ENAMETOOLONG", path, "newc has no room for its name; tar has")
        if max(member.mode, member.uid, member.gid, member.names) > _MOST:
            raise unfit("EOVERFLOW", path, "newc has no room for its owner, group, mode or links")

    def head(self, member: Member) -> bytes:
        """Return the header, the name, and a symlink's target."""
        path = member.path
        if path == _TRAILER:  # which would be the end
            path = b"./" + path
        rdev = member.rdev
        numbers = (
            member.number,
            member.mode,
            member.uid,
            member.gid,
            2 if member.type == "dir" else member.names,
            member.mtime_ns // 10**9,
            len(member.target) or member.size,
            *(0, 0),  # the device that it is on: numbers here are of one
            *((os.major(rdev), os.minor(rdev)) if rdev else (0, 0)),
            len(path) + 1,
            0,  # a checksum, which newc has not
        )
        record = _record(numbers, path)
        return record + _padded(member.target) if member.target else record

    def end(self, written: int) -> bytes:
        """Return the trailer, padded to whole blocks."""
        trailer = _record((0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, len(_TRAILER) + 1, 0), _TRAILER)
        return trailer + bytes(-(written + len(trailer)) % _BLOCK)


def _record(numbers: tuple[int, ...], path: bytes) -> bytes:
    record = _NUMBERS % numbers
    if len(record) != _LENGTH or b"-" in record:  # more digits would be read as what follows
        raise unfit("EOVERFLOW", path, "newc has no room for one of its numbers")
    return record + path + _AFTER_NAME[(_LENGTH + len(path)) % Newc.block]


def _padded(part: bytes) -> bytes:
    return part + bytes(-len(part) % Newc.block)
