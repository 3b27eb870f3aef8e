"""Send and receive descriptors beside bytes on a unix socket (SCM_RIGHTS, unix(7))."""

import array
import socket
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

#: The most descriptors that the kernel lets one message carry (SCM_MAX_FD).
MOST_DESCRIPTORS: Final = 253

#: What ``sendmsg`` takes and ``recvmsg`` returns beside the bytes.
Ancillary: TypeAlias = "list[tuple[int, int, array.array[int]]]"


def ancillary_space(count: int) -> int:
    """Return the bytes of ancillary data that ``recvmsg`` needs for ``count`` descriptors."""
    return socket.CMSG_SPACE(count * array.array("i").itemsize)


def ancillary_with(descriptors: Sequence[int]) -> Ancillary:
    """Return the ancillary data with which ``sendmsg`` sends descriptors; empty for none."""
    if not descriptors:
        return []
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]


def received_descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """Return the descriptors in what ``recvmsg`` returned; the receiver has to close them."""
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            # The kernel cuts the list short where there is no room for it.
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return list(descriptors)
