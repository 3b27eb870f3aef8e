"""The names of a directory that were given, which another opening of it leaves out."""

from array import array
from collections.abc import Sequence
from typing import Final

#: Bytes of memory for a name that was given, and for one yet to come again.
_GIVEN: Final = 8
_AHEAD: Final = 96


class Given:
    """The names that were given. Offsets mean nothing in another opening, which has them again."""

    def __init__(self) -> None:
        #: Their hashes: 8 bytes each, where a set of names would have 100.
        self._hashes = array("q")
        #: Those of them that this opening of the directory has not come to yet.
        self._ahead: set[int] = set()

    def __len__(self) -> int:
        return len(self._hashes)

    @property
    def remembered(self) -> int:
        """Bytes of memory that they take."""
        return _GIVEN * len(self._hashes) + _AHEAD * len(self._ahead)

    def add(self, names: Sequence[bytes]) -> None:
        """Add names that are given."""
        self._hashes.fromlist([*map(hash, names)])

    def come_again(self) -> None:
        """Expect all of them in an opening that has just begun."""
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
