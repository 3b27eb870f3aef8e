"""The walks that one client has begun and not finished, by the tokens that go on with them."""

import itertools
from collections import OrderedDict

from vuserd.errors import CallError, ErrorCode
from vuserd.fs.walk import TreeWalk


class WalkTable:
    """Keeps up to ``most`` walks; the one that waited longest makes room for a new one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._walks: OrderedDict[bytes, TreeWalk] = OrderedDict()
        self._numbers = itertools.count(1)

    def keep(self, walk: TreeWalk) -> bytes:
        """Keep a walk until its next page is asked for; return the token for that."""
        while len(self._walks) >= self._most:
            self._walks.popitem(last=False)[1].close()
        token = next(self._numbers).to_bytes(8, "big")
        self._walks[token] = walk
        return token

    def take(self, token: bytes) -> TreeWalk:
        """Return the walk of a token, which is the caller's to keep again or to close.

        Raises:
            CallError: BAD_REQUEST: there is none, or no more.

        """
        walk = self._walks.pop(token, None)
        if walk is None:
            raise CallError(
                ErrorCode.BAD_REQUEST, "walk after: not the token of a walk that goes on here"
            )
        return walk

    def close(self) -> None:
        """Let go of all of them."""
        while self._walks:
            self._walks.popitem()[1].close()
