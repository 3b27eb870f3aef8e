"""Order between this thread's accesses to shared memory, as virtqueues need it.

VIRTIO 1.2, 2.7.13.3: a descriptor must be visible before the index that offers it, and a used
element must be read after the index that announces it. x86 keeps stores in order and loads in
order; elsewhere a real fence is needed, and Python's nearest one is C11's, exported by libatomic.
"""

import ctypes
import ctypes.util
import platform
import sys
from collections.abc import Callable

_STRONGLY_ORDERED = frozenset({"x86_64", "AMD64", "i386", "i686"})
_MEMORY_ORDER_SEQ_CST = 5


def _nothing() -> None:
    """Order nothing: the machine does."""


def find_fence(machine: str, byteorder: str = sys.byteorder) -> Callable[[], None]:
    """Return the function that orders the accesses around it on ``machine`` (as ``uname -m``).

    Raises:
        OSError: the machine needs a fence and has no libatomic (the message names the package), or
            has its bytes in the other order than virtqueues do.

    """
    if byteorder != "little":
        raise OSError(f"virtqueues are little-endian, this machine ({machine}) is not")
    if machine in _STRONGLY_ORDERED:
        return _nothing
    try:
        library = ctypes.CDLL(ctypes.util.find_library("atomic") or "libatomic.so.1")
        fence = library.atomic_thread_fence
    except (OSError, AttributeError) as error:
        raise OSError(
            f"virtqueues need memory fences on {machine}: install libatomic (libatomic1)"
        ) from error
    fence.argtypes = [ctypes.c_int]
    fence.restype = None
    return lambda: fence(_MEMORY_ORDER_SEQ_CST)


#: Keep every access before the call before every access after it.
fence = find_fence(platform.machine())
