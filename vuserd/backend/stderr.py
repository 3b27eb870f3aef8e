"""What a backend says on its standard error: logged, but no more than a few lines a second."""

import math
from collections import deque
from collections.abc import Callable
from typing import Final

import trio

#: Lines that are logged in a second; of the others only the number is.
_LINES_A_SECOND: Final = 20
#: Bytes that are taken at once: others have their turn after each.
_CHUNK: Final = 4096
_LONGEST_LINE: Final = 4096
_LAST_LINES: Final = 5


class Words:
    """The lines of one backend.

    All of them are read, since a backend that cannot write may wait with all else, and the last
    ones are kept for when it has ended. What is logged is bounded: they are its words, and the log
    and the time are ours.

    Args:
        log: called with each line to log.

    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        #: When another second begins, and the lines that this one has left.
        self._next = -math.inf
        self._room = 0
        self._left_out = 0

    def last(self) -> str:
        """Return the last lines."""
        return " / ".join(self._last)

    async def read(self, stream: trio.abc.ReceiveStream) -> None:
        """Take all lines until the stream ends."""
        rest = b""
        try:
            while chunk := await self._receive(stream):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._take(line)
                if len(rest) > _LONGEST_LINE:
                    self._take(rest)
                    rest = b""
            self._take(rest)
        finally:
            self._tell_left_out()

    async def _receive(self, stream: trio.abc.ReceiveStream) -> bytes | bytearray:
        """Wait for more; tell meanwhile what was left out, once the second is over."""
        if self._left_out:
            with trio.move_on_at(self._next):
                return await stream.receive_some(_CHUNK)
            self._tell_left_out()
        return await stream.receive_some(_CHUNK)

    def _take(self, line: bytes) -> None:
        words = line.decode(errors="replace").strip()
        if not words:
            return
        self._last.append(words)
        now = trio.current_time()
        if now >= self._next:
            self._tell_left_out()
            self._next, self._room = now + 1, _LINES_A_SECOND
        if self._room:
            self._room -= 1
            self._log(words)
        else:
            self._left_out += 1

    def _tell_left_out(self) -> None:
        if self._left_out:
            self._log(f"and {self._left_out} more lines")
            self._left_out = 0
