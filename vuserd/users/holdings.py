"""Count what the connections of one user keep in the daemon between their calls."""

from typing import Final

from vuserd.errors import CallError, ErrorCode

_KINDS: Final = "open files, listings, walks, trees, traces and attached memories"


class Holdings:
    """Counts the open files, listings, walks, trees, traces and attached memories of one user.

    Args:
        most: the limit of their number, all kinds together.
        most_bytes: the limit of the memory in which listings and walks remember where they were.

    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self.count = 0
        self.size = 0

    def has_room(self, size: int = 0, count: int = 1) -> bool:
        """Return whether the user may have ``count`` more, which take ``size`` bytes together."""
        return self.count + count <= self._most and self.size + size <= self._most_bytes

    def require_room(self, size: int = 0) -> None:
        """Refuse one more, of ``size`` bytes, where that would exceed a limit.

        Raises:
            CallError: TOO_LARGE.

        """
        if self.size + size > self._most_bytes:
            raise CallError(
                ErrorCode.TOO_LARGE,
                f"the listings and walks of this user would take {self.size + size} bytes of the"
                " daemon's memory: finish some of them, or close their connections",
                limit=self._most_bytes,
            )
        if self.count >= self._most:
            raise CallError(
                ErrorCode.TOO_LARGE,
                f"the connections of this user have {self.count} {_KINDS}, as many as one user"
                " may have: close some of them, or connections",
                limit=self._most,
            )

    def take(self, size: int = 0) -> None:
        """Count one more, until :meth:`give_back` with the same size.

        Raises:
            CallError: TOO_LARGE: see :meth:`require_room`.

        """
        self.require_room(size)
        self.count += 1
        self.size += size

    def give_back(self, size: int = 0) -> None:
        """Count one less, of the ``size`` with which it was taken."""
        self.count -= 1
        self.size -= size
