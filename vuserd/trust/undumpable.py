"""Keep what this process has from other processes of its own user, who may be its backends.

Whoever may trace a process reads its memory, takes its descriptors and sees its mappings:
ptrace(2), ``/proc/PID/mem`` and ``fd``, pidfd_getfd(2), process_vm_readv(2). One that is not
dumpable is traced by nobody without CAP_SYS_PTRACE (prctl(2), PR_SET_DUMPABLE), and dumps no core.
It still sees what ``/proc/self`` has of its own.

A program that it executes is dumpable again, and so may one be that has changed its user: whoever
changes it has to become undumpable once more.
"""

import ctypes
import os
from typing import Final

#: linux/prctl.h
_PR_SET_DUMPABLE: Final = 4


def become_undumpable() -> None:
    """Let nobody without CAP_SYS_PTRACE trace this process from now on.

    Raises:
        OSError: the kernel refuses.

    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
