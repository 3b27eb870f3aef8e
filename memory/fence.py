"""Order between this thread's accesses to shared memory, as virtqueues need it.

VIRTIO 1.2, 2.7.13.3: a descriptor must be visible before the index that offers it, and a used
element must be read after the index that announces it. x86 keeps stores in order and loads in
order; elsewhere a real fence is needed, and Python's nearest one is C11's, exported by libatomic.
"""

import ctypes
import functools
import platform
import sys
from collections.abc import Callable
from typing import Final, TypeAlias

Fence: TypeAlias = Callable[[], None]

_STRONGLY_ORDERED: Final = frozenset({"x86_64", "AMD64", "i386", "i686"})
#: By its soname, which has not changed since there is one: a search by name starts ldconfig.
_LIBRARY: Final = "libatomic.so.1"
_MEMORY_ORDER_SEQ_CST: Final = 5


class NoFenceError(OSError):
    """The machine cannot order accesses to shared memory; the message says what it lacks."""


def needs_fence(machine: str) -> bool:
    """Return whether ``machine`` (as ``uname -m``) may reorder accesses that virtqueues order."""
    return machine not in _STRONGLY_ORDERED


def find_fence(machine: str, byteorder: str = sys.byteorder) -> Fence:
    """Return the function that orders the accesses around it on ``machine`` (as ``uname -m``).

    Raises:
        NoFenceError: the machine needs a fence and has no libatomic (the message names the
            package), or has its bytes in the other order than virtqueues do.

    """
    if byteorder != "little":
        raise NoFenceError(f"virtqueues are little-endian, this machine ({machine}) is not")
    if not needs_fence(machine):
        return _nothing
    try:
        fence = ctypes.CDLL(_LIBRARY).atomic_thread_fence
    except (OSError, AttributeError) as error:
        raise NoFenceError(
            f"virtqueues need memory fences on {machine}: install libatomic (libatomic1)"
        ) from error
    fence.argtypes = [ctypes.c_int]
    fence.restype = None
    return lambda: fence(_MEMORY_ORDER_SEQ_CST)


@functools.cache
def own_fence() -> Fence:
    """Return the fence of the machine that this runs on, found the first time.

    It keeps every access before a call before every access after it.

    Raises:
        NoFenceError: there is none.

    """
    return find_fence(platform.machine())


def _nothing() -> None:
    """Order nothing: the machine does."""
