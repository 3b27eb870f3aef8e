"""A file that a client has open, which is the same file in all its calls."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from vuserd.errors import CallError, ErrorCode
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.kept import Kept
from vuserd.fs.openfile import OpenFile
from vuserd.fs.version import Version
from vuserd.users.holdings import Holdings

Result = TypeVar("Result")


class HeldFile(Kept):
    """A file that stays open until :meth:`close`; whether it changes is for the client to look at.

    If its backend is lost, or it is not used for a while, it is opened anew by its path, and has to
    be the version that was opened first.

    Args:
        path: the file's path.
        file: the file as it was opened there; this object closes it.
        files: the file system in which it was opened.

    """

    is_file = True

    def __init__(self, path: bytes, file: OpenFile, files: FileSystem) -> None:
        self.attributes = file.attributes
        self.settled = file.settled
        self._path = path
        self._elsewhere = file.node.elsewhere
        self._device = files.device
        #: The opening in use; None after it has lapsed.
        self._current: _Opening | None = _Opening(file, files)
        self._is_closed = False
        self._opening = trio.Lock()
        files.keep(self)

    @property
    def is_known_by_attributes(self) -> bool:
        """Whether another opening with the same attributes is of the same file."""
        return not self._elsewhere

    async def use(
        self, files: FileSystem, operation: Callable[[OpenFile], Awaitable[Result]]
    ) -> Result:
        """Run an operation on the open file.

        Raises:
            CallError: CHANGED: it had to be opened anew, and is another file or may be one.
            VuserdError: what opening it and the operation raise.

        """
        opening = self._current
        # The lock is for those that may open it: it costs a pass of the scheduler.
        if opening is not None and opening.files is files and not self._opening.locked():
            opening.uses += 1
        else:
            async with self._opening:
                opening = await self._opened(files)
                opening.uses += 1
        try:
            files.use(self)
            return await operation(opening.file)
        finally:
            opening.uses -= 1
            self._rest(opening)

    async def _opened(self, files: FileSystem) -> "_Opening":
        if self._is_closed:
            raise CallError(ErrorCode.BAD_REQUEST, "the file was closed")
        if self._current is not None:
            if self._current.files is files:
                return self._current
            self._current.files.use(self)  # it must not lapse there any more
        self.lapse()
        file = await files.open(self._path)
        is_elsewhere = self._elsewhere or file.node.elsewhere or files.device != self._device
        if is_elsewhere or Version.of(file.attributes) != Version.of(self.attributes):
            file.close()
            raise CallError(
                ErrorCode.CHANGED,
                "the file had to be opened anew, and is another one, or may be",
            )
        self._current = _Opening(file, files)
        return self._current

    def _rest(self, opening: "_Opening") -> None:
        if opening.uses:
            return
        if opening is not self._current:
            opening.file.close()
        elif self._is_closed:
            self.lapse()
        else:
            opening.files.keep(self)

    def lapse(self) -> None:
        """Close it in the backend once its users are done; the next use opens it anew."""
        opening, self._current = self._current, None
        if opening is not None and not opening.uses:
            opening.file.close()

    def close(self) -> None:
        """Close it for good, once its users are done."""
        self._is_closed = True
        if self._current is not None:
            self._current.files.use(self)
            self.lapse()


class _Opening:
    """A file as it is open in one session, with the number of its users there."""

    def __init__(self, file: OpenFile, files: FileSystem) -> None:
        self.file = file
        self.files = files
        self.uses = 0


class FileTable:
    """The files that one client has open, by their numbers.

    Args:
        most: the limit of their number.
        holdings: what the client's user holds; each file counts in it.

    """

    def __init__(self, most: int, holdings: Holdings) -> None:
        self._most = most
        self._holdings = holdings
        self._files: dict[int, tuple[HeldFile, str]] = {}
        self._last = 0

    def require_room(self) -> None:
        """Refuse one more where the client has as many as it may have.

        Raises:
            CallError: TOO_LARGE.

        """
        if len(self._files) >= self._most:
            raise CallError(
                ErrorCode.TOO_LARGE, f"a client may have {self._most} files open", limit=self._most
            )
        self._holdings.require_room()

    def add(self, file: HeldFile, export: str) -> int:
        """Keep a file of an export until it is closed; return its number.

        Raises:
            CallError: TOO_LARGE: others took the last room meanwhile; the file is closed.

        """
        try:
            self.require_room()
        except CallError:
            file.close()
            raise
        self._holdings.take()
        self._last += 1
        self._files[self._last] = file, export
        return self._last

    def find(self, number: int, export: str) -> HeldFile:
        """Return the open file of this number.

        Raises:
            CallError: BAD_REQUEST: there is none, or it is of another export.

        """
        file, of = self._files.get(number, (None, None))
        if file is None or of != export:
            raise CallError(
                ErrorCode.BAD_REQUEST, f"there is no open file {number} of export {export!r}"
            )
        return file

    def close_one(self, number: int) -> None:
        """Close a file and forget its number.

        Raises:
            CallError: BAD_REQUEST: there is none.

        """
        file, _ = self._files.pop(number, (None, None))
        if file is None:
            raise CallError(ErrorCode.BAD_REQUEST, f"there is no open file {number}")
        self._holdings.give_back()
        file.close()

    def close(self) -> None:
        """Close all files."""
        while self._files:
            self.close_one(next(iter(self._files)))
