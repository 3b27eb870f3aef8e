"""Make the standard streams safe to use: closed, full, non-blocking or without a reader.

Python sets ``sys.stdout`` to None where descriptor 1 is closed, gives that number to the next file,
and exits with status 120 where the last flush fails.  A program that begins with :func:`prepare`
is safe from all of that.
"""

import codecs
import errno
import fcntl
import io
import os
import select
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: What errors call descriptor 1.
STANDARD_OUTPUT: Final = "standard output"
#: The codec error handler that writes a name's own bytes, whatever the encoding.
NAME_ERRORS: Final = "vuserd-name"

#: Bytes that a writable pipe, terminal or socket takes without waiting.
_PIECE: Final = 4096


class StandardOutput(io.FileIO):
    """Standard output; an OSError of a write has ``STANDARD_OUTPUT`` as its file name."""

    def __init__(self) -> None:
        super().__init__(1, "wb", closefd=False)
        #: Once set, everything still to be written is dropped.
        self.given_up = False

    def write(self, payload: "ReadableBuffer", /) -> int:
        """Write what fits; wait where nothing does, since the descriptor may be non-blocking."""
        try:
            while not self.given_up:
                try:
                    return os.write(1, payload)
                except BlockingIOError:
                    _writable(None)
        except OSError as error:
            error.filename = STANDARD_OUTPUT
            raise
        return memoryview(payload).nbytes


class StandardError(io.FileIO):
    """Standard error, which drops what it cannot write: there is no other place to report it.

    Args:
        waits: whether to wait for a reader that takes nothing. A daemon does not: it counts the
            lost writes, and reports the count when the reader takes something again.

    """

    def __init__(self, *, waits: bool) -> None:
        super().__init__(2, "wb", closefd=False)
        self._waits = waits
        self._lost = 0

    def write(self, payload: "ReadableBuffer", /) -> int:
        """Write all of it, or drop the rest; return the number of bytes that were passed."""
        view = memoryview(payload).cast("B")
        with suppress(OSError):
            if self._lost and self._write_all(memoryview(b"(%d lost)\n" % self._lost)):
                self._lost = 0
            if not self._write_all(view):
                self._lost += 1
        return len(view)

    def _write_all(self, view: memoryview) -> bool:
        while view:
            if not self._waits and not _writable(0, 2):
                return False
            try:
                view = view[os.write(2, view[:_PIECE]) :]
            except BlockingIOError:
                if not _writable(None if self._waits else 0, 2):
                    return False
        return True


def _writable(milliseconds: int | None, descriptor: int = 1) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(milliseconds))


def prepare(*, errors_wait: bool = True) -> None:
    """Replace Python's own streams, and those that are closed.

    A closed one still cannot be read or written, but its number is taken. Streams that another part
    of the program has put in place (a test's, say) stay.
    """
    for number in range(3):
        _occupy(number)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - it stays
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(StandardOutput(), sys.__stdout__, "backslashreplace")
    if sys.stderr is sys.__stderr__:
        raw = StandardError(waits=errors_wait)
        sys.stderr = _text(raw, sys.__stderr__, "backslashreplace", lines=True)


def _occupy(number: int) -> None:
    """Fill the number of a closed stream, so that no other file gets it.

    It becomes the wrong end of a pipe: writing (reading, for standard input) fails with EBADF, as
    it would have. Unlike /dev/null, a pipe needs no /dev.
    """
    try:
        os.fstat(number)
    except OSError:
        ends = os.pipe()
        kept = ends[1] if number == 0 else ends[0]
        if kept != number:
            os.dup2(kept, number)
        for end in ends:
            if end != number:
                os.close(end)


def _text(raw: io.FileIO, before: TextIO | None, errors: str, *, lines: bool = False) -> TextIO:
    encoding = sys.getfilesystemencoding() if before is None else before.encoding
    lines = lines or raw.isatty()
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, errors, line_buffering=lines, write_through=lines
    )


def require_output() -> None:
    """Raise OSError if standard output is closed or read-only, before anything is written."""
    flags = fcntl.fcntl(1, fcntl.F_GETFL)
    if flags & os.O_ACCMODE == os.O_RDONLY or flags & os.O_PATH:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), STANDARD_OUTPUT)


def finish_output() -> OSError | None:
    """Flush standard output; return the error if that fails.

    What cannot be written is dropped, since the interpreter would try to write it again.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        if isinstance(sys.stdout, io.TextIOWrapper):
            raw = getattr(sys.stdout.buffer, "raw", None)
            if isinstance(raw, StandardOutput):
                raw.given_up = True
        return error
    return None


def name_as_bytes(error: UnicodeError) -> tuple[bytes, int]:
    """Encode characters that an encoding lacks: the byte that a surrogate stands for, or UTF-8."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    try:
        return text.encode("utf-8", "surrogateescape"), error.end
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return text.encode("utf-8", "backslashreplace"), error.end


codecs.register_error(NAME_ERRORS, name_as_bytes)
