"""The names of a directory that were given, which another opening of it leaves out."""

from array import array
from collections import deque
from collections.abc import Sequence
from typing import Final

#: Bytes of memory for the hash of a name that was given, and for one yet to come again.
_HASH: Final = 8
_AHEAD: Final = 96
#: The most bytes of names that are kept as they are.
_MOST_KEPT: Final = 2 << 20


class Given:
    """The names that were given. Offsets mean nothing in another opening, which has them again.

    The latest are kept as they are: another opening is rare, and to hash each name takes a seventh
    of what a listing takes the daemon. Older ones take less memory as hashes.
    """

    def __init__(self) -> None:
        self._count = 0
        #: The names of each part that was given, with a NUL between two; and their bytes.
        self._latest: deque[bytes] = deque()
        self._kept = 0
        #: The hashes of those before: 8 bytes each, where a set of names would have 100.
        self._hashes = array("q")
        #: Those of all names that this opening of the directory has not come to yet.
        self._ahead: set[int] = set()

    def __len__(self) -> int:
        return self._count

    @property
    def remembered(self) -> int:
        """Bytes of memory that they take."""
        return self._kept + _HASH * len(self._hashes) + _AHEAD * len(self._ahead)

    def add(self, names: Sequence[bytes]) -> None:
        """Add names that are given, none of which has a NUL."""
        if names:
            part = b"\0".join(names)
            self._count += len(names)
            self._latest.append(part)
            self._kept += len(part)
        while self._kept > _MOST_KEPT:
            self._hash_oldest()

    def come_again(self) -> None:
        """Expect all of them in an opening that has just begun."""
        while self._latest:
            self._hash_oldest()
        self._ahead = set(self._hashes)

    def are_new(self, names: Sequence[bytes]) -> list[bool] | None:
        """Return of each name that comes whether it was not given before; None if all are new."""
        ahead = self._ahead
        if not ahead:
            return None
        is_new = []
        for name in map(hash, names):
            is_new.append(name not in ahead)
            ahead.discard(name)
        return is_new

    def _hash_oldest(self) -> None:
        part = self._latest.popleft()
        self._kept -= len(part)
        self._hashes.fromlist([*map(hash, part.split(b"\0"))])
