"""Whether the offsets of a directory lead on, or in circles: of all of them, two are remembered."""

import errno

from vuserd.errors import FileError


def no_end() -> FileError:
    """Return the error of a directory whose offsets lead back."""
    return FileError(errno.EIO, "the directory has no end: its file system's offsets lead back")


class Offsets:
    """The offsets where the replies of one opening go on, one after the other.

    Each is compared with the one before it, and with an older one, which is exchanged after 1, 2,
    4, 8... replies: so a circle of any length is noticed within some rounds (Brent's algorithm).
    """

    def __init__(self) -> None:
        self._latest: int | None = None
        self._older: int | None = None
        self._kept = 1
        self._left = 1

    def lead_back(self, offset: int) -> bool:
        """Take the next one; return whether the directory was there before."""
        if offset in (self._latest, self._older):
            return True
        self._latest = offset
        self._left -= 1
        if not self._left:
            self._older = offset
            self._kept *= 2
            self._left = self._kept
        return False
