"""Shut a program in by Landlock, without a namespace: run as a script, it becomes that program.

A user's own backend in a user namespace sees the owners of most files as the overflow id, since the
namespace maps its user alone. Landlock (landlock(7)) needs no namespace and no privilege: below the
exported directory files can be read, elsewhere what the program needs to run, and nothing can be
written. It does not cover what concerns names and attributes alone: a program that was broken into
can look whether a file exists, and change the mode of files that are its user's.

Without a directory it takes only this from the program: to trace another one that is not shut in
together with it, to read its memory or to take its descriptors, whatever user they have in common
(Linux 5.13), and to send it signals (6.12).

Run by the interpreter alone (-I -S), it imports as little as can be: typing would take longer than
all else.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Final

#: The first version that keeps files from being truncated: Linux 6.2.
LEAST_VERSION: Final = 3

#: The first version there was: Linux 5.13.
_FIRST_VERSION: Final = 1

#: asm-generic/unistd.h; the same on all architectures.
_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
#: linux/landlock.h
_ASK_VERSION: Final = 1
_PATH_BENEATH: Final = 1
_EXECUTE: Final = 1 << 0
_WRITE_FILE: Final = 1 << 1
_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_MAKE_BLOCK: Final = 1 << 11
_RULE: Final = struct.Struct("=Qi")
#: Rights concerning files by version: those of 1, REFER of 2, TRUNCATE of 3, IOCTL_DEV of 5.
_RIGHTS: Final = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
#: Bind and connect TCP, since version 4; abstract sockets and signals of others, since version 6.
_NETWORK: Final = (4, 3)
_SCOPES: Final = (6, 3)
#: linux/prctl.h
_PR_SET_NO_NEW_PRIVS: Final = 38

_LOOK: Final = _READ_FILE | _READ_DIR
_RUN: Final = _LOOK | _EXECUTE
#: What programs are made of: of the system's, which are for everybody to read.
_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store")
_LOADER: Final = ("/etc/ld.so.cache", "/etc/ld.so.preload", "/dev/urandom")
_OWN: Final = "/proc"  #: of others' processes what Landlock lets no one trace is not shown


def version() -> int:
    """Return the kernel's version of Landlock; 0 where there is none, or none for this process."""
    found = _syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_ASK_VERSION))
    return max(found, 0)


def is_available() -> bool:
    """Tell whether a program can be shut in here."""
    return os.access(sys.executable, os.X_OK) and version() >= LEAST_VERSION


def can_set_apart() -> bool:
    """Tell whether a program can be kept from all others here, and they from it."""
    return os.access(sys.executable, os.X_OK) and version() >= _FIRST_VERSION


def command(arguments: Sequence[str], directory: str = "") -> list[str]:
    """Return the command line that runs another one, shut in with this directory.

    Without one it is only set apart from others.
    """
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), directory, *arguments]


def restrict(directory: str, program: str) -> None:
    """Shut this thread, and what it runs from now on, in.

    Raises:
        OSError: the kernel refuses, or the directory is not there.

    """
    rights, attributes = _handled(version())
    ruleset = _new_ruleset(attributes)
    _allow(ruleset, directory, _LOOK & rights)
    for path, allowed in _needed(program):
        try:
            _allow(ruleset, path, allowed & rights)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EACCES):
                raise
    _enforce(ruleset)


def set_apart() -> None:
    """Keep this thread, and what it runs from now on, from all that is shut in apart from it.

    Something has to be withheld for that: to make block devices, which no reader does.

    Raises:
        OSError: the kernel refuses.

    """
    since, scopes = _SCOPES
    attributes = struct.pack("=Q", _MAKE_BLOCK)
    if since <= version():
        attributes += struct.pack("=QQ", 0, scopes)
    _enforce(_new_ruleset(attributes))


def _new_ruleset(attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    size = ctypes.c_size_t(len(attributes))
    return _must(_syscall(_CREATE_RULESET, buffer, size, ctypes.c_uint32(0)))


def _enforce(ruleset: int) -> None:
    _must(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _must(_syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)))
    os.close(ruleset)


def _handled(kernel: int) -> tuple[int, bytes]:
    """Return the rights that are withheld, and struct landlock_ruleset_attr that says so."""
    rights = sum(bits for since, bits in _RIGHTS.items() if since <= kernel)
    attributes = struct.pack("=Q", rights)
    for since, bits in (_NETWORK, _SCOPES):
        if since <= kernel:
            attributes += struct.pack("=Q", bits)
    return rights, attributes


def _needed(program: str) -> Iterator[tuple[str, int]]:
    """Give what a program needs to run, and with which rights."""
    yield from ((path, _RUN) for path in _SYSTEM)
    yield from ((path, _READ_FILE) for path in _LOADER)
    yield "/dev/null", _READ_FILE | _WRITE_FILE
    yield _OWN, _LOOK
    real = os.path.realpath(program)
    yield real, _RUN
    # What is beside it may belong to it; a home directory does not.
    folder = os.path.dirname(real)
    home = os.path.realpath(os.path.expanduser("~"))
    if os.path.commonpath([home, folder]) != folder:
        yield folder, _RUN


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(f"/proc/self/fd/{descriptor}"):
            rights &= ~_READ_DIR  # of a file it is an error
        rule = ctypes.create_string_buffer(_RULE.pack(rights, descriptor), _RULE.size)
        flags = ctypes.c_uint32(0)
        _must(_syscall(_ADD_RULE, ctypes.c_int(ruleset), _PATH_BENEATH, rule, flags))
    finally:
        os.close(descriptor)


def _syscall(number: int, *arguments: object) -> int:
    result: int = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments)
    return result


def _must(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def main(arguments: Sequence[str]) -> None:
    """Become the program ``arguments[1:]``, shut in with the directory ``arguments[0]``.

    Where that is empty, it is only set apart.
    """
    directory, program, *_ = arguments
    try:
        if directory:
            restrict(directory, program)
        else:
            set_apart()
        os.execv(program, list(arguments[1:]))
    except OSError as error:
        sys.exit(f"Landlock: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
