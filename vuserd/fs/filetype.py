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


def type_name(mode: int) -> str:
    """Return the RPC's name for the file type in ``mode``."""
    return _NAMES.get(stat.S_IFMT(mode), "unknown")


def describe_type(mode: int) -> str:
    """Return the file type in ``mode`` in words that end a sentence."""
    return _DESCRIPTIONS.get(type_name(mode), "of an unknown type")
