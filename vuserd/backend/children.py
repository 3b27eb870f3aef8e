"""Child processes: those that the daemon started, and orphans that become its own to reap.

As the first process of a container (pid_namespaces(7)), or as a subreaper, the daemon inherits
every process whose parent ends: what a backend forked, or what was run beside it. They stay as
zombies until they are waited for. The processes that it started itself are waited for where they
are used, and nobody may take their status away.
"""

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

#: linux/prctl.h
_PR_GET_CHILD_SUBREAPER: Final = 37


class Children:
    """The processes that this one started, as far as they run longer than what starts them."""

    def __init__(self) -> None:
        self._ours: set[int] = set()
        self._starting = 0
        self._changed = trio.Event()

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Start processes within the block, and wait for them there or :meth:`add` them.

        No orphan is reaped meanwhile: it could be one of these, whose id is not known yet.
        """
        self._starting += 1
        try:
            yield
        finally:
            self._starting -= 1
            self._changed.set()

    def add(self, process: int) -> None:
        """Leave this process to whoever waits for it."""
        self._ours.add(process)

    def remove(self, process: int) -> None:
        """Reap this process like an orphan from now on, if it was not waited for."""
        self._ours.discard(process)
        self._changed.set()

    async def reap_orphans(self) -> None:
        """Reap orphans as they end, until cancelled; return at once where there can be none."""
        if not _inherits_orphans():
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_signals)
            while True:
                self._changed = trio.Event()
                self._reap()
                await self._changed.wait()

    async def _follow_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGCHLD) as ended:
            self._changed.set()  # some may have ended before
            async for _ in ended:
                self._changed.set()

    def _reap(self) -> None:
        if self._starting:
            return  # there is another look at the end of that
        for zombie in _zombies():
            if zombie not in self._ours:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(zombie, os.WNOHANG)


#: The kernel knows one set of them as well.
CHILDREN: Final = Children()


def _inherits_orphans() -> bool:
    if os.getpid() == 1:
        return True
    flag = ctypes.c_int()
    ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(flag), 0, 0, 0)
    return bool(flag.value)


def _zombies() -> Iterator[int]:
    """Give the children of this process that have ended (proc_pid_stat(5))."""
    parent = os.getpid()
    with contextlib.suppress(OSError):
        for entry in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError, ValueError):
                state, of = _state_and_parent(int(entry))
                if state == b"Z" and of == parent:
                    yield int(entry)


def is_stopped(process: int) -> bool:
    """Tell whether a process stands still for a signal (SIGSTOP), or for who traces it."""
    with contextlib.suppress(OSError, ValueError):
        return _state_and_parent(process)[0] in (b"T", b"t")
    return False


def _state_and_parent(process: int) -> tuple[bytes, int]:
    with open(f"/proc/{process}/stat", "rb") as file:
        state, parent, *_ = file.read().rpartition(b")")[2].split()
    return state, int(parent)
