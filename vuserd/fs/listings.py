"""The listings and walks that one client has begun and not finished, by their tokens."""

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

from protocol.dirent_columns import DirectoryColumns
from vuserd.errors import CallError, ErrorCode
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.kept import Kept, replaced
from vuserd.fs.nodes import Hold, Node
from vuserd.fs.reader import DirectoryReader
from vuserd.users.holdings import Holdings


class Continued(Protocol):
    """What a token stands for."""

    @property
    def remembered(self) -> int:
        """Bytes of memory that it takes to go on where it was."""

    def close(self) -> None:
        """Let go of all that it holds."""


Going = TypeVar("Going", bound=Continued)


class ContinuationTable(Generic[Going]):
    """Keeps up to ``most`` of them; the one that waited longest makes room for a new one.

    Args:
        most: how many.
        holdings: those of its user, among which each counts from when it is kept first until
            :meth:`end`, while its next page is read as well.

    """

    def __init__(self, most: int, holdings: Holdings) -> None:
        self._most = most
        self._holdings = holdings
        #: The bytes that each was counted with.
        self._sizes: dict[Going, int] = {}
        self._going: OrderedDict[bytes, tuple[Going, tuple[object, ...]]] = OrderedDict()
        self._last = 0

    def keep(self, going: Going, begun: tuple[object, ...], token: bytes | None = None) -> bytes:
        """Keep one until its next page is asked for; return the token for that.

        Args:
            going: what is kept.
            begun: what it was begun with, which each page names again.
            token: the one that it had, where a page failed and can be asked for again.

        Raises:
            CallError: TOO_LARGE: its user has too much, and this client nothing that could make
                room; it is closed, and no other is.

        """
        self._uncount(going)
        size = going.remembered
        if self._can_make_room(size):
            while self._going and (
                len(self._going) >= self._most or not self._holdings.has_room(size)
            ):
                self.end(self._going.popitem(last=False)[1][0])
        try:
            self._holdings.take(size)
        except CallError:
            going.close()
            raise
        self._sizes[going] = size
        if token is None:
            self._last += 1
            token = self._last.to_bytes(8, "big")
        self._going[token] = going, begun
        return token

    def take(self, token: bytes, begun: tuple[object, ...]) -> Going:
        """Return what a token stands for, which is the caller's to keep again or to end.

        Raises:
            CallError: CHANGED: it was used already, or let go for others since; BAD_REQUEST: it
                never was there, or was begun with something else.

        """
        going, where = self._going.get(token, (None, None))
        if going is None and 0 < int.from_bytes(token, "big") <= self._last:
            raise CallError(
                ErrorCode.CHANGED,
                f"after: this page is gone; of the last {self._most} that go on each can be asked"
                " for once",
            )
        if going is None or where != begun:
            raise CallError(
                ErrorCode.BAD_REQUEST, "after: not the token of a page that goes on here"
            )
        del self._going[token]
        return going

    def end(self, going: Going) -> None:
        """Close one that is not kept, or is not to be any longer."""
        going.close()
        self._uncount(going)

    def close(self) -> None:
        """Let go of all of them, once no call has one."""
        while self._going:
            self.end(self._going.popitem()[1][0])

    def _can_make_room(self, size: int) -> bool:
        """Return whether there is room for one of ``size`` bytes once all others are ended."""
        others = [self._sizes[going] for going, _ in self._going.values()]
        return self._holdings.has_room(size - sum(others), 1 - len(others))

    def _uncount(self, going: Going) -> None:
        size = self._sizes.pop(going, None)
        if size is not None:
            self._holdings.give_back(size)


class Listing(Kept):
    """A listing of the directory at a path, a page at a time, from one open directory."""

    def __init__(self, path: bytes, *, attributes: bool) -> None:
        self._path = path
        self._reader = DirectoryReader(attributes=attributes)
        self._files: FileSystem | None = None
        #: The directory, and what leads to it; in use while it is open.
        self._hold: Hold | None = None
        self._node: Node | None = None
        #: What it was when the listing began: its inode number, and whether that says which it is.
        self._ino: int | None = None
        self._elsewhere = False
        #: On which file system it says so.
        self._device: tuple[int, int] | None = None

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to give."""
        return self._reader.finished

    @property
    def remembered(self) -> int:
        """Bytes of memory that it takes to go on where it was."""
        return self._reader.remembered

    async def next_page(
        self, files: FileSystem, limit: int, *, goes_on: bool = False
    ) -> DirectoryColumns:
        """Return up to ``limit`` entries.

        Where the client ``goes_on`` at once, the next ones may be read ahead.

        Raises:
            FileError: ENOTDIR and what the backend says.
            CallError: CHANGED when the path leads to another directory than before, or to one of
                which that cannot be told.

        """
        if self._files is not None:
            self._files.use(self)
        if files is not self._files:
            self.lapse()
        hold = Hold(files.nodes)
        try:
            node = await files.directory(self._path, hold)
            self._require_same(files, node)
            entries = await self._reader.read(files, node, limit, goes_on=goes_on)
        except BaseException:
            if self._hold is None:  # opened anew, and not read: nobody would close that in time
                self._reader.close()
            hold.leave()
            self._keep_on()
            raise
        finally:
            files.nodes.flush()
        if self._reader.is_open and self._hold is None:
            self._files, self._hold, self._node = files, hold, node
        else:
            hold.leave()
        self._keep_on()
        return entries

    def lapse(self) -> None:
        """Close the directory; the next page opens it anew."""
        self._reader.close()
        self._leave()

    def close(self) -> None:
        """End the listing."""
        if self._files is not None:
            self._files.use(self)
        self.lapse()

    def _require_same(self, files: FileSystem, node: Node) -> None:
        if self._ino is None:
            self._ino, self._elsewhere = node.attributes.ino, node.elsewhere
            self._device = files.device
        elif self._node is not None:
            if node.id != self._node.id:
                raise replaced()
        else:
            elsewhere = self._elsewhere or node.elsewhere or files.device != self._device
            if elsewhere or node.attributes.ino != self._ino:
                raise replaced()

    def _keep_on(self) -> None:
        """Let what is open lapse unless it is used; leave its nodes if nothing is open."""
        if self._reader.is_open and self._files is not None:
            self._files.keep(self)
        else:
            self._leave()

    def _leave(self) -> None:
        hold, self._hold = self._hold, None
        self._files = self._node = None
        if hold is not None:
            hold.leave()
