"""The kinds of work, each measured and proven in one place for all contenders.

A task is made of a contender, of one of its methods, and of what the work has to bring. The clock
of :meth:`Task.work` stops when the client has touched every page of what it asked for; the bytes
are compared, and in the first and the last round hashed, after that.
"""

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from benchmarks.contender import Contender, WrongBytesError
from benchmarks.corpus import (
    PAGE,
    SLOT,
    BigFile,
    Listing,
    SmallFiles,
    drop_from_page_cache,
    warm_buffer,
)
from benchmarks.processes import deep_size

Found = TypeVar("Found")


class Task(ABC):
    """One row of a table: all but ``__init__`` runs in the contender's process."""

    def __init__(self, name: str, contender: Contender) -> None:
        self.name = name
        self.contender = contender

    @property
    def key(self) -> str:
        """The row's name with its backend."""
        return ", ".join(filter(None, (self.name, self.contender.backend)))

    def open(self) -> None:
        """Connect and make room."""
        self.contender.open()

    def prepare(self) -> None:  # noqa: B027 - not all need it
        """Get ready for a round, outside the clock."""

    @abstractmethod
    def work(self) -> list[float] | None:
        """Do the work once. Work of many calls returns how long each took, in seconds."""

    def brought(self) -> int:
        """Return the bytes of memory of what the work has brought, and the caller keeps."""
        return 0

    @abstractmethod
    def check(self, *, thorough: bool) -> None:
        """Prove what the work brought, outside the clock; ``thorough`` with a hash of all bytes.

        Raises:
            WrongBytesError: it is not what is on the host.

        """

    def close(self) -> None:
        """Disconnect."""
        self.contender.close()


class IntoMemory(Task):
    """A large file into memory that the client has and uses again.

    Args:
        name: the row's.
        contender: whose row it is.
        file: the file.
        bring: fills the memory.
        room: makes the memory; by default a buffer of the client's own.
        cold: drop the file from the page cache before each round.

    """

    def __init__(
        self,
        name: str,
        contender: Contender,
        file: BigFile,
        bring: Callable[[BigFile, memoryview], None],
        *,
        room: Callable[[int], memoryview] = warm_buffer,
        cold: bool = False,
    ) -> None:
        super().__init__(name, contender)
        self._file, self._bring, self._room, self._cold = file, bring, room, cold

    def open(self) -> None:
        """Make room."""
        super().open()
        self._view = self._room(self._file.size)
        self.contender.undo.callback(self._view.release)

    def prepare(self) -> None:
        """Make the memory's bytes wrong."""
        self._file.spoil(self._view)
        if self._cold:
            drop_from_page_cache(self._file.path)

    def work(self) -> None:
        """Bring, then touch."""
        self._bring(self._file, self._view)
        self._column = self._file.touch(self._view)

    def check(self, *, thorough: bool) -> None:
        """Compare the bytes."""
        self._file.prove(self._column, self._view if thorough else None)


class NewImage(Task):
    """A large file as memory that is new in every round; ``bring`` leaves its end to a stack."""

    def __init__(
        self,
        name: str,
        contender: Contender,
        file: BigFile,
        bring: Callable[[BigFile, contextlib.ExitStack], memoryview],
    ) -> None:
        super().__init__(name, contender)
        self._file, self._bring = file, bring

    def work(self) -> None:
        """Bring, then touch."""
        self._undo = contextlib.ExitStack()
        self._view = self._bring(self._file, self._undo)
        self._column = self._file.touch(self._view)

    def check(self, *, thorough: bool) -> None:
        """Compare the bytes, and let them go."""
        with self._undo, self._view as view:
            self._file.prove(self._column, view if thorough else None)


class Calls(Task, Generic[Found]):
    """The same call many times, each timed; ``prove`` is given what the last one brought.

    ``call`` leaves what has to be done after it, outside the clock, to the stack it is given.
    """

    def __init__(
        self,
        name: str,
        contender: Contender,
        count: int,
        call: Callable[[contextlib.ExitStack], Found],
        prove: Callable[[Found], None],
    ) -> None:
        super().__init__(name, contender)
        self._count, self._call, self._prove = count, call, prove
        self._undo = contextlib.ExitStack()

    def work(self) -> list[float]:
        """Time each call."""
        seconds = []
        for _ in range(self._count):
            self._undo.close()
            began = time.perf_counter()
            self._got = self._call(self._undo)
            seconds.append(time.perf_counter() - began)
        return seconds

    def check(self, *, thorough: bool) -> None:  # noqa: ARG002 - it is little
        """Prove the last one."""
        with self._undo:
            self._prove(self._got)
            del self._got


class ManyFiles(Task):
    """Many small files into slots of a warm buffer.

    ``bring`` gives each file's bytes, in their order; where it takes work to tell them apart that
    is a generator, which nobody asks before the clock has stopped.
    """

    def __init__(
        self,
        name: str,
        contender: Contender,
        files: SmallFiles,
        bring: Callable[[SmallFiles, memoryview], Iterable[memoryview]],
        *,
        clear: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(name, contender)
        self._files, self._bring, self._clear = files, bring, clear

    def open(self) -> None:
        """Make the slots."""
        super().open()
        self._slots = warm_buffer(len(self._files.files) * SLOT)

    def prepare(self) -> None:
        """Make every slot wrong, and have the contender clear what it made before."""
        if self._clear is not None:
            self._clear()
        self._slots[::PAGE] = bytes(len(self._slots) // PAGE)

    def work(self) -> None:
        """Bring, then touch."""
        self._parts = self._bring(self._files, self._slots)
        self._slots[::PAGE].tobytes()

    def brought(self) -> int:
        """Return the size of the slots."""
        return len(self._slots)

    def check(self, *, thorough: bool) -> None:
        """Compare the bytes."""
        self._files.prove(list(self._parts), thorough=thorough)


class Entries(Task, Generic[Found]):
    """The entries of a directory or a tree.

    ``tally`` counts, outside the clock, what ``bring`` found, and adds up the sizes if it has any.
    """

    def __init__(
        self,
        name: str,
        contender: Contender,
        listing: Listing,
        bring: Callable[[], Found],
        tally: Callable[[Found], tuple[int, int | None]],
    ) -> None:
        super().__init__(name, contender)
        self._listing, self._bring, self._tally = listing, bring, tally

    def prepare(self) -> None:
        """Forget what was found before."""
        self._found: Found | None = None

    def work(self) -> None:
        """List."""
        self._found = self._bring()

    def brought(self) -> int:
        """Return the size of the entries."""
        return deep_size(self._found)

    def check(self, *, thorough: bool) -> None:  # noqa: ARG002
        """Compare count and sizes."""
        if self._found is None:
            raise WrongBytesError("nothing was found")
        self._listing.prove(*self._tally(self._found))
