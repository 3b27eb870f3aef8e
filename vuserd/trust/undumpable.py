"""Keep other processes of the same user, such as backends, from tracing this process.

A process that may trace another can read its memory, take its descriptors and see its mappings:
ptrace(2), ``/proc/PID/mem`` and ``fd``, pidfd_getfd(2), process_vm_readv(2). Tracing a process that
is not dumpable takes CAP_SYS_PTRACE (prctl(2), PR_SET_DUMPABLE), and it dumps no core. The process
itself can still read its own ``/proc/self``.

Executing a program makes the process dumpable again, and changing its user may: a process that does
either has to become undumpable once more.
"""

import ctypes
import os
from typing import Final

#: linux/prctl.h
_PR_SET_DUMPABLE: Final = 4


def become_undumpable() -> None:
    """Require CAP_SYS_PTRACE for tracing this process from now on.

    Raises:
        OSError: the kernel refuses.

    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
