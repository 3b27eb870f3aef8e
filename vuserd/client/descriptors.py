"""Descriptors that a daemon sent: looked at before they are used, and let go without waiting.

Closing a file that the daemon chose may last as long as they like (a TCP socket that lingers, a
file system in user space), and so may looking at it.  Only what its seals are the kernel says by
itself, and only memory has any.
"""

import _thread
import fcntl
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from vuserd.client.errors import BadReply
from vuserd.wire.descriptors import ancillary_space, received_descriptors

#: The most that one message can carry (the kernel's SCM_MAX_FD): the kernel closes those that there
#: is no room for, and waits for each.
MOST_DESCRIPTORS: Final = 253
_ANCILLARY_SPACE: Final = ancillary_space(MOST_DESCRIPTORS)
#: What makes bytes stay as they are, and where they are. A mapping that was writable before
#: F_SEAL_FUTURE_WRITE still is.
_UNCHANGEABLE: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_DRAINED_AT_ONCE: Final = 64 << 10


def require_image(descriptor: int, size: int) -> None:
    """Refuse what is not ``size`` bytes of memory that can be read, and changed by no process.

    Raises:
        BadReply: with what is wrong with it.

    """
    seals = _seals(descriptor)
    if seals is None:
        raise BadReply("what the daemon sent as an image is no memfd")
    if seals & _UNCHANGEABLE != _UNCHANGEABLE:
        raise BadReply("the image that the daemon sent is not sealed: it could be changed")
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
        raise BadReply("the image that the daemon sent is not open for reading")
    there = os.fstat(descriptor).st_size
    if there != size:
        raise BadReply(f"the daemon sent an image of {there} bytes, and said {size}")


def let_go(descriptor: int) -> None:
    """Close a descriptor: what is not memory in a thread, which may wait as long as it has to.

    It is a thread that no process waits for when it ends.
    """
    if _seals(descriptor) is not None:
        os.close(descriptor)
        return
    with suppress(RuntimeError):  # no thread is to be had: rather keep it than wait
        _thread.start_new_thread(_close, (descriptor,))


def hang_up(sock: socket.socket, maker: int) -> None:
    """Close a connection, and let go of the descriptors that lie unread in it.

    In a child of ``maker``, the process that made it, only close it: it goes on there.
    """
    if os.getpid() == maker:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)  # from here on nothing is added
            _drain(sock)
    sock.close()


def _drain(sock: socket.socket) -> None:
    unread = memoryview(bytearray(_DRAINED_AT_ONCE))
    flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    while True:
        count, ancillary, _, _ = sock.recvmsg_into([unread], _ANCILLARY_SPACE, flags)
        _let_all_go(received_descriptors(ancillary))
        if not count:
            return


def _let_all_go(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        let_go(descriptor)


def _seals(descriptor: int) -> int | None:
    """Return the seals of memory; None for what has none."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        return None


def _close(descriptor: int) -> None:
    with suppress(OSError):  # an error of its last writes, and nobody to tell
        os.close(descriptor)
