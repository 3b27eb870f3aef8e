"""Deliver a tree in pages: its entries, and with them the bytes of its small files.

Every file whose bytes are in a page is one version (contract 2): what READDIRPLUS or LOOKUP said of
it was settled before the READ, and GETATTR says the same after it. A file that cannot be shown to
be, or has no room in any page, is named without its bytes: the client reads it by itself.
"""

import errno
import stat
from collections import deque
from typing import Final, NamedTuple, TypeAlias

import trio

from memory.arena import Buffer
from protocol import fuse
from protocol.fuse import decode_attributes_at, version_bytes
from vuserd.delivery.inline import FileContent
from vuserd.delivery.one_version import ATTEMPTS
from vuserd.delivery.page import ENTRY_BYTES, Page, Place
from vuserd.device.jobs import DEPTH, Ask, Job, Jobs
from vuserd.device.payloads import given_back
from vuserd.device.request import InOrder
from vuserd.device.results import MISSING, body_of, length_of
from vuserd.errors import CallError, ErrorCode, FileError, VuserdError
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.kept import Kept
from vuserd.fs.tree.asking import Part
from vuserd.fs.tree.found import Found
from vuserd.fs.tree.search import Tree
from vuserd.fs.version import TICK, Version, time_to_settle
from vuserd.tasks.turns import SHARER, take_turn
from vuserd.users.asker import ASKER

#: Directories that are read at once, each into a payload buffer of its own.
_READERS: Final = 4
#: Entries that are found ahead of what the page needs.
_AHEAD: Final = 128
#: Entries that are delivered at once.
_WORKERS: Final = DEPTH - _READERS
#: Entries that are delivered in one turn while other users want something, too.
_PORTION: Final = 32
#: Bytes of a symlink's target.
_TARGET: Final = fuse.PAGE_SIZE
#: Bytes for the error of a directory.
_PROBLEM: Final = 1024
#: Seconds until files that have just changed are read once more.
_PAUSE: Final = 2 * TICK


class TreePage(NamedTuple):
    """Some entries, directories that could not be read, and the bytes of files among the entries.

    Whoever takes it gives ``content`` back.
    """

    found: list[Found]
    problems: list[tuple[bytes, VuserdError]]
    content: FileContent


class TreePages(Kept):
    """A tree in delivery: :meth:`next_page` until it is ``finished``, :meth:`close` at any time.

    When the backend is lost it goes on with the next one, from where it was; so it does where it
    lapsed.
    """

    def __init__(self, path: bytes) -> None:
        self._tree = Tree(path)
        self._files: FileSystem | None = None

    @property
    def remembered(self) -> int:
        """Bytes of memory that it takes to go on where it was."""
        return self._tree.remembered

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to deliver."""
        return self._tree.finished

    def lapse(self) -> None:
        """Give back all that the backend has for it; the next page finds it anew."""
        self._tree.lapse()

    def close(self) -> None:
        """End it."""
        if self._files is not None:
            self._files.use(self)
        self._tree.close()

    async def next_page(
        self, files: FileSystem, limit: int, size: int, *, look_again: bool = True
    ) -> TreePage:
        """Return up to ``limit`` entries and as many bytes as go into ``size``, index and all.

        Without ``look_again`` no file is looked at once it was read: whoever takes the page looks
        at its version then.

        Raises:
            FileError: ENOTDIR and what the backend says, of the directory where the tree begins;
                EMFILE and ENFILE of anything in it.
            CallError: CHANGED of that directory.
            BackendError: the backend is lost.

        After any of them it can be asked again, and nothing is left out.

        """
        # One at a time: what is in flight for a user does not grow with the trees asked for.
        lock = files.filling.setdefault(ASKER.get(), trio.Lock())
        async with lock:
            return await self._fill_page(files, limit, size, look_again=look_again)

    async def _fill_page(
        self, files: FileSystem, limit: int, size: int, *, look_again: bool
    ) -> TreePage:
        if self._files is not None:
            self._files.use(self)
        self._files = files
        try:
            await self._tree.enter(files)
            count = max(1, size // files.session.payloads.size)
            with given_back(await files.session.payloads.take(count + _READERS)) as buffers:
                page = Page(buffers[_READERS:], size, limit)
                readers = buffers[:_READERS]
                filling = _Filling(files, self._tree, page, readers, look_again=look_again)
                await filling.run()
                return TreePage(page.found, filling.problems, page.take_content(buffers))
        finally:
            files.nodes.flush()
            if self._tree.is_in_use:
                files.keep(self)


#: An entry, room for a file's bytes, and bytes of the index that are taken for a link's target.
_Begun: TypeAlias = tuple[Found, Place | None, int]


class _Filling:
    """Fills one page with what comes next."""

    def __init__(
        self,
        files: FileSystem,
        tree: Tree,
        page: Page,
        buffers: list[Buffer],
        *,
        look_again: bool,
    ) -> None:
        self.problems: list[tuple[bytes, VuserdError]] = []
        self._files = files
        self._tree = tree
        self._page = page
        self._buffers = buffers
        self._look_again = look_again
        self._jobs = Jobs(files.session.lane)
        #: The most bytes that a file may have here: one more than it has is asked for.
        self._most = min(files.session.max_read, files.session.payloads.size) - 1
        self._readers = self._workers = 0
        self._sharer = SHARER.get()
        #: Entries that may begin in this turn, and whether the next one has no room.
        self._portion = 0
        self._is_full = False
        #: Files that have just changed, and those of them that are read once more now.
        self._unsettled: list[tuple[Found, Place, int]] = []
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
                self._feed()
                await self._run_jobs()
            await self._read_unsettled()
        except BaseException:
            tree.settle_refused(are_problems=False)
            tree.take_back(self._page.found)
            raise
        while tree.problems and self._page.has_room:
            self.problems.append(tree.problems.popleft())
            self._page.take(_PROBLEM + len(self.problems[-1][0]))

    async def _run_jobs(self) -> None:
        """Run the jobs to their ends.

        Raises:
            FileError: EMFILE or ENFILE: the backend has no descriptors.

        """
        await self._jobs.run()
        error = self._exhaustion or self._tree.refused()
        if error is not None:
            if await self._files.operations.is_exhausted(error):
                raise error
            self._tree.settle_refused(are_problems=True)
            self._exhaustion = None

    async def _read_unsettled(self) -> None:
        """Read files that have just changed, once no later change can go unnoticed."""
        self._again.extend(self._unsettled)
        self._unsettled.clear()
        if not self._again:
            return
        await trio.sleep(_PAUSE)
        for _ in range(min(len(self._again), _WORKERS)):
            self._add_worker()
        await self._run_jobs()
        for _, place, _ in self._unsettled:
            place.clear()

    def _feed(self) -> None:
        """Begin jobs for what was found, and to read on in directories."""
        self._read_ahead()
        while self._workers < _WORKERS and self._may_begin():
            self._add_worker()

    def _read_ahead(self) -> None:
        tree = self._tree
        while tree.is_waiting and len(tree.ahead) < _AHEAD and self._readers < _READERS:
            self._readers += 1
            self._jobs.add(self._read_on())

    def _read_on(self) -> Job:
        yield from self._tree.read_on(self._buffers)
        self._readers -= 1
        self._feed()

    def _add_worker(self) -> None:
        self._workers += 1
        self._jobs.add(self._work())

    def _may_begin(self) -> bool:
        """Return whether an entry that was found may begin in this turn."""
        if self._is_full or not self._tree.ahead or not self._page.has_room:
            return False
        if self._portion <= 0 and (self._sharer is None or self._sharer.is_only_user()):
            self._portion = _PORTION
        return self._portion > 0

    def _next(self) -> _Begun | None:
        """Begin entries until there is one to bring something of; None where there is none."""
        if self._again:
            return self._again.popleft()
        tree, page = self._tree, self._page
        while self._may_begin():
            found = tree.ahead[0]
            place, target, is_brought = None, 0, False
            if found.error is not None:
                pass
            elif found.attributes is None or stat.S_ISLNK(found.mode):
                is_brought, target = True, _TARGET
            elif stat.S_ISREG(found.mode) and found.size <= self._most:
                place = page.place(found.size + 1)
                if place is None and page.found:
                    self._is_full = True
                    return None
                is_brought = place is not None
            tree.ahead.popleft()
            self._portion -= 1
            page.take(ENTRY_BYTES + len(found.branch.path) + len(found.name) + target)
            page.found.append(found)
            if len(tree.ahead) < _AHEAD:
                self._read_ahead()
            if is_brought:
                return found, place, target
            tree.leave(found)
        return None

    def _work(self) -> Job:
        """Bring what belongs to one entry after the other."""
        while (begun := self._next()) is not None:
            found, place, target = begun
            try:
                if place is not None and found.node is not None:
                    yield from self._read_file(found, place)
                else:
                    yield from self._bring(found, place, target)
            except FileError as error:
                found.error = error
                if error.is_exhaustion:
                    self._exhaustion = error
            except CallError as error:
                found.error = error
            finally:
                self._tree.leave(found)
        self._workers -= 1

    def _bring(self, found: Found, place: Place | None, target: int) -> Part[None]:
        """Bring the bytes of a file that may have to be found first, or a symlink's target.

        Args:
            found: the entry.
            place: room for a file's bytes.
            target: bytes of the index that are taken for a symlink's target.

        """
        try:
            if found.node is None:
                yield from self._tree.find(found)
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
        if place is None:
            return
        if stat.S_ISREG(found.mode):
            yield from self._read_file(found, place)
        else:
            place.clear()

    def _read_link(self, found: Found) -> Part[None]:
        assert found.node is not None
        [read] = yield [Ask(fuse.readlink(found.node))]
        found.target = fuse.decode_readlink(body_of(read))

    def _read_file(self, found: Found, place: Place) -> Part[None]:
        """Read a file into its place, or have it wait if it has just changed.

        Raises:
            FileError: what the backend says.
            CallError: CHANGED: it changed in every attempt.

        """
        node, session = found.node, self._files.session
        lane = session.lane
        assert node is not None

        def undo(body: bytes) -> None:
            lane.post(fuse.release(node, fuse.decode_open(body)))

        filled = 0
        try:
            [opened] = yield [(fuse.open(node), None, undo)]
            handle = lane.decoded(fuse.decode_open, body_of(opened))
            try:
                for _ in range(ATTEMPTS):
                    size, before = found.size, found.attributes
                    assert before is not None
                    if size + 1 > place.size:
                        return
                    settled = found.is_old or _is_settled(before)
                    # One byte more than there is shows that its size is true.
                    read = fuse.read(node, handle, 0, size + 1), place, None
                    look = fuse.getattr(node), None, None
                    # A backend with one thread has done the GETATTR after the READ if it says so.
                    looked = MISSING
                    if session.answers_in_order and self._look_again:
                        done, looked = yield InOrder((read, look))
                    else:
                        [done] = yield [read]
                    length = length_of(done)
                    now = before
                    if self._look_again:
                        if looked is MISSING or not session.answers_in_order:
                            [looked] = yield [look]
                        now = lane.decoded(fuse.attributes_of, body_of(looked))
                    if now == before or version_bytes(now) == version_bytes(before):
                        if length != size:  # as in procfs
                            return
                        filled = size
                        if settled:
                            found.place, found.length = place.offset, size
                        else:
                            self._unsettled.append((found, place, 0))
                        return
                    if not stat.S_ISREG(found.now_has(now).mode):
                        raise FileError(errno.ESTALE)
            finally:
                # Only now, when all that used it is back: its number may be the next file's.
                lane.post(fuse.release(node, handle))
        finally:
            place.clear(filled)
        raise CallError(ErrorCode.CHANGED, f"the file changed in each of {ATTEMPTS} attempts")


def _is_settled(attributes: bytes) -> bool:
    """Return whether a later change is certain to show in a file's timestamps."""
    return not time_to_settle(Version.of(decode_attributes_at(attributes, 0)))
