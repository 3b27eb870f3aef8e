"""Other users of the machine: what they do is done in processes of theirs."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

#: The one who attacks, and the one who is attacked; neither has rights but what a test gives them.
MALLORY: Final = 1000
VICTIM: Final = 1001

_FAILED: Final = 99


class As:
    """A function that runs as another user for the block's time, and is killed where it goes on.

    It is forked from the test, so that it needs no interpreter that this user may run. It ends with
    what the function returns as its status, None as 0, or 99 with a traceback where that raises.
    """

    def __init__(
        self,
        user: int,
        function: Callable[[], int | None],
        *,
        group: int | None = None,
        groups: Sequence[int] = (),
    ) -> None:
        self._user, self._group, self._groups = user, group or user, groups
        self._function = function
        self._status: int | None = None

    def __enter__(self) -> Self:
        self.pid = os.fork()
        if not self.pid:
            self._run()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback_: TracebackType | None,
    ) -> None:
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def wait(self) -> int:
        """Return its exit status once it has ended; a signal's number is negative."""
        if self._status is None:
            _, status = os.waitpid(self.pid, 0)
            self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def _run(self) -> None:
        status = _FAILED
        try:
            os.setgroups(list(self._groups))
            os.setgid(self._group)
            os.setuid(self._user)
            status = self._function() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            try:
                sys.stderr.flush()
            finally:  # whatever the function has made of it: nothing of the test goes on here
                os._exit(status)


def run_as(
    user: int,
    function: Callable[[], int | None],
    *,
    group: int | None = None,
    groups: Sequence[int] = (),
) -> int:
    """Run a function as another user; return its exit status: see :class:`As`."""
    with As(user, function, group=group, groups=groups) as process:
        return process.wait()
