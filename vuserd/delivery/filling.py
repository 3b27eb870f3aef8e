"""Fill a page of a tree: read on in directories, and bring what belongs to the entries found.

Files that are found are read by :class:`~vuserd.delivery.file_reads.FileReads`. What is rarer has a
job each: a symlink, a large file, an entry that has to be found first, or a file that changed.
"""

import errno
import stat
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

import trio

from protocol import fuse
from protocol.fuse import FileHandle, NodeId, version_bytes
from vuserd.delivery.file_reads import FileReads, is_settled
from vuserd.delivery.one_version import ATTEMPTS
from vuserd.delivery.page import ENTRY_BYTES, Page, Place
from vuserd.device.jobs import DEPTH, Job, Jobs
from vuserd.device.procedure import Procedure
from vuserd.device.request import SMALL_READ, Ask, Seen
from vuserd.device.results import body_of, length_of
from vuserd.errors import CallError, ErrorCode, FileError, VuserdError
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.openfile import read_and_look
from vuserd.fs.tree.found import Found
from vuserd.fs.tree.search import Tree
from vuserd.fs.version import TICK
from vuserd.tasks.turns import SHARER, take_turn

#: Directories that are read at once, each into its part of a payload buffer.
READERS: Final = 4
#: Entries that are found ahead of what the page needs.
_AHEAD: Final = 128
#: Entries that are delivered at once.
_AT_ONCE: Final = DEPTH - READERS
#: Entries that are delivered in one turn while other clients want something, too.
_PORTION: Final = 32
#: The bits of a mode that tell the type.
_TYPE: Final = 0o170000
#: Bytes of a symlink's target.
_TARGET: Final = fuse.PAGE_SIZE
#: Bytes for the error of a directory.
_PROBLEM: Final = 1024
#: Seconds until files that have just changed are read once more.
_PAUSE: Final = 2 * TICK


class _Begun(NamedTuple):
    """An entry that has a job of its own."""

    found: Found
    place: Place | None  #: room for a file's bytes
    target: int = 0  #: bytes of the index that are taken for a link's target
    attempts: int = ATTEMPTS  #: how often a file that changes is read


class Filling:
    """Fills one page with what comes next.

    Args:
        files: what serves.
        tree: what is delivered.
        page: what is filled.
        rooms: what directories are read into.
        look_again: whether each file is looked at once more when it was read.

    """

    def __init__(
        self,
        files: FileSystem,
        tree: Tree,
        page: Page,
        rooms: Sequence[Seen],
        *,
        look_again: bool,
    ) -> None:
        self.problems: list[tuple[bytes, VuserdError]] = []
        session = files.session
        self._files = files
        self._tree = tree
        self._page = page
        self._rooms: list[Seen] = [*rooms]
        self._look_again = look_again
        self._jobs = Jobs(session.lane)
        self._reads = FileReads(
            session, files.nodes, self._jobs, self, _AT_ONCE, look_again=look_again
        )
        #: The most bytes that a file may have here: one more than it has is asked for.
        self._most = min(session.max_read, session.payloads.size) - 1
        #: Jobs that read directories, and those that bring an entry.
        self._readers = self._bringing = 0
        self._sharer = SHARER.get()
        #: Entries that may begin in this turn, and whether the next one has no room.
        self._portion = 0
        self._is_full = False
        #: Files that have just changed, and those of them that are read once more now.
        self._unsettled: list[tuple[Found, Place]] = []
        self._again = deque[_Begun]()
        #: Why the backend seems to be out of descriptors.
        self._exhaustion: FileError | None = None

    async def run(self) -> None:
        """Fill it; what does not come through is the tree's again."""
        tree = self._tree
        try:
            while self._page.has_room and not self._is_full and (tree.ahead or tree.has_unread):
                await take_turn()
                self._portion = _PORTION
                await self._run_jobs()
            await self._read_unsettled()
        except BaseException:
            tree.settle_refused(are_problems=False)
            tree.take_back(self._page.found)
            raise
        finally:
            # A cycle with it would keep the page's memory mapped when the session is over.
            del self._reads
        while tree.problems and self._page.has_room:
            self.problems.append(tree.problems.popleft())
            self._page.take(_PROBLEM + len(self.problems[-1][0]))

    async def _run_jobs(self) -> None:
        """Begin what there is, and run to its end.

        Raises:
            FileError: EMFILE or ENFILE: the backend has no descriptors.

        """
        await self._jobs.run(self._feed)
        error = self._exhaustion or self._tree.refused()
        if error is not None:
            if await self._files.operations.is_exhausted(error):
                raise error
            self._tree.settle_refused(are_problems=True)
            self._exhaustion = None

    async def _read_unsettled(self) -> None:
        """Read files that have just changed, once no later change can go unnoticed."""
        self._again.extend(_Begun(*each) for each in self._unsettled)
        self._unsettled.clear()
        if not self._again:
            return
        await trio.sleep(_PAUSE)
        await self._run_jobs()
        for _, place in self._unsettled:
            place.clear()

    def _feed(self) -> None:
        """Begin with what was found, and with jobs to read on in directories."""
        self._read_ahead()
        while self._again and self._has_hands():
            self._bring(self._again.popleft())
        self._reads.begin()

    def _read_ahead(self) -> None:
        tree = self._tree
        while tree.is_waiting and len(tree.ahead) < _AHEAD and self._readers < READERS:
            self._readers += 1
            self._jobs.add(self._read_on())

    def _read_on(self) -> Job:
        yield from self._tree.read_on(self._rooms)
        self._readers -= 1
        self._feed()

    def _has_hands(self) -> bool:
        """Return whether one more entry may be brought at once."""
        return self._bringing + self._reads.count <= _AT_ONCE

    def _has_turn(self) -> bool:
        """Return whether one more entry may begin in this turn."""
        if self._portion <= 0 and (self._sharer is None or self._sharer.is_alone()):
            self._portion = _PORTION
        return self._portion > 0

    # -- what the reads of files ask for, and bring ------------------------------------------------

    def next_file(self) -> tuple[Found, Place] | None:
        """Begin entries until one is a small file; None where there is none."""
        tree, page = self._tree, self._page
        ahead = tree.ahead
        while ahead and page.has_room and not self._is_full and self._has_turn():
            if self._bringing and not self._has_hands():
                break
            found = ahead[0]
            mode, size, place = found.mode, found.size, None
            is_known = found.attributes is not None and found.error is None
            if is_known and mode & _TYPE == stat.S_IFREG and size <= self._most:
                place = page.place(size + 1)
                if place is None and page.found:
                    self._is_full = True
                    break
            ahead.popleft()
            if len(ahead) < _AHEAD:
                self._read_ahead()
            self._portion -= 1
            taken = ENTRY_BYTES + len(found.branch.path) + len(found.name)
            if place is not None and size < SMALL_READ and found.node is not None:
                page.add(found, taken)
                return found, place
            target = 0
            if found.error is None and (found.attributes is None or stat.S_ISLNK(mode)):
                target = _TARGET
            page.add(found, taken + target)
            if place is not None or target:
                self._bring(_Begun(found, place, target))
            else:
                tree.leave(found)
        return None

    def was_read(self, found: Found, place: Place, *, is_settled: bool) -> None:
        """Deliver a file, or read it once more later."""
        if is_settled:
            found.place, found.length = place.offset, found.size
        else:
            self._unsettled.append((found, place))

    def failed(self, found: Found, error: FileError) -> None:
        """Deliver an entry with an error."""
        found.error = error
        if error.is_exhaustion:
            self._exhaustion = error

    def has_changed(self, found: Found, place: Place) -> None:
        """Find a file anew, and read it again."""
        self._bring(_Begun(found, place, attempts=ATTEMPTS - 1))

    # -- jobs for single entries -------------------------------------------------------------------

    def _bring(self, begun: _Begun) -> None:
        self._bringing += 1
        self._jobs.add(self._brought(begun))

    def _brought(self, begun: _Begun) -> Job:
        """Bring what belongs to one entry."""
        found = begun.found
        try:
            yield from self._find_and_read(begun)
        except FileError as error:
            self.failed(found, error)
        except CallError as error:
            found.error = error
        finally:
            self._tree.leave(found)
            self._bringing -= 1
        self._feed()

    def _find_and_read(self, begun: _Begun) -> Procedure[None]:
        """Bring the bytes of a file that may have to be found first, or a symlink's target."""
        found, place, target, attempts = begun
        try:
            if found.node is None:
                yield from self._tree.find(found)
            if place is not None and not stat.S_ISREG(found.mode):
                place.clear()
                place = None
            if stat.S_ISLNK(found.mode):
                yield from self._read_link(found)
                self._page.take(len(found.target or b"") - target)
                return
            if stat.S_ISREG(found.mode) and place is None:
                place = self._page.place(found.size + 1)
        except BaseException:
            if place is not None:
                place.clear()
            raise
        if place is not None:
            yield from self._read_file(found, place, attempts)

    def _read_link(self, found: Found) -> Procedure[None]:
        assert found.node is not None
        [read] = yield [Ask(fuse.readlink(found.node))]
        found.target = fuse.decode_readlink(body_of(read))

    def _read_file(self, found: Found, place: Place, attempts: int) -> Procedure[None]:
        """Read a file into its place, or have it wait if it has just changed.

        Raises:
            FileError: what the backend says.
            CallError: CHANGED: it changed in every attempt.

        """
        node, lane = found.node, self._files.session.lane
        assert node is not None

        def undo(body: bytes) -> None:
            lane.post(fuse.release(node, fuse.decode_open(body)))

        filled = 0
        try:
            [opened] = yield [(fuse.open(node), None, undo)]
            handle = lane.decoded(fuse.decode_open, body_of(opened))
            try:
                for _ in range(attempts):
                    size, before = found.size, found.attributes
                    assert before is not None
                    if size + 1 > place.size:
                        return
                    settled = found.is_old or is_settled(before)
                    # One byte more than there is shows that its size is true.
                    if self._look_again:
                        length, now = yield from self._read_and_look(node, handle, place, size + 1)
                    else:
                        [done] = yield [Ask(fuse.read(node, handle, 0, size + 1), place)]
                        length, now = length_of(done), before
                    if now == before or version_bytes(now) == version_bytes(before):
                        if length != size:  # as in procfs
                            return
                        filled = size
                        if settled:
                            found.place, found.length = place.offset, size
                        else:
                            self._unsettled.append((found, place))
                        return
                    if not stat.S_ISREG(found.now_has(now).mode):
                        raise FileError(errno.ESTALE)
            finally:
                # Only now, when all that used it is back: its number may be the next file's.
                lane.post(fuse.release(node, handle))
        finally:
            place.clear(filled)
        raise CallError(ErrorCode.CHANGED, f"the file changed in each of {ATTEMPTS} attempts")

    def _read_and_look(
        self, node: NodeId, handle: FileHandle, place: Place, size: int
    ) -> Procedure[tuple[int, bytes]]:
        """Read a file into its place; return its length, and the attributes that it has then."""
        session = self._files.session
        length, looked = yield from read_and_look(session, node, handle, place, 0, size)
        if looked is not None:
            return length, fuse.encode_attributes(looked)
        [answer] = yield [Ask(fuse.getattr(node))]
        return length, session.lane.decoded(fuse.attributes_of, body_of(answer))
