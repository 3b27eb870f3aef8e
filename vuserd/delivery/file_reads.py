"""Read many small files whole and at once, each in one version, with no task and no job for a file.

A file has a line for as long as it is read, and each reply moves it on. All replies that are there
are taken first, and what follows from them is sent all at once::

    OPEN  ->  READ, and GETATTR behind it  ->  RELEASE  ->  the line has its next file

The file is the one that was found if GETATTR, done after the READ, finds the version that was
found. A backend with one thread has done them in that order if it says so, and has both in one
round; of another one GETATTR is asked for when the READ is back.
"""

from typing import Final, Protocol

from protocol import MalformedError, fuse
from protocol.fuse import FileHandle, NodeId, decode_attributes_at, version_bytes
from vuserd.delivery.page import Place
from vuserd.device.jobs import Jobs, Member
from vuserd.device.lane.direct import GETATTR, NO_HANDLE, OPEN, READ, RELEASE, Direction
from vuserd.device.request import Asked, Bulk, Taken
from vuserd.device.results import Failed, Result
from vuserd.device.session import Session
from vuserd.errors import FileError
from vuserd.fs.nodes import NodeTable
from vuserd.fs.tree.found import Found
from vuserd.fs.version import Version, time_to_settle
from vuserd.users.asker import ASKER

#: The four requests of a line: their places in the bulk are these and four times its number.
_OPENED: Final = 0
_READ: Final = 1
_LOOKED: Final = 2
_RELEASED: Final = 3
_HEADER: Final = fuse.OUT_HEADER_SIZE
#: Files that are read at once while other clients ask the backend, too: their requests wait behind
#: all that these have there.
_SHARED: Final = 8
#: In place of a length that is not known.
_NOTHING: Final = -1


class Files(Protocol):
    """Where files to read come from, and what becomes of them. Each method may begin more."""

    def next_file(self) -> tuple[Found, Place] | None:
        """Return a file that was found, and room for its bytes and one more; None without one."""

    def was_read(self, found: Found, place: Place, *, is_settled: bool) -> None:
        """Take a file, whole in its place; one that is not settled may change without a trace."""

    def failed(self, found: Found, error: FileError) -> None:
        """Take a file that cannot be read."""

    def has_changed(self, found: Found, place: Place) -> None:
        """Take a file that has changed; its node is given back, and its place is not clear."""


class _Line:
    """A file that is read, or room for one."""

    __slots__ = (
        "begin",
        "error",
        "found",
        "handle",
        "is_settled",
        "length",
        "looks",
        "looks_behind",
        "node",
        "place",
        "released",
    )

    def __init__(self, number: int) -> None:
        #: The place of its first request.
        self.begin = 4 * number
        #: The file; None without one. The next two mean nothing then.
        self.found: Found | None = None
        self.place: Place
        self.node: NodeId
        #: None for a file that is not open.
        self.handle: FileHandle | None = None
        #: Whether a later change is certain to show.
        self.is_settled = False
        #: Bytes that READ brought; less than 0 until then.
        self.length = _NOTHING
        #: Whether a GETATTR is to come, and whether it was asked for after the READ.
        self.looks = self.looks_behind = False
        #: Why the file cannot be read though it is open.
        self.error: FileError | None = None
        #: The node and handle of the file before, while its RELEASE is not answered.
        self.released: tuple[NodeId, FileHandle] | None = None


class FileReads(Bulk, Member):
    """Reads files as long as there are any, up to ``lines`` at once.

    Args:
        session: what serves.
        nodes: where the files' nodes are borrowed.
        jobs: those that they are read beside, which wait for them.
        files: the source of files.
        lines: how many are read at once.
        look_again: whether each is looked at once more when it was read.

    """

    __slots__ = (
        "_files",
        "_idle",
        "_is_sending",
        "_jobs",
        "_lane",
        "_left",
        "_lines",
        "_look_again",
        "_nodes",
        "_releases",
        "_requests",
    )

    def __init__(
        self,
        session: Session,
        nodes: NodeTable,
        jobs: Jobs,
        files: Files,
        lines: int,
        *,
        look_again: bool,
    ) -> None:
        super().__init__(ASKER.get())
        self._lane = session.lane
        self._nodes = nodes
        self._jobs = jobs
        self._files = files
        self._look_again = look_again
        self._lines = [*map(_Line, range(lines))]
        #: Those without a file.
        self._idle = self._lines[::-1]
        #: How many RELEASEs are not answered, and nodes to give back.
        self._releases = 0
        self._left: list[NodeId] = []
        #: What is to be sent, and whether it is being sent.
        self._requests: list[Direction] = []
        self._is_sending = False

    @property
    def count(self) -> int:
        """How many files are being read."""
        return len(self._lines) - len(self._idle)

    def begin(self) -> None:
        """Begin with files, as far as there are lines, and send; the caller publishes.

        Raises:
            BackendError: the backend is lost.

        """
        if not self._jobs.go_on:
            return
        idle, next_file, send = self._idle, self._files.next_file, self._requests.append
        most = len(self._lines) - _SHARED if self._lane.is_shared else 0
        while len(idle) > most:
            line = idle.pop()  # what brings files may begin some itself
            one = next_file()
            if one is None:
                idle.append(line)
                break
            line.found, line.place = found, _ = one
            assert found.node is not None
            line.node = node = found.node
            line.handle = line.error = None
            send((line.begin, OPEN, node, NO_HANDLE, 0, None))
        if not self._is_sending:
            self._send()

    def asked_at(self, place: int) -> Asked:
        """Return the request that is at a place now."""
        line, kind = self._lines[place >> 2], place & 3
        if kind == _RELEASED:
            assert line.released is not None
            return fuse.release(*line.released), None, None
        node, lane = line.node, self._lane
        if kind == _OPENED:

            def undo(body: bytes) -> None:
                lane.post(fuse.release(node, fuse.decode_open(body)))

            return fuse.open(node), None, undo
        if kind == _LOOKED:
            return fuse.getattr(node), None, None
        assert line.found is not None
        assert line.handle is not None
        return fuse.read(node, line.handle, 0, line.found.size + 1), line.place, None

    def take(self) -> None:
        """Take the replies that have come, and let their files go on."""
        taken, self.taken = self.taken, []
        try:
            if self._jobs.go_on:
                self._take(taken)
            else:
                self._take_late(taken)
            if self._left:
                self._give_back()
            self.begin()
        except MalformedError as error:
            self._jobs.ended(self, self._lane.broken(error))
        except Exception as failure:
            self._jobs.ended(self, failure)

    def settle(self, place: int, result: Result) -> None:
        """Take what became of a request that had to wait, or did not come through."""
        if isinstance(result, Failed):
            try:
                result.unwrap()
            except FileError as error:
                self.taken.append((place, error.number, b"", _HEADER))
            except Exception as failure:
                self._jobs.ended(self, failure)
                return
        elif isinstance(result, int):
            self.taken.append((place, 0, b"", _HEADER + result))
        else:
            self.taken.append((place, 0, bytes(_HEADER) + result, _HEADER + len(result)))
        if not self._is_sending:
            self.take()

    def close(self) -> None:
        """Leave all files; what was asked of the backend for them was given up."""
        self._requests.clear()
        for line in self._lines:
            found, handle = line.found, line.handle
            if found is None:
                continue
            if handle is not None:
                self._lane.post(fuse.release(line.node, handle))
            line.place.clear()
            line.found = found.node = None
            self._idle.append(line)
            self._left.append(line.node)
        self._give_back()

    # -- from reply to reply -----------------------------------------------------------------------

    def _take(self, taken: list[Taken]) -> None:
        lines = self._lines
        for place, error, reply, length in taken:
            line, kind = lines[place >> 2], place & 3
            if kind == _READ:
                line.length = length - _HEADER
                if error:
                    line.error = FileError(error)
                if not line.looks:
                    self._look_behind(line)
            elif kind == _LOOKED:
                line.looks = False
                if line.length < 0:
                    continue  # it may have been done before the READ
                if line.error is not None or error:
                    self._end(line, line.error or FileError(error))
                elif not line.looks_behind and not self._lane.answers_in_order:
                    self._look_behind(line)
                else:
                    self._check(line, fuse.attributes_of(reply[_HEADER:]))
            elif kind == _RELEASED:
                self._was_released(line)
            elif error:
                self._end(line, FileError(error))
            else:
                line.handle = fuse.decode_open(reply[_HEADER:])
                self._read(line, line.handle)

    def _take_late(self, taken: list[Taken]) -> None:
        """Take replies when all is about to be closed."""
        for place, error, reply, _ in taken:
            line, kind = self._lines[place >> 2], place & 3
            if kind == _OPENED and not error:
                line.handle = fuse.decode_open(reply[_HEADER:])
            elif kind == _RELEASED:
                self._was_released(line)

    def _read(self, line: _Line, handle: FileHandle) -> None:
        """Ask for a file's bytes, and for what it is then."""
        found, begin, node, send = line.found, line.begin, line.node, self._requests.append
        assert found is not None
        assert found.attributes is not None
        line.is_settled = found.is_old or is_settled(found.attributes)
        line.length = _NOTHING
        # One byte more than there is shows that its size is true.
        send((begin + _READ, READ, node, handle, found.size + 1, line.place))
        line.looks_behind = False
        line.looks = looks = self._look_again and self._lane.answers_in_order
        if looks:
            send((begin + _LOOKED, GETATTR, node, NO_HANDLE, 0, None))

    def _look_behind(self, line: _Line) -> None:
        """Ask what a file is, once its bytes are here."""
        if line.error is not None:
            self._end(line, line.error)
        elif self._look_again:
            line.looks = line.looks_behind = True
            send = self._requests.append
            send((line.begin + _LOOKED, GETATTR, line.node, NO_HANDLE, 0, None))
        else:
            assert line.found is not None
            assert line.found.attributes is not None
            self._check(line, line.found.attributes)

    def _check(self, line: _Line, now: bytes) -> None:
        """End with a file that was read; ``now`` are the attributes that it has after it."""
        found, place, length = line.found, line.place, line.length
        assert found is not None
        before = found.attributes
        assert before is not None
        self._leave(line, found)
        if now != before and version_bytes(now) != version_bytes(before):
            self._files.has_changed(found, place)
        elif length != found.size:  # as in procfs
            place.clear()
        else:
            self._files.was_read(found, place, is_settled=line.is_settled)

    def _end(self, line: _Line, error: FileError) -> None:
        """End with a file that cannot be read."""
        found = line.found
        assert found is not None
        self._leave(line, found)
        line.place.clear()
        self._files.failed(found, error)

    def _leave(self, line: _Line, found: Found) -> None:
        """Release a file, if it is open, and give its node back: only now, when all is back.

        The number of its handle may be the next file's.
        """
        node, handle = line.node, line.handle
        line.found = found.node = None
        self._idle.append(line)
        if handle is None:
            self._left.append(node)
        elif line.released is None:
            line.released = node, handle
            self._releases += 1
            self._requests.append((line.begin + _RELEASED, RELEASE, node, handle, 0, None))
        else:
            self._lane.post(fuse.release(node, handle))
            self._left.append(node)

    def _was_released(self, line: _Line) -> None:
        assert line.released is not None
        self._left.append(line.released[0])
        line.released = None
        self._releases -= 1

    def _give_back(self) -> None:
        """Give the nodes back that are no longer needed; after the last of all, at once."""
        self._nodes.give_back_each(self._left)
        self._left.clear()
        if not self._releases and not self.count:
            self._nodes.flush()

    def _send(self) -> None:
        """Send what is to be sent, and what follows from errors of that."""
        self._is_sending = True
        try:
            while self._requests:
                requests, self._requests = self._requests, []
                if self.count:
                    self._jobs.hold(self)
                self._lane.send(self, requests)
                if self.taken:
                    taken, self.taken = self.taken, []
                    self._take(taken)
                    self.begin()
        finally:
            self._is_sending = False
        if self._left:
            self._give_back()
        if not self.count:
            self._jobs.ended(self, None)


def is_settled(attributes: bytes) -> bool:
    """Return whether a later change is certain to show in a file's timestamps."""
    return not time_to_settle(Version.of(decode_attributes_at(attributes, 0)))
