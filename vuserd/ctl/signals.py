"""Handle signals that end vuserctl: remove unfinished files, then die of the signal.

All signals that end a process by default are caught, except those for a processor's faults, after
which the instruction would be tried again.  A signal that was ignored at the start stays ignored;
for SIGPIPE and SIGXFSZ that is unknown, since Python ignores them itself.
"""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_LEFT_ALONE: Final = frozenset(
    {
        # These do not end a process,
        signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH,
        # these stop it,
        signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
        # and these cannot be caught, or only once.
        signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE,
    }
)  # fmt: skip
#: Signals that a process of Python ignores, and others do not.
IGNORED_BY_PYTHON: Final = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
#: Seconds after which what was lost is raised again.
_SOON: Final = 0.001


#: What removes unfinished files, of each module that makes any.
_cleanups: Final[list[Callable[[], None]]] = []


def before_a_signal_ends(cleanup: Callable[[], None]) -> None:
    """Call a function before a signal ends the process; it may interrupt any code."""
    _cleanups.append(cleanup)


def _clean_up() -> None:
    for cleanup in _cleanups:
        cleanup()


class Signalled(BaseException):
    """A signal is to end the process, which cleans up as this exception propagates."""

    def __init__(self, number: int) -> None:
        self.number = number


def catch_signals() -> list[int]:
    """Make signals raise :class:`Signalled`, and SIGINT KeyboardInterrupt; return their numbers."""
    caught: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> NoReturn:
        for each in caught:
            signal.signal(each, _on_another)
        _clean_up()  # now: the signal may interrupt the code that would remove them
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Signalled(number)

    for number in sorted(signal.valid_signals() - _LEFT_ALONE):
        if number in IGNORED_BY_PYTHON or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, on_signal)
            caught.append(number)
    sys.unraisablehook = _raise_again
    return caught


def _raise_again(lost: "UnraisableHookArgs") -> None:
    """Raise what a signal raised where Python drops it: in ``__del__``, or when a weakref dies."""
    error = lost.exc_value
    if not isinstance(error, Signalled | KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return

    def raise_it(_number: int, _frame: FrameType | None) -> NoReturn:
        raise error

    signal.signal(signal.SIGALRM, raise_it)
    signal.setitimer(signal.ITIMER_REAL, _SOON)


def _on_another(number: int, _frame: FrameType | None) -> NoReturn:
    """End at once: the sender of a second signal will not wait for the cleanup after the first."""
    _clean_up()
    die_of(number)


def release_signals(caught: list[int]) -> None:
    """Restore the default: the signals end the process at once."""
    signal.setitimer(signal.ITIMER_REAL, 0)  # of one that was to be raised again
    for number in caught:
        signal.signal(number, signal.SIG_DFL)


def die_of(number: int) -> NoReturn:
    """End this process by a signal, so that the shell sees what it was."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # if the signal is blocked
