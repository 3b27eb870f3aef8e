"""Whose a client is: one thread's of one process, and any other is told so at once.

What a client reads from its socket is for the one who awaits it.  A second thread, or the child of
a fork, would take away what the first one waits for, and be given what it never asked for.
"""

import os
import sys
from _thread import get_ident
from collections.abc import Callable

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class Owner:
    """The thread that made this."""

    def __init__(self) -> None:
        self._thread, self._forks = get_ident(), _forks
        self._process = os.getpid()
        self._has_ended = _end_of_this_thread()

    @property
    def is_of_this_process(self) -> bool:
        """False in a child that was forked since."""
        return self._forks == _forks

    @property
    def is_this_thread(self) -> bool:
        """Whether this is the owner."""
        return self._thread == get_ident() and self._forks == _forks

    def check(self) -> None:
        """Refuse any other thread, unless the owner has ended: then this one is the owner.

        Raises:
            RuntimeError: it is another thread's, or another process's; with the names of both.

        """
        if self.is_this_thread:
            return
        if not self.is_of_this_process:
            raise RuntimeError(
                f"this client is process {self._process}'s, and its fork, process {os.getpid()},"
                " has called it: connect a client of its own there"
            )
        if not self._has_ended():
            raise RuntimeError(
                f"this client is {_name_of(self._thread)}'s, and {_name_of(get_ident())} has called"
                " it: give each thread a client of its own, or share a vuserd.client.ClientPool"
            )
        self._thread, self._has_ended = get_ident(), _end_of_this_thread()


def _end_of_this_thread() -> Callable[[], bool]:
    """Return what tells whether this thread has ended.

    Its number does not: another thread may have that by then. Where nobody has loaded the module of
    threads, this is the main one.
    """
    threading = sys.modules.get("threading")
    if threading is None:
        return lambda: False
    thread = threading.current_thread()
    return lambda: not thread.is_alive()


def _name_of(ident: int) -> str:
    import threading  # those who have one thread alone do without

    if ident == get_ident():
        return f"thread {threading.current_thread().name!r}"
    names = (repr(thread.name) for thread in threading.enumerate() if thread.ident == ident)
    return f"thread {next(names, ident)}"
