"""Files put in place: under a temporary name until they are whole, then under their own.

So nobody ever sees half a file under its name.  Names are relative to an open directory: whatever
happens to the path meanwhile, what is made stays inside.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_DIRECTORY = os.O_DIRECTORY | os.O_CLOEXEC


def open_directory(path: str) -> int:
    """Open a directory to work in."""
    return os.open(path, _DIRECTORY | os.O_PATH)


def open_below(directory: int, names: Sequence[str], *, readable: bool = False) -> int:
    """Open the directory that a path of names leads to, where none of them is a symlink."""
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


@contextmanager
def new_file(directory: int, name: str, permissions: int) -> Iterator[int]:
    """Give a new file to write; it becomes ``name`` when the block ends well, and goes otherwise.

    Its permissions are ``permissions`` as far as the umask allows.
    """
    temporary = _temporary_name()
    try:
        fileno = os.open(temporary, _CREATE, permissions, dir_fd=directory)
        try:
            yield fileno
        finally:
            os.close(fileno)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        _remove(temporary, directory)
        raise


def new_symlink(directory: int, name: str, target: str) -> None:
    """Make a symlink in place of whatever file has its name."""
    temporary = _temporary_name()
    try:
        os.symlink(target, temporary, dir_fd=directory)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        _remove(temporary, directory)
        raise


def _temporary_name() -> str:
    # Nothing of the target's: that may be as long as a name can be.
    return f".vuserctl-{os.urandom(8).hex()}.part"


def _remove(name: str, directory: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
