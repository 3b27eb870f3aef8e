"""Parts of a tree that come at once, with the bytes of their small files: one call for hundreds.

The daemon sends a tree in the order of its directories, and an archive is sorted: so a part is a
directory with all below it whose small files are few bytes. Its names stand together in the
archive; while they are written, the daemon reads the part after it.
"""

import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Final, TypeAlias

from vuserd.client.archive.looks import below, names_of
from vuserd.client.archive.members import Member
from vuserd.client.calls import RemotePath
from vuserd.client.core.procedure import Emit, Finish, Procedure, Running, Stream, Wait
from vuserd.client.errors import RemoteError
from vuserd.client.files.tree_page import TreeEntry
from vuserd.client.records import Stat
from vuserd.errors import ErrorCode

#: Asks for all that is below a directory, in pages that are received where the function says.
Subtree: TypeAlias = Callable[..., Stream[TreeEntry]]

#: The largest file whose bytes come with the part that it is in.
SMALL: Final = 1 << 20
#: Bytes of small files in a part.
_HELD: Final = 16 << 20
#: Bytes of a page, with its index.
_PAGE: Final = 2 << 20
#: Pages of a part whose files stay where they were received; those of more are copied.
_LASTING: Final = _HELD // _PAGE
#: Buffers that are kept for the next part.
_SPARE: Final = 4


class Parts:
    """What has come of a part, and which one is asked for after it.

    Args:
        subtree: asks for a part, by its path in the export.
        path: where the tree is in the export.
        tree: what is in the tree.
        order: the names in the tree as the archive has them, sorted.

    """

    def __init__(
        self,
        subtree: Subtree,
        path: RemotePath,
        tree: Mapping[bytes, Stat],
        order: Iterable[bytes],
    ) -> None:
        self._subtree, self._path, self._tree = subtree, path, tree
        self._part_of = _parts_by_directory(tree)
        self._following = self._in_order(order)
        self._contents: dict[bytes, bytes | memoryview] = {}
        self._held = 0
        self._spare: list[memoryview] = []
        #: The part that is written, and the one that the daemon reads meanwhile.
        self._current: _Part | None = None
        self._ahead: _Part | None = None
        self._is_known = True  # to the daemon

    def take(self, member: Member) -> bytes | memoryview | None:
        """Return what has come of a member: a file's bytes, or where a symlink leads.

        Bytes stay as they are until the next part is asked for.
        """
        return self._contents.pop(member.path, None)

    def begins_with(self, member: Member) -> bool:
        """Return whether a member comes with another part than the one before it."""
        if member.path == b"." or not self._is_known:
            return False
        part = self._part_of[member.path.rpartition(b"/")[0]]
        if part is None or (self._current is not None and part == self._current.path):
            return False
        return _comes_along(self._tree[member.path])

    def ask_ahead(self) -> None:
        """Ask the daemon for the next part, unless that is done."""
        if self._ahead is None and self._is_known:
            part = next(self._following, None)
            if part is not None:
                where = below(self._path, part)
                self._ahead = _Part(part, partial(self._subtree, where), self._spare)

    def next(self) -> Procedure[None]:
        """Take in the part that was asked for, in place of the one before, and ask for another.

        What does not come of it is for the reader of each file.
        """
        self._contents.clear()
        self._held = 0
        if self._current is not None:
            self._current.leave()
        part, self._current, self._ahead = self._ahead, self._ahead, None
        assert part is not None
        try:
            yield from part.received()
            self.ask_ahead()
            yield from part.drained(partial(self._add, part))
        except RemoteError as error:
            if error.code == ErrorCode.UNKNOWN_METHOD:  # to an older daemon
                self._is_known = False

    def settle(self) -> Procedure[None]:
        """Receive what the daemon has read ahead."""
        if self._ahead is not None:
            yield from self._ahead.received()

    def abandon(self) -> None:
        """Forget what was asked for ahead."""
        if self._ahead is not None:
            self._ahead.abandon()

    def _add(self, part: "_Part", entries: Iterable[TreeEntry]) -> None:
        entries = [*entries]
        above = part.path + b"/" if part.path else b""
        names = (above + name for name in names_of([entry.path for entry in entries]))
        for name, entry in zip(names, entries, strict=True):
            before = self._tree.get(name)
            stat = entry.stat
            if before is None or stat is None:
                continue
            if stat != before and not stat.same_file(before):
                continue
            content = content_of(before, entry)
            if content is None or not _comes_along(before) or self._held + len(content) > _HELD:
                continue
            self._contents[name] = part.lasting(content)
            self._held += len(content)

    def _in_order(self, paths: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the parts as they are wanted: a part's names stand together."""
        last = None
        for path in paths:
            if _comes_along(self._tree[path]):
                part = self._part_of[path.rpartition(b"/")[0]]
                if part is not None and part != last:
                    yield part
                    last = part


class _Part:
    """A part that was asked for, and the buffers that its pages are received into.

    Args:
        path: where it is in the tree.
        ask: asks for it, in pages that are received where the function says.
        spare: buffers that are free.

    """

    def __init__(
        self,
        path: bytes,
        ask: Callable[[Callable[[], memoryview]], Stream[TreeEntry]],
        spare: list[memoryview],
    ) -> None:
        self.path = path
        self._spare = spare
        self._buffers: list[memoryview] = []
        self._running = Running(ask(self._room))
        self._step = self._running.next_step()

    def received(self) -> Procedure[None]:
        """Receive its first page."""
        if isinstance(self._step, Finish) and not self._step.ticket.done:
            yield Wait(self._step.ticket)

    def drained(self, take: Callable[[Iterable[TreeEntry]], None]) -> Procedure[None]:
        """Hand all that is in it to ``take``."""
        while (step := self._step) is not None:
            try:
                if isinstance(step, Emit):
                    take(step.values)
                else:
                    self._running.came((yield step))
            except BaseException as error:
                self._running.failed(error)
            self._step = self._running.next_step()

    def lasting(self, content: bytes | memoryview) -> bytes | memoryview:
        """Return bytes that stay as they are: a copy where another page takes their place."""
        passing = self._buffers[_LASTING:]
        if passing and isinstance(content, memoryview):
            return bytes(content) if content.obj in [each.obj for each in passing] else content
        return content

    def leave(self) -> None:
        """Give its buffers to other parts; what is in them is not needed any more."""
        self._spare += self._buffers
        del self._spare[_SPARE:]

    def abandon(self) -> None:
        """Forget it."""
        self._running.close()

    def _room(self) -> memoryview:
        """Return where the next page is received."""
        if len(self._buffers) < _LASTING + 2:
            new = self._spare.pop() if self._spare else memoryview(mmap.mmap(-1, _PAGE))
            self._buffers.append(new)
        else:  # in turns
            self._buffers[-2:] = reversed(self._buffers[-2:])
        return self._buffers[-1]


def content_of(before: Stat, entry: TreeEntry) -> bytes | memoryview | None:
    """Return what an entry has of a file or symlink; None if that does not fit what it was.

    A daemon that is not believed could write members of its own into the archive otherwise.
    """
    if entry.stat is None or entry.stat.type != before.type:
        return None
    if before.type == "symlink":
        return None if entry.target is None else os.fsencode(entry.target)
    content = entry.content
    return content if content is not None and len(content) == before.size else None


def _comes_along(stat: Stat) -> bool:
    """Return whether a file comes with its part; one with several names is read by itself."""
    if stat.type == "symlink":
        return True
    return stat.type == "file" and stat.nlink == 1 and stat.size <= SMALL


def _parts_by_directory(tree: Mapping[bytes, Stat]) -> dict[bytes, bytes | None]:
    """Return the part that each directory is in: the largest one; None where it is too large."""
    sums = {b"": 0, **{path: 0 for path, stat in tree.items() if stat.type == "dir"}}
    for path, stat in tree.items():
        if _comes_along(stat):
            sums[path.rpartition(b"/")[0]] += stat.size
    directories = sorted(sums)[1:]
    for path in reversed(directories):  # a directory comes after what it is in
        sums[path.rpartition(b"/")[0]] += sums[path]
    parts: dict[bytes, bytes | None] = {b"": b"" if sums[b""] <= _HELD else None}
    for path in directories:
        above = parts[path.rpartition(b"/")[0]]
        parts[path] = path if above is None and sums[path] <= _HELD else above
    return parts
