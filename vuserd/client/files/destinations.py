"""Where a whole file is downloaded to: a descriptor, a path, or an object that is like a file."""

import errno
import io
import os
import stat
from contextlib import suppress
from functools import partial
from typing import Final, TypeAlias, cast

from vuserd.client.calls import RemotePath
from vuserd.client.core.conversation import Talk
from vuserd.client.core.procedure import Do, Procedure
from vuserd.client.files.room import set_aside
from vuserd.client.files.sinks import (
    FileSink,
    ObjectSink,
    SeekableObject,
    Sink,
    StreamSink,
    WritableObject,
    write_all,
)
from vuserd.client.files.wholefile import Options, take
from vuserd.client.records import Stat

#: A descriptor, the path of a file to make or to replace, or an object to write to.
Destination: TypeAlias = (
    "int | str | bytes | os.PathLike[str] | os.PathLike[bytes] | WritableObject"
)
#: Bytes of a name, so that one made of it is not too long.
_NAME_MAX: Final = 200
#: Their descriptor is that of their bytes; others (gzip's) have that of what they make of them.
_PLAIN: Final = (io.FileIO, io.BufferedWriter, io.BufferedRandom)


def download(
    talk: Talk, export: str, path: RemotePath, to: Destination, options: Options
) -> Procedure[Stat]:
    """Write a file, whole, to a destination; return its attributes.

    Raises:
        OSError: nothing can be written there.
        TypeError: it takes text.

    """
    if isinstance(to, int):
        return take(talk, export, path, FileSink(to), options)
    if isinstance(to, str | bytes | os.PathLike):
        return _to_path(talk, export, path, to, options)
    return take(talk, export, path, _sink_of(to), options)


def _sink_of(file: WritableObject) -> Sink:
    if isinstance(cast("object", file), io.TextIOBase):
        raise TypeError("the file is open for text; open it with mode 'wb'")
    if isinstance(file, _PLAIN) and stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.flush()
        return _PlainSink(file)
    seekable = cast("SeekableObject", file)
    if _can_be_rewritten(seekable):
        return ObjectSink(seekable)
    return StreamSink(partial(write_all, file), blocks=True)


def _can_be_rewritten(file: SeekableObject) -> bool:
    """Try it, and leave what is there as it is; where it cannot be, go to its beginning if any."""
    with suppress(AttributeError, OSError):
        file.seek(0)
        with suppress(AttributeError, OSError, ValueError):  # gzip knows no end to seek from
            file.truncate(file.seek(0, os.SEEK_END))
            return True
        file.seek(0)
    return False


class _PlainSink(FileSink):
    """A file's own object: written to by its descriptor, and left at the end of what there is."""

    def __init__(self, file: io.FileIO | io.BufferedWriter | io.BufferedRandom) -> None:
        super().__init__(file.fileno())
        self._file = file

    def end(self, size: int) -> None:
        super().end(size)
        self._file.seek(size)


class _NewFileSink(FileSink):
    """A file that replaces no other one."""

    def __init__(self, fileno: int) -> None:
        super().__init__(fileno)
        #: Of the file that is to be written, until that begins.
        self._attributes: Stat | None = None

    def begin(self, attributes: Stat, *, has_holes_told: bool) -> None:
        super().begin(attributes, has_holes_told=has_holes_told)
        self._attributes = attributes

    def write(self, payload: memoryview, offset: int) -> None:
        attributes, self._attributes = self._attributes, None
        if attributes is not None:  # here, where it may take its time
            set_aside(self._fileno, attributes)
        super().write(payload, offset)


def _to_path(
    talk: Talk,
    export: str,
    path: RemotePath,
    to: "str | bytes | os.PathLike[str] | os.PathLike[bytes]",
    options: Options,
) -> Procedure[Stat]:
    """Write a file beside the one of that name, and give it the name once it is whole."""
    local = os.fsdecode(to)
    made: list[tuple[str, str, int, bool]] = []  # here even if whoever waits for it is cancelled
    try:
        try:
            yield Do(lambda: made.append(_make_beside(local)))
            [(final, temporary, fileno, is_new)] = made
            sink = _NewFileSink(fileno) if is_new else FileSink(fileno)
            found = yield from take(talk, export, path, sink, options)
        finally:
            for _, _, fileno, _ in made:
                os.close(fileno)
        yield Do(partial(os.replace, temporary, final))
    except BaseException:
        for _, temporary, _, _ in made:
            with suppress(OSError):
                os.unlink(temporary)
        raise
    return found


def _make_beside(local: str) -> tuple[str, str, int, bool]:
    """Make a file to write to; return the path that it will have, the one it has, and it, open.

    Return, too, whether no file has the path that it will have.

    Raises:
        OSError: it cannot be made, or what is there is no regular file.

    """
    folder, name = os.path.split(local)
    is_link = os.path.islink(local)
    mode = None
    with suppress(FileNotFoundError):  # the kernel says whether a link may be followed
        mode = os.stat(local).st_mode
    # A symlink stays one; that comes later is not followed.
    final = os.path.realpath(local) if is_link else os.path.join(os.path.realpath(folder), name)
    if mode is not None and not stat.S_ISREG(mode):
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, "it is no regular file that a download could replace", local)
    folder, name = os.path.split(final)
    short = os.fsdecode(os.fsencode(name)[:_NAME_MAX])
    temporary = os.path.join(folder, f".{short}.{os.urandom(4).hex()}")
    try:
        fileno = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        error.filename = local  # the caller's name, and not that of the moment
        raise
    if mode is not None:
        with suppress(OSError):  # another user's file system may refuse
            # New content gets no set-user-ID bits, as after a write by any user but root.
            os.fchmod(fileno, mode & 0o1777)
    return final, temporary, fileno, mode is None
