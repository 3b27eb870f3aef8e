"""Signals that end vuserctl: what is unfinished is removed, and the process dies of them.

All that end a process by default are caught, but those with which a processor tells of a fault: the
instruction would be tried again.  What was ignored when the process began stays ignored; of SIGPIPE
and SIGXFSZ that cannot be known, since Python ignores them itself.
"""

import os
import signal
from types import FrameType
from typing import Final, NoReturn

from vuserd.ctl.copying.atomic_file import remove_unfinished

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
_IGNORED_BY_PYTHON: Final = frozenset({signal.SIGPIPE, signal.SIGXFSZ})


class Signalled(BaseException):
    """A signal wants the process to end; what it holds is cleaned up on the way."""

    def __init__(self, number: int) -> None:
        self.number = number


def catch_signals() -> list[int]:
    """Have signals raise :class:`Signalled`, SIGINT KeyboardInterrupt; return which ones do."""
    caught: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> NoReturn:
        for each in caught:
            signal.signal(each, _on_another)
        remove_unfinished()  # now: this may have come in the middle of what would remove it
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Signalled(number)

    for number in sorted(signal.valid_signals() - _LEFT_ALONE):
        if number in _IGNORED_BY_PYTHON or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, on_signal)
            caught.append(number)
    return caught


def _on_another(number: int, _frame: FrameType | None) -> NoReturn:
    """End at once: cleaning up after the first signal takes too long for whoever sent this one."""
    remove_unfinished()
    die_of(number)


def release_signals(caught: list[int]) -> None:
    """Have signals end the process at once again."""
    for number in caught:
        signal.signal(number, signal.SIG_DFL)


def die_of(number: int) -> NoReturn:
    """End this process by a signal, so that the shell sees what it was."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # where the signal is blocked
