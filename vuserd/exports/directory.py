"""Which directory an export's path leads to, looked at again as calls come.

An export is a path. Another directory may stand there after a rename, a removal, a switched symlink
or a mount, and a backend that was started before goes on with the one that it has opened.
"""

import contextlib
import ctypes
import errno
import os
import stat
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

import trio

from vuserd.errors import UnsafePath, os_reason, printable
from vuserd.tasks.threads import in_thread
from vuserd.trust.bounded_calls import status_of
from vuserd.trust.path import own_trust, route

#: Seconds for which a look is as good as new; a crowd of calls shares one.
_FRESH: Final = 0.1
#: Seconds after which a call waits for the next look; before, the look goes on beside it.
_STALE: Final = 0.5
#: Seconds for a look. A file system that is dead answers none: its files are served as they are.
_PATIENCE: Final = 1.0

#: What else stands at a path, or nothing, or nothing that this user can reach.
_GONE: Final = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.EACCES,
        errno.ESTALE,
        errno.ENAMETOOLONG,
    }
)

#: linux/stat.h, linux/fcntl.h: the offsets are those of struct statx.
_AT_EMPTY_PATH: Final = 0x1000
_STATX_SIZE: Final = 256
_STATX_INO: Final = 0x100
_STATX_MNT_ID: Final = 0x1000
_STATX_MNT_ID_UNIQUE: Final = 0x4000
_MASK: Final = struct.Struct("=I")
_INODE: Final = (struct.Struct("=Q"), 32)
_DEVICE: Final = (struct.Struct("=II"), 136)
_MOUNT: Final = (struct.Struct("=Q"), 144)


class Standing(NamedTuple):
    """A directory on a mount. No other has the same while a backend has this one open.

    An inode number alone is used again as soon as its directory is gone, and a device number as
    soon as its file system is unmounted.
    """

    #: The mount's id: never used again since Linux 6.8. Before, the file system's id helps.
    mount: int
    filesystem: int
    device: int
    inode: int

    @property
    def of_its_file_system(self) -> tuple[int, int]:
        """What all directories of one file system have in common while it is mounted."""
        return self.filesystem, self.device


class Sight(NamedTuple):
    """What a look at a path showed."""

    #: None where there is no directory.
    standing: Standing | None
    #: Why there is none, for people: printable.
    reason: str
    #: The path without symbolic links.
    resolved: str


def look_at(path: str) -> Sight:
    """Look at what stands at a path. This may wait for a file system, and so belongs in a thread.

    A path that another user leads to what is not that user's own leads nowhere: see
    :mod:`vuserd.trust.path`.

    Raises:
        OSError: the file system cannot tell.

    """
    try:
        with route(path, own_trust()) as found:
            if not stat.S_ISDIR(found.status.st_mode):
                return Sight(None, printable(f"{path} is not a directory"), path)
            return Sight(_identify(found.descriptor), "", found.resolved)
    except UnsafePath as unsafe:
        return Sight(None, str(unsafe), path)
    except OSError as error:
        if error.errno in _GONE:
            return Sight(None, printable(f"{path}: {os_reason(error)}"), path)
        raise


def _identify(directory: int) -> Standing:
    """Return what distinguishes an open directory from all others."""
    with contextlib.suppress(NotImplementedError):
        return _identify_by_statx(directory)
    status = status_of(directory)
    # Unlike fstatvfs(), this does not go on for ever where it is answered with EINTR.
    return Standing(0, os.statvfs(directory).f_fsid, status.st_dev, status.st_ino)


def _identify_by_statx(directory: int) -> Standing:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "statx"):
        raise NotImplementedError
    answer = ctypes.create_string_buffer(_STATX_SIZE)
    wanted = _STATX_INO | _STATX_MNT_ID | _STATX_MNT_ID_UNIQUE
    if libc.statx(directory, b"", _AT_EMPTY_PATH, wanted, answer):
        number = ctypes.get_errno()
        if number in (errno.ENOSYS, errno.EPERM):  # a container's filter refuses it so
            raise NotImplementedError
        raise OSError(number, os.strerror(number))
    (known,) = _MASK.unpack_from(answer)
    if not known & (_STATX_MNT_ID | _STATX_MNT_ID_UNIQUE):
        raise NotImplementedError
    (inode,), (major, minor), (mount,) = (
        layout.unpack_from(answer, offset) for layout, offset in (_INODE, _DEVICE, _MOUNT)
    )
    filesystem = 0 if known & _STATX_MNT_ID_UNIQUE else os.statvfs(directory).f_fsid
    return Standing(mount, filesystem, os.makedev(major, minor), inode)


class Lookout:
    """Looks at a path when calls come and the last look is old; never by itself.

    Args:
        path: the export's directory.
        tell: called with what each look showed that was begun by :meth:`begin`.

    """

    def __init__(self, path: str, tell: Callable[[Sight], None]) -> None:
        self._path = path
        self._tell = tell
        #: When the last look began that has ended.
        self._looked = -float("inf")
        #: The look in progress: when it began, and its end.
        self._began = -float("inf")
        self._ended: trio.Event | None = None
        #: Of threads that wait for this path's file system: a look for a start, and one for calls.
        self.limiter = trio.CapacityLimiter(2)
        self._scope = trio.CancelScope()  # of the look in progress
        self._stopped = False

    @property
    def is_due(self) -> bool:
        """Whether the last look is not as good as new any more."""
        return trio.current_time() - self._looked >= _FRESH

    @property
    def is_stale(self) -> bool:
        """Whether the last look is so old that a call has to wait for the next."""
        return trio.current_time() - self._looked >= _STALE

    def begin(self, nursery: trio.Nursery) -> None:
        """Begin a look, unless one is in progress."""
        if self._ended is None and not self._stopped:
            self._ended = trio.Event()
            self._began, self._scope = trio.current_time(), trio.CancelScope()
            nursery.start_soon(self._look)

    async def wait(self) -> None:
        """Wait for the look in progress, as long as one may take."""
        if self._ended is not None:
            with trio.move_on_at(self._began + _PATIENCE):
                await self._ended.wait()

    def stop(self) -> None:
        """Stop looking."""
        self._stopped = True
        self._scope.cancel()

    async def see(self, patience: float = _PATIENCE) -> Sight | None:
        """Look now; None where the file system cannot tell, or not in ``patience`` seconds."""
        began = trio.current_time()
        with trio.move_on_after(patience), contextlib.suppress(OSError):
            sight = await self._in_thread()
            self._looked = max(self._looked, began)
            return sight
        return None

    async def _look(self) -> None:
        assert self._ended is not None
        try:
            with self._scope, contextlib.suppress(OSError):
                self._tell(await self._in_thread())
        finally:
            self._looked = max(self._looked, self._began)
            self._ended.set()
            self._ended = None

    async def _in_thread(self) -> Sight:
        """Look in a thread, which is left to itself where it comes to no end.

        Raises:
            OSError: it cannot be seen, or there is no thread to be had.

        """
        return await in_thread(look_at, self._path, abandon_on_cancel=True, limiter=self.limiter)
