"""What a process tries that wants the memory and the descriptors of another one."""

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
#: asm-generic/unistd.h
_PIDFD_GETFD: Final = 438
#: linux/ptrace.h
_PTRACE_SEIZE: Final = 0x4206
#: linux/capability.h, and what a virtiofsd of root's keeps: to chown, to read and write whatever
#: there is, to become others, to make devices. It keeps no right to trace.
_CAPABILITIES_VERSION: Final = 0x20080522
KEPT: Final = {
    "chown": 0,
    "dac_override": 1,
    "dac_read_search": 2,
    "fowner": 3,
    "fsetid": 4,
    "setgid": 6,
    "setuid": 7,
    "mknod": 27,
    "setfcap": 31,
}
_REFUSALS: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOENT, errno.ESRCH})


def keep_a_backends_capabilities() -> None:
    """Drop what a backend of root's has dropped, as one that was broken into."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0)
    kept = sum(1 << capability for capability in KEPT.values())
    sets = (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)
    assert _LIBC.capset(header, sets) == 0


def ways_into(process: int) -> list[str]:
    """Try each way into a process; return those that were open."""
    return [name for name, way in _WAYS.items() if _is_open(way, process)]


def _is_open(way: Callable[[int], object], process: int) -> bool:
    try:
        way(process)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        return False
    return True


def _see_descriptors(process: int) -> None:
    for number in os.listdir(f"/proc/{process}/fd"):  # root may see how many there are
        os.readlink(f"/proc/{process}/fd/{number}")


def _open_a_descriptor(process: int) -> None:
    _opened(f"/proc/{process}/fd/0")


def _opened(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))


def _open_memory(process: int) -> None:
    _opened(f"/proc/{process}/mem")


def _see_mappings(process: int) -> None:
    _opened(f"/proc/{process}/maps")
    os.listdir(f"/proc/{process}/map_files")


def _read_memory(process: int) -> None:
    here = ctypes.create_string_buffer(8)
    ours = (ctypes.c_size_t * 2)(ctypes.addressof(here), 8)
    theirs = (ctypes.c_size_t * 2)(ctypes.addressof(here), 8)
    read = _LIBC.process_vm_readv(process, ours, 1, theirs, 1, 0)
    if read < 0 and ctypes.get_errno() != errno.EFAULT:  # that address is just not theirs
        _fail()


def _take_a_descriptor(process: int) -> None:
    with _pidfd(process) as pidfd:
        taken = _LIBC.syscall(_PIDFD_GETFD, pidfd, 1, 0)
        if taken < 0:
            _fail()
        os.close(taken)


def _trace(process: int) -> None:
    if _LIBC.ptrace(_PTRACE_SEIZE, process, None, None):
        _fail()


@contextmanager
def _pidfd(process: int) -> Iterator[int]:
    pidfd = os.pidfd_open(process)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def _fail() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


_WAYS: Final[dict[str, Callable[[int], object]]] = {
    "/proc/PID/fd": _see_descriptors,
    "/proc/PID/fd/N": _open_a_descriptor,
    "/proc/PID/mem": _open_memory,
    "/proc/PID/maps": _see_mappings,
    "process_vm_readv": _read_memory,
    "pidfd_getfd": _take_a_descriptor,
    "ptrace": _trace,
}
