"""The walks that one client has begun and not finished, by the tokens that go on with them."""

import itertools
from collections import OrderedDict

from vuserd.errors import CallError, ErrorCode
from vuserd.fs.walk import TreeWalk


class WalkTable:
    """Keeps up to ``most`` walks; the one that waited longest makes room for a new one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._walks: OrderedDict[bytes, tuple[TreeWalk, tuple[str, bytes]]] = OrderedDict()
        self._numbers = itertools.count(1)

    def keep(self, walk: TreeWalk, begun: tuple[str, bytes]) -> bytes:
        """Keep a walk until its next page is asked for; return the token for that.

        ``begun`` is the export and the path where it began, which each page names again.
        """
        while len(self._walks) >= self._most:
            self._walks.popitem(last=False)[1][0].close()
        token = next(self._numbers).to_bytes(8, "big")
        self._walks[token] = walk, begun
        return token

    def take(self, token: bytes, begun: tuple[str, bytes]) -> TreeWalk:
        """Return the walk of a token, which is the caller's to keep again or to close.

        Raises:
            CallError: BAD_REQUEST: there is none, or no more.

        """
        walk, where = self._walks.get(token, (None, None))
        if walk is None or where != begun:
            raise CallError(
                ErrorCode.BAD_REQUEST, "walk after: not the token of a walk that goes on here"
            )
        del self._walks[token]
        return walk

    def close(self) -> None:
        """Let go of all of them."""
        while self._walks:
            self._walks.popitem()[1][0].close()
