"""Make system calls on files of any owner, without repeating them for ever.

Python repeats a call that was interrupted (PEP 475), even if a file system in user space answers
EINTR each time. Here a call is repeated a few times, as for a signal, and then EINTR is an error
like any other.
"""

import ctypes
import errno
import os
from typing import Final

#: Tries of a call. A thread may get signals, but rarely: the main one takes them.
_TRIES: Final = 8
_openat = ctypes.CDLL(None, use_errno=True).openat
_openat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int)


def open_entry(folder: int, name: str, flags: int) -> int:
    """Open the entry of this name in a folder; the caller closes the descriptor.

    Raises:
        OSError: as :func:`os.open`, and InterruptedError.

    """
    path = os.fsencode(name)
    if b"\0" in path:
        raise ValueError("a name has no null byte")
    for _ in range(_TRIES):
        descriptor: int = _openat(folder, path, flags | os.O_CLOEXEC)
        if descriptor >= 0:
            return descriptor
        number = ctypes.get_errno()
        if number != errno.EINTR:
            break
    raise OSError(number, os.strerror(number), name)


def status_of(descriptor: int) -> os.stat_result:
    """Return the status of an open file.

    Raises:
        OSError: as :func:`os.fstat`, and InterruptedError.

    """
    for _ in range(_TRIES - 1):
        try:
            return os.stat(descriptor)  # unlike os.fstat(), it does not repeat for ever
        except InterruptedError:
            continue
    return os.stat(descriptor)
