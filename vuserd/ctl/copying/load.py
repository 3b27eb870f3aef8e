"""``vuserctl load``: load a file into memory that another process shares, such as a rig's RAM.

The memory is named by a descriptor that this process inherited (a shell's ``3<>``, Python's
``pass_fds``), or by ``/proc/PID/fd/N`` of the process that has it.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from vuserd.client.errors import NotTaken
from vuserd.client.sync_client import Client
from vuserd.ctl.output import emit, shown
from vuserd.ctl.target import Target


def load(
    client: Client,
    target: Target,
    memory: str,
    address: int,
    *,
    offset: int = 0,
    length: int | None = None,
) -> None:
    """Load a file into memory, and print how many bytes it had.

    If the daemon is restarted meanwhile, the load is repeated from the beginning.
    """
    with _opened(memory) as memfd:
        for last in (False, True):
            try:
                with client.attach(memfd) as attached:
                    count = attached.load(
                        target.export, target.path, address, offset=offset, length=length
                    )
                break
            except NotTaken:
                if last:
                    raise
    emit(f"{count} bytes of {shown(str(target))} at {address:#x}")


@contextmanager
def _opened(memory: str) -> Iterator[int]:
    """Yield a descriptor of the memory, for the block's time; OSErrors name the memory."""
    inherited = memory.isascii() and memory.isdecimal()
    descriptor = int(memory) if inherited else os.open(memory, os.O_RDWR | os.O_CLOEXEC)
    try:
        _check(descriptor, memory)
        yield descriptor
    finally:
        if not inherited:
            os.close(descriptor)


def _check(descriptor: int, memory: str) -> None:
    """Refuse a descriptor that is not open, or not of a regular file, which a memfd is."""
    try:
        mode = os.fstat(descriptor).st_mode
    except (OSError, OverflowError):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), memory) from None
    if not stat.S_ISREG(mode):  # the number may be that of this process's own socket
        raise OSError(errno.EBADF, "not a memfd", memory)
