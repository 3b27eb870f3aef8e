"""``vuserctl head`` and ``tail``: the beginning or the end of files, without all in between."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from vuserd.client.errors import NotTaken, RemoteError
from vuserd.client.sync_client import Client
from vuserd.ctl.contents.opened import PIECE, Opened, opened
from vuserd.ctl.operands import for_each
from vuserd.ctl.output import complain, emit, shown
from vuserd.ctl.target import Target
from vuserd.service.standard_streams import require_output

#: Bytes that are held back until all of them are known to have stood there together.
_AT_ONCE: Final = 32 << 20


class Part(NamedTuple):
    """How much of a file is wanted: so many bytes, or else lines."""

    lines: int
    bytes: int | None = None


def head(client: Client, targets: list[Target], part: Part) -> int:
    """Write the beginning of files to standard output; return the exit code."""
    heads = _Headings(is_wanted=len(targets) > 1)

    def show(target: Target) -> None:
        with opened(client, target) as file:
            heads.put(target)
            _write(_beginning(file, part))

    return for_each(client, targets, show)


def _beginning(file: Opened, part: Part) -> Iterator[bytes]:
    """Return pieces up to the end of the part; the size may be untrue, so they are read to it."""
    offset, lines = 0, part.lines
    left = part.bytes
    while lines and (left is None or left):
        piece = file.read(offset, PIECE if left is None else min(PIECE, left))
        if not piece:
            return
        offset += len(piece)
        if left is not None:
            left -= len(piece)
        else:
            end = -1
            while lines and (end := piece.find(b"\n", end + 1)) >= 0:
                lines -= 1
            piece = piece[: end + 1] if not lines else piece
        yield piece


def tail(client: Client, targets: list[Target], part: Part) -> int:
    """Write the end of files to standard output; return the exit code."""
    heads = _Headings(is_wanted=len(targets) > 1)

    def show(target: Target) -> None:
        with opened(client, target) as file:
            heads.put(target)
            end = _end(file)
            _write(file.pieces(_beginning_of_end(file, part, end), end))

    return for_each(client, targets, show)


def _end(file: Opened) -> int:
    """Return where a file ends: by its size, or by reading one that says that it is empty."""
    end = file.size
    if not end:
        while piece := file.read(end):
            end += len(piece)
    return end


def _beginning_of_end(file: Opened, part: Part, end: int) -> int:
    """Return the offset of the first byte of the last part before ``end``."""
    begin = end
    if part.bytes is not None:
        return max(end - part.bytes, 0)
    lines = part.lines
    if not lines:
        return end
    while begin:
        length = min(PIECE, begin)
        piece = file.read(begin - length, length)
        at = len(piece)
        if begin == end and piece.endswith(b"\n"):
            at -= 1  # it ends the last line, and begins none
        while (at := piece.rfind(b"\n", 0, at)) >= 0:
            lines -= 1
            if not lines:
                return begin - length + at + 1
        begin -= length
    return 0


def follow(client: Client, targets: list[Target], part: Part, interval: float) -> int:
    """Write the end of files, and what is appended to them, until a signal ends the process.

    A file is looked at every ``interval`` seconds, by its name: one that takes its place, or that
    became shorter, is written from its beginning. What is written stood there together.

    Return the exit code if there is none of them.
    """
    heads = _Headings(is_wanted=len(targets) > 1)
    followed: list[_Followed] = []

    def begin(target: Target) -> None:
        with opened(client, target) as file:
            heads.put(target)
            end = _end(file)
            _write(file.pieces(_beginning_of_end(file, part, end), end))
            followed.append(_Followed(client, target, heads, file.ino, end))

    code = for_each(client, targets, begin)
    if not followed:
        return code
    sys.stdout.flush()
    while True:
        time.sleep(interval)
        for each in followed:
            each.look_again()
        sys.stdout.flush()


class _Followed:
    """A file that is looked at again and again."""

    def __init__(
        self, client: Client, target: Target, heads: "_Headings", ino: int, end: int
    ) -> None:
        self._client = client
        self._target = target
        self._heads = heads
        self._ino = ino
        self._end = end
        self._fault = ""

    def look_again(self) -> None:
        """Write what is new; report an error when it comes, and not again while it stays."""
        try:
            stat = self._client.stat(*self._target)
            if (stat.ino, stat.size) != (self._ino, self._end):
                self._write_new()
            self._fault = ""
        except (RemoteError, NotTaken) as error:
            if error.words != self._fault:
                complain(f"{self._target}: {error.words}; looking again")
            self._fault = error.words

    def _write_new(self) -> None:
        with opened(self._client, self._target) as file:
            end = _end(file)
            if file.ino != self._ino:
                complain(f"{self._target}: another file is there, which is followed from now on")
                self._ino, self._end = file.ino, 0
            elif end < self._end:
                complain(f"{self._target}: became shorter, and is written from its beginning")
                self._end = 0
            new = list(file.pieces(self._end, min(end, self._end + _AT_ONCE)))
        if new:
            self._heads.put(self._target)
            _write(new)
            self._end += sum(map(len, new))


class _Headings:
    """Writes which file comes, where there are several and it is another one than before."""

    def __init__(self, *, is_wanted: bool) -> None:
        self._is_wanted = is_wanted
        self._last: Target | None = None

    def put(self, target: Target) -> None:
        if not self._is_wanted or target == self._last:
            return
        if self._last is not None:
            emit()
        emit(f"==> {shown(str(target))} <==")
        self._last = target


def _write(pieces: Iterable[bytes]) -> None:
    require_output()
    sys.stdout.flush()
    for piece in pieces:
        left = memoryview(piece)
        while left:  # with PYTHONUNBUFFERED a write may take only a part
            left = left[sys.stdout.buffer.write(left) :]
    sys.stdout.buffer.flush()
