"""Reap the orphans that the daemon inherits, and leave the children that it started alone.

As the first process of a container (pid_namespaces(7)), or as a subreaper, the daemon inherits
every process whose parent ends: what a backend forked, or what was run beside it. They stay zombies
until they are waited for. The daemon waits for the processes that it started where it uses them,
and their exit status must not be taken away before.
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
    """The processes that this one started and has not waited for yet."""

    def __init__(self) -> None:
        self._ours: set[int] = set()
        self._starting = 0
        self._changed = trio.Event()

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Start processes within the block; wait for each there, or :meth:`add` it.

        No orphan is reaped meanwhile: it could be one of these, whose id is not known yet.
        """
        self._starting += 1
        try:
            yield
        finally:
            self._starting -= 1
            self._changed.set()

    def add(self, process: int) -> None:
        """Leave this process to the task that started it: do not reap it as an orphan."""
        self._ours.add(process)

    def remove(self, process: int) -> None:
        """Treat this process as an orphan from now on, to be reaped if it was not waited for."""
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
            return  # starting() has it called again at its end
        for zombie in _zombies():
            if zombie not in self._ours:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(zombie, os.WNOHANG)


#: One for the process, as the kernel has one set of children for it.
CHILDREN: Final = Children()


def _inherits_orphans() -> bool:
    if os.getpid() == 1:
        return True
    flag = ctypes.c_int()
    ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(flag), 0, 0, 0)
    return bool(flag.value)


def _zombies() -> Iterator[int]:
    """Yield the children of this process that have ended (proc_pid_stat(5))."""
    parent = os.getpid()
    with contextlib.suppress(OSError):
        for entry in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError, ValueError):
                state, of = _state_and_parent(int(entry))
                if state == b"Z" and of == parent:
                    yield int(entry)


def is_stopped(process: int) -> bool:
    """Return whether a process is stopped, by a signal (SIGSTOP) or by its tracer."""
    with contextlib.suppress(OSError, ValueError):
        return _state_and_parent(process)[0] in (b"T", b"t")
    return False


def _state_and_parent(process: int) -> tuple[bytes, int]:
    with open(f"/proc/{process}/stat", "rb") as file:
        state, parent, *_ = file.read().rpartition(b")")[2].split()
    return state, int(parent)
