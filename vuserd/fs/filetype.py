"""Name the types of files for the RPC and for error messages."""

import stat
from typing import Final

_NAMES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}
_DESCRIPTIONS: Final = {
    "dir": "a directory",
    "symlink": "a symbolic link",
    "fifo": "a fifo",
    "socket": "a socket",
    "char": "a character device",
    "block": "a block device",
}


class _NamesByType(dict[int, str]):
    """The names by the number that a directory's entry has: the type's bits of a mode, or any."""

    def __missing__(self, _: int) -> str:
        return "unknown"


#: The RPC's name for each ``DT_*`` number of dirent.h; "unknown" for all others.
NAMES_BY_TYPE: Final = _NamesByType({mode >> 12: name for mode, name in _NAMES.items()})


def type_name(mode: int) -> str:
    """Return the RPC's name for the file type in ``mode``."""
    return NAMES_BY_TYPE[mode >> 12 & 15]


def describe_type(mode: int) -> str:
    """Return the file type in ``mode`` in words that end a sentence."""
    return _DESCRIPTIONS.get(type_name(mode), "of an unknown type")
