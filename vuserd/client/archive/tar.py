"""tar as POSIX has it since 2001 (pax), with the standard library's headers."""

import os
import tarfile
from typing import Final

from vuserd.client.archive.members import Member, require_numbers, unfit

_TYPES: Final = {
    "file": tarfile.REGTYPE,
    "dir": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "fifo": tarfile.FIFOTYPE,
    "char": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
}
#: Seven octal digits.
_MOST_OF_A_DEVICE: Final = 0o7777777


class Tar:
    """Writes tar."""

    block = tarfile.BLOCKSIZE
    content_is_last = False
    lacks = frozenset({"socket"})

    def require(self, member: Member) -> None:
        """Raise RemoteError if a member does not fit in."""
        require_numbers(member)
        if os.major(member.rdev) > _MOST_OF_A_DEVICE or os.minor(member.rdev) > _MOST_OF_A_DEVICE:
            raise unfit("EOVERFLOW", member.path, "tar has no room for the number of its device")

    def head(self, member: Member) -> bytes:
        """Return the headers: with pax records for what has no room in the old one."""
        info = tarfile.TarInfo(_text(member.path))
        info.type = _TYPES[member.type]
        info.mode = member.mode & 0o7777
        info.uid, info.gid = member.uid, member.gid
        seconds, rest = divmod(member.mtime_ns, 10**9)
        info.mtime = seconds
        if rest:
            # A sign is that of all of it: half a second before -1 is -1.5.
            whole, rest = divmod(abs(member.mtime_ns), 10**9)
            sign = "-" if seconds < 0 else ""
            info.pax_headers = {"mtime": f"{sign}{whole}.{rest:09}".rstrip("0")}
        if member.earlier is not None:
            info.type, info.linkname = tarfile.LNKTYPE, _text(member.earlier)
        elif member.target:
            info.linkname = _text(member.target)
        elif member.rdev:
            info.devmajor, info.devminor = os.major(member.rdev), os.minor(member.rdev)
        else:
            info.size = member.size
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")

    def end(self, written: int) -> bytes:
        """Return two empty blocks, padded to what tapes were written in."""
        end = bytes(2 * tarfile.BLOCKSIZE)
        return end + bytes(-(written + len(end)) % tarfile.RECORDSIZE)


def _text(name: bytes) -> str:
    """Return a name as tarfile writes its bytes, whatever the locale."""
    return name.decode("utf-8", "surrogateescape")
