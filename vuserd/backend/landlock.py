"""Confine a program by Landlock, without a namespace; run as a script, this becomes that program.

A user's own backend in a user namespace sees the owners of most files as the overflow id, since the
namespace maps its user alone. Landlock (landlock(7)) needs no namespace and no privilege. The
program can read what is below the exported directory and what it needs to run, and can write
nothing. Landlock does not cover names and attributes: a program that was broken into can find out
whether a file exists, and change the mode of files that its user owns.

Without a directory, the program loses only this: to trace a process that is not confined together
with it, to read its memory or take its descriptors, even as the same user (Linux 5.13), and to send
it signals (6.12).

Run by the bare interpreter (-I -S), this imports as little as possible: typing alone would take
longer than all the rest.
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

#: The first version that can deny truncating files: Linux 6.2.
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
#: Rights over files by version: those of 1, REFER of 2, TRUNCATE of 3, IOCTL_DEV of 5.
_RIGHTS: Final = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
#: Bind and connect TCP, since version 4; abstract sockets and signals of others, since version 6.
_NETWORK: Final = (4, 3)
_SCOPES: Final = (6, 3)
#: linux/prctl.h
_PR_SET_NO_NEW_PRIVS: Final = 38

_LOOK: Final = _READ_FILE | _READ_DIR
_RUN: Final = _LOOK | _EXECUTE
#: Where the system keeps what programs need to run, readable by all users.
_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store")
_LOADER: Final = ("/etc/ld.so.cache", "/etc/ld.so.preload", "/dev/urandom")
_OWN: Final = "/proc"  #: shows little of processes that Landlock keeps this one from tracing


def version() -> int:
    """Return the kernel's version of Landlock; 0 where there is none for this process."""
    found = _syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_ASK_VERSION))
    return max(found, 0)


def is_available() -> bool:
    """Return whether this kernel can confine a program to a directory."""
    return os.access(sys.executable, os.X_OK) and version() >= LEAST_VERSION


def can_set_apart() -> bool:
    """Return whether this kernel can isolate a program from others."""
    return os.access(sys.executable, os.X_OK) and version() >= _FIRST_VERSION


def command(arguments: Sequence[str], directory: str = "") -> list[str]:
    """Return the command line that runs another one, confined to this directory.

    Without a directory, the program is only isolated from others.
    """
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), directory, *arguments]


def restrict(directory: str, program: str) -> None:
    """Confine this thread, and what it executes from now on, to a directory.

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
    """Isolate this thread, and what it executes from now on, from processes outside its domain.

    A domain has to withhold some right: this one withholds making block devices.

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
    """Return the rights to withhold, and the struct landlock_ruleset_attr for them."""
    rights = sum(bits for since, bits in _RIGHTS.items() if since <= kernel)
    attributes = struct.pack("=Q", rights)
    for since, bits in (_NETWORK, _SCOPES):
        if since <= kernel:
            attributes += struct.pack("=Q", bits)
    return rights, attributes


def _needed(program: str) -> Iterator[tuple[str, int]]:
    """Yield the paths that a program needs to run, each with its rights."""
    yield from ((path, _RUN) for path in _SYSTEM)
    yield from ((path, _READ_FILE) for path in _LOADER)
    yield "/dev/null", _READ_FILE | _WRITE_FILE
    yield _OWN, _LOOK
    real = os.path.realpath(program)
    yield real, _RUN
    # Its folder may hold files that belong to it; a home directory does not.
    folder = os.path.dirname(real)
    home = os.path.realpath(os.path.expanduser("~"))
    if os.path.commonpath([home, folder]) != folder:
        yield folder, _RUN


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(f"/proc/self/fd/{descriptor}"):
            rights &= ~_READ_DIR  # the kernel refuses it for a file
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
    """Become the program ``arguments[1:]``, confined to the directory ``arguments[0]``.

    If that is empty, the program is only isolated from others.
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
