"""Log what a backend prints on its standard error, a few lines a second at most."""

import math
import re
from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from vuserd.errors import printable

#: Lines that are logged in a second; of the others only the number is.
_LINES_A_SECOND: Final = 20
#: Bytes that are read at once: other tasks run in between.
_CHUNK: Final = 4096
#: Seconds before the next ones are read while lines are left out: 800 KiB a second at most.
_PAUSE: Final = 0.005
_LONGEST_LINE: Final = 4096
_LAST_LINES: Final = 5

#: What backends print though all is well; collected from the Rust one, 1.13, and QEMU's C one, 7.2.
_HARMLESS: Final = re.compile(
    r"""
    # A handover announces no migration, and needs none.
      Front-end\ did\ not\ announce\ migration\ to\ begin
    # A user's namespace has one id, which need not be root's.
    | Couldn't\ set\ the\ process\ [ug]id\ as\ root
    # The C one says so whenever a front-end takes its queues back, and when it goes.
    | fv_remove_watch:\ TODO!
    | virtio_loop:\ Unexpected\ poll\ revents\ 11
    """,
    re.VERBOSE,
)


def is_harmless(words: str) -> bool:
    """Return whether a backend prints this line though all is well."""
    return _HARMLESS.search(words) is not None


class Words:
    """The lines that one backend prints.

    All of them are read, since a backend that cannot write may stop serving, and the last ones are
    kept to explain its end. The number that is logged is bounded, and so is the time that the
    others take: a hostile backend must not fill the log or use up the daemon's time.

    Args:
        log: called with each line to log.

    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        #: When the next second begins, and how many lines may still be logged in this one.
        self._next = -math.inf
        self._room = 0
        self._left_out = 0

    def last(self) -> str:
        """Return the last lines."""
        return " / ".join(self._last)

    async def read(self, stream: trio.abc.ReceiveStream) -> None:
        """Read all lines until the stream ends."""
        rest = b""
        try:
            while chunk := await self._receive(stream):
                lines, ended, rest = (rest + chunk).rpartition(b"\n")
                if ended:
                    self._take(lines)
                if len(rest) > _LONGEST_LINE:
                    self._take(rest)
                    rest = b""
                if self._left_out:
                    await trio.sleep(_PAUSE)
            self._take(rest)
        finally:
            self._tell_left_out()

    async def _receive(self, stream: trio.abc.ReceiveStream) -> bytes | bytearray:
        """Wait for more; once the second is over, log how many lines were left out."""
        if self._left_out:
            with trio.move_on_at(self._next):
                return await stream.receive_some(_CHUNK)
            self._tell_left_out()
        return await stream.receive_some(_CHUNK)

    def _take(self, text: bytes) -> None:
        """Log the lines for which there is room in this second, and count the others."""
        lines = [line for line in text.split(b"\n") if line.strip()]
        now = trio.current_time()
        if now >= self._next:
            self._tell_left_out()
            self._next, self._room = now + 1, _LINES_A_SECOND
        to_log, others = lines[: self._room], lines[self._room :]
        self._room -= len(to_log)
        self._left_out += len(others)
        for line in to_log:
            self._log(self._noted(line))
        for line in others[-_LAST_LINES:]:
            self._noted(line)

    def _noted(self, line: bytes) -> str:
        """Return a line as it is logged; it is the last one now."""
        words = printable(line.decode(errors="replace").strip())
        if not is_harmless(words):
            self._last.append(words)
        return words

    def _tell_left_out(self) -> None:
        if self._left_out:
            self._log(f"and {self._left_out} more lines")
            self._left_out = 0
