"""openat2(2) with RESOLVE_IN_ROOT: ask the kernel where a path inside a root leads."""

import contextlib
import ctypes
import os

_SYS_OPENAT2 = 437
_RESOLVE_IN_ROOT = 0x10
_LIBC = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


#: Walks that a rename may come into, one after the other.
_RENAMES = 1000


def stat_in_root(root: str, path: bytes, *, follow: bool) -> os.stat_result:
    """Return the stat of ``path`` as a process sees it whose root is ``root``; or raise OSError.

    ELOOP is only believed the third time: a walk that the kernel has to begin again counts the
    symlinks of both. EAGAIN means that something was renamed meanwhile, anywhere on the machine.
    """
    for _ in range(2):
        with contextlib.suppress(OSError):
            return _stat_in_root(root, path, follow=follow)
    for _ in range(_RENAMES):
        try:
            return _stat_in_root(root, path, follow=follow)
        except BlockingIOError:
            pass
    return _stat_in_root(root, path, follow=follow)


def _stat_in_root(root: str, path: bytes, *, follow: bool) -> os.stat_result:
    anchor = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        how = _OpenHow(os.O_PATH | (0 if follow else os.O_NOFOLLOW), 0, _RESOLVE_IN_ROOT)
        descriptor = _LIBC.syscall(
            _SYS_OPENAT2, anchor, path or b"/", ctypes.byref(how), ctypes.sizeof(how)
        )
        if descriptor < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        try:
            return os.fstat(descriptor)
        finally:
            os.close(descriptor)
    finally:
        os.close(anchor)
