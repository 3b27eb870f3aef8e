"""Put files in place atomically: write under a temporary name, then rename.

So no other process ever sees half a file under its final name.  Names are relative to an open
directory: whatever happens to the path meanwhile, the new file stays inside.

A file that replaces another gets its owner, permissions and extended attributes.  Where that is not
allowed, or the directory takes no new file (it is not writable, or the old file is a mount point),
the content is written into the old file, as cp does, if there is room for it.
"""

import errno
import itertools
import os
import stat as modes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from vuserd.client.files.room import set_aside
from vuserd.client.files.sinks import is_sparse, write_at
from vuserd.client.records import Stat
from vuserd.ctl.signals import before_a_signal_ends

#: Readable as well, since it may have to be copied.
_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_PIECE: Final = 1 << 20
_DIRECTORY: Final = os.O_DIRECTORY | os.O_CLOEXEC
#: Attributes that depend on a file's content, and are not copied from another file.
_OF_CONTENT: Final = frozenset({"security.capability", "security.ima", "security.evm"})

#: Bytes that are looked at for zeros at once: what file systems make holes of.
_BLOCK: Final = 4096
_ZEROS: Final = bytes(_BLOCK)
#: Bytes of one of a file's blocks, as ``stat`` counts them.
_SECTOR: Final = 512
#: Temporary names of this process, where one after the other is used.
_PREFIX: Final = f".vuserctl-{os.urandom(8).hex()}-"
_NUMBERS: Final = itertools.count()

#: Temporary files and links, by the descriptor of their directory: for :func:`remove_unfinished`.
_unfinished: Final[set[tuple[int, str]]] = set()


def open_directory(path: str) -> int:
    """Open a directory to work in."""
    return os.open(path, _DIRECTORY | os.O_PATH)


def open_below(directory: int, names: Sequence[str], *, readable: bool = False) -> int:
    """Open the directory that a path of names leads to; OSError if one of them is a symlink."""
    if readable and not names:
        return os.open(".", _DIRECTORY | os.O_RDONLY, dir_fd=directory)
    found = os.dup(directory)
    for depth, name in enumerate(names, 1):
        mode = os.O_RDONLY if readable and depth == len(names) else os.O_PATH
        above = found
        try:
            found = os.open(name, _DIRECTORY | os.O_NOFOLLOW | mode, dir_fd=above)
        finally:
            os.close(above)
    return found


def make_directory(name: str, permissions: int, directory: int | None = None) -> None:
    """Make a directory that its owner may work in, whatever the umask.

    A name is relative to ``directory``, where that is given.
    """
    umask = os.umask(0o077)
    os.umask(umask & 0o077)
    try:
        os.mkdir(name, permissions | 0o700, dir_fd=directory)
    finally:
        os.umask(umask)


@contextmanager
def new_file(
    directory: int, name: str, permissions: int, source: Stat | None = None
) -> Iterator[int]:
    """Yield a file to write; it becomes ``name`` if the block succeeds, else it is removed.

    Its permissions are ``permissions`` less the umask, or those of the regular file that it
    replaces. A file that cannot be replaced is written into; OSError if that is ``source`` itself.
    ``source`` is what is to be written, where that is known: a large new file has its blocks first.
    """
    there = _regular_file(directory, name)
    with _temporary_name(directory) as temporary:
        try:
            fileno = _create(directory, temporary, permissions, name, there)
        except OSError as error:
            if there is None or not _may_empty(error, source):
                raise
            fileno = -1
        if fileno >= 0:
            try:
                if there is None and source is not None:
                    set_aside(fileno, source)
                yield fileno
                _put(fileno, directory, temporary, name, there)
            finally:
                os.close(fileno)
            return
    fileno = open_existing(name, source, directory=directory)
    try:
        yield fileno
    finally:
        os.close(fileno)


def open_existing(
    path: str, source: Stat | None, *, directory: int | None = None, size: int = 0
) -> int:
    """Open a regular file and empty it, to write into it; OSError if it is ``source``.

    ENOSPC, and it stays as it is, where even with its own blocks too little is free for ``source``,
    or for ``size`` bytes.
    A symlink is followed unless the path is relative to ``directory``.
    """
    follow = os.O_NOFOLLOW if directory is not None else 0
    fileno = os.open(
        path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | follow, dir_fd=directory
    )  # without O_NONBLOCK, a pipe that took its place would wait for a reader
    try:
        found = os.fstat(fileno)
        if not modes.S_ISREG(found.st_mode):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        if source is not None and _is_source(found, source):
            raise OSError(errno.EINVAL, "it is the file that is to be fetched", path)
        if source is not None:
            size = min(source.size, source.blocks * _SECTOR)
        _require_room(fileno, found, size)
        if found.st_mode & (modes.S_ISUID | modes.S_ISGID):
            with suppress(PermissionError):  # the first write clears these bits as well
                os.fchmod(fileno, found.st_mode & 0o1777)
        os.ftruncate(fileno, 0)
    except BaseException:
        os.close(fileno)
        raise
    return fileno


def put_file(
    directory: int,
    name: str,
    stat: Stat,
    content: memoryview,
    set_permissions: Callable[[int, Stat], None],
    *,
    is_new: bool,
) -> None:
    """Put a file with these bytes in place, with its times, as :func:`new_file` does.

    ``is_new`` says that the directory was made just now, so that no file is replaced.
    """
    if not is_new and _is_there(directory, name):
        with new_file(directory, name, stat.mode & 0o777, stat) as fileno:
            _fill(fileno, stat, content, set_permissions)
        return
    temporary = f"{_PREFIX}{next(_NUMBERS):x}.part"
    unfinished = (directory, temporary)
    _unfinished.add(unfinished)
    try:
        fileno = os.open(temporary, _CREATE, stat.mode & 0o777, dir_fd=directory)
        try:
            _fill(fileno, stat, content, set_permissions)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        finally:
            os.close(fileno)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    finally:
        _unfinished.discard(unfinished)


def _fill(
    fileno: int, stat: Stat, content: memoryview, set_permissions: Callable[[int, Stat], None]
) -> None:
    if is_sparse(stat):
        os.ftruncate(fileno, len(content))
        for at in range(0, len(content), _BLOCK):
            block = content[at : at + _BLOCK]
            if block != _ZEROS[: len(block)]:
                write_at(fileno, block, at)
    elif (written := os.pwrite(fileno, content, 0)) < len(content):
        write_at(fileno, content[written:], written)
    set_permissions(fileno, stat)
    set_times(fileno, stat.atime_ns, stat.mtime_ns)


def new_symlink(
    directory: int, name: str, target: str, times: tuple[int, int] | None = None
) -> None:
    """Make a symlink, replacing any file that has its name.

    ``times`` are those of access and modification, in nanoseconds, where they are to be others
    than now.
    """
    with _temporary_name(directory) as temporary:
        os.symlink(target, temporary, dir_fd=directory)
        if times is not None:
            os.utime(temporary, ns=times, dir_fd=directory, follow_symlinks=False)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)


def new_link(source: int, first: str, directory: int, name: str, identity: tuple[int, int]) -> bool:
    """Give a file another name; return False where that is not to be, or cannot be.

    It must still be the file of that device and inode number. A file that has the name already is
    replaced only if its owner, permissions and attributes are the same.
    """
    there = _regular_file(directory, name)
    try:
        with _temporary_name(directory) as temporary:
            os.link(
                first, temporary, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False
            )
            made = os.stat(temporary, dir_fd=directory, follow_symlinks=False)
            if (made.st_dev, made.st_ino) != identity:
                return False
            if there is not None and not _are_alike(directory, name, there, made):
                return False
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:  # no links here, or too many
        return False
    return True


def _are_alike(directory: int, name: str, there: os.stat_result, made: os.stat_result) -> bool:
    """Return whether a file has nothing of its own that a link in its place would not have."""
    if (there.st_uid, there.st_gid, there.st_mode) != (made.st_uid, made.st_gid, made.st_mode):
        return False
    with suppress(OSError):
        return not os.listxattr(f"/proc/self/fd/{directory}/{name}", follow_symlinks=False)
    return True


@contextmanager
def probe(directory: int) -> Iterator[str]:
    """Yield the name of an empty file that exists in a directory for the block's time."""
    with _temporary_name(directory) as temporary:
        os.close(os.open(temporary, _CREATE, 0o600, dir_fd=directory))
        yield temporary


def set_times(fileno: int, atime_ns: int, mtime_ns: int) -> None:
    """Set a file's times if this user owns it: another's may be writable, but not its times."""
    try:  # noqa: SIM105 - suppress() costs as much as the call
        os.utime(fileno, ns=(atime_ns, mtime_ns))
    except PermissionError:
        pass


def remove_unfinished() -> None:
    """Remove all temporary files now, as the process is about to end."""
    for directory, name in list(_unfinished):
        with suppress(OSError):
            os.unlink(name, dir_fd=directory)


before_a_signal_ends(remove_unfinished)


@contextmanager
def _temporary_name(directory: int) -> Iterator[str]:
    """Yield a temporary name; a file that still has it after the block is removed."""
    # It has no part of the target's name, which may be as long as a name can be.
    name = f".vuserctl-{os.urandom(8).hex()}.part"
    unfinished = (directory, name)
    try:
        _unfinished.add(unfinished)
        yield name
    finally:
        with suppress(OSError):
            os.unlink(name, dir_fd=directory)
        _unfinished.discard(unfinished)


def _regular_file(directory: int, name: str) -> os.stat_result | None:
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found if modes.S_ISREG(found.st_mode) else None


def _is_there(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _create(
    directory: int, temporary: str, permissions: int, name: str, there: os.stat_result | None
) -> int:
    """Create a file with the owner and attributes of the one that is there; OSError if refused."""
    if there is not None:
        permissions = 0o600  # until it has its owner
    fileno = os.open(temporary, _CREATE, permissions, dir_fd=directory)
    try:
        if there is not None:
            made = os.fstat(fileno)
            if (made.st_uid, made.st_gid) != (there.st_uid, there.st_gid):
                os.fchown(fileno, there.st_uid, there.st_gid)
            # New content gets no set-user-ID bits, as after a write by any user but root.
            os.fchmod(fileno, there.st_mode & 0o1777)
            _copy_attributes(f"/proc/self/fd/{directory}/{name}", fileno)
    except BaseException:
        os.close(fileno)
        raise
    return fileno


def _copy_attributes(path: str, fileno: int) -> None:
    """Copy extended attributes: access control lists, labels and those of users."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:  # the file system has none, or there is no /proc
        return
    for name in names:
        if name in _OF_CONTENT:
            continue
        value = os.getxattr(path, name, follow_symlinks=False)
        with suppress(OSError):  # a new file gets its directory's label, which is often the same
            if os.getxattr(fileno, name) == value:
                continue
        os.setxattr(fileno, name, value)


def _put(
    fileno: int, directory: int, temporary: str, name: str, there: os.stat_result | None
) -> None:
    """Rename a temporary file, or copy its content into a file that cannot be replaced."""
    try:
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:  # EBUSY: a mount point; EPERM: another user's, in a sticky directory
        if there is None:
            raise
        size = os.fstat(fileno).st_blocks * _SECTOR
        existing = open_existing(name, None, directory=directory, size=size)
        try:
            _copy(fileno, existing)
        finally:
            os.close(existing)


def _copy(fileno: int, existing: int) -> None:
    """Copy a file's content and times into another, empty file; holes stay holes."""
    found = os.fstat(fileno)
    offset, size = 0, found.st_size
    os.ftruncate(existing, size)
    while offset < size:
        try:
            offset = os.lseek(fileno, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # a hole up to the end
        end = os.lseek(fileno, offset, os.SEEK_HOLE)
        while offset < end:
            piece = os.pread(fileno, min(_PIECE, end - offset), offset)
            write_at(existing, memoryview(piece), offset)
            offset += len(piece)
    set_times(existing, found.st_atime_ns, found.st_mtime_ns)


def _may_empty(error: OSError, source: Stat | None) -> bool:
    """Return whether a file may be emptied that a new one, for this error, cannot replace."""
    if error.errno == errno.EDQUOT:  # nothing tells which quota it is: the content may have no room
        return False
    return error.errno != errno.ENOSPC or source is not None


def _require_room(fileno: int, found: os.stat_result, size: int) -> None:
    """Raise OSError unless a file that is emptied would have room for ``size`` bytes."""
    system = os.fstatvfs(fileno)
    free = system.f_bfree if os.geteuid() == 0 else system.f_bavail
    # Some file systems, such as ramfs, do not say how large they are.
    if system.f_blocks and size > free * system.f_frsize + found.st_blocks * _SECTOR:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_source(found: os.stat_result, source: Stat) -> bool:
    """Return whether a local file is the one that the daemon's ``stat`` described."""
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns) == (
        source.ino,
        source.size,
        source.mtime_ns,
        source.ctime_ns,
    )
