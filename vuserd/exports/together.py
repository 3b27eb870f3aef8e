"""Short calls that come at once: each begins when all were received, and equal ones are one.

What a pass of the hub receives is begun at the pass's end. Calls that say the same, of clients of
one user who may the same, are asked once then, after the last of them has come: each has an answer
that is as new as if it had been asked alone. A thousand rigs that look for the same kernel cost the
backend a few requests::

    stat A   stat B   stat A   ->   errand A, errand B   ->   three replies
"""

from collections.abc import Callable, Hashable
from typing import Any, Protocol

from vuserd.device.procedure import Done, Errand


class Waiter(Protocol):
    """A call that waits for what an errand finds."""

    def end(self, found: Any, failure: Exception | None) -> None:
        """Take what the errand found, or what came out of it; called once at most."""


class Joint:
    """Calls that wait for one errand."""

    __slots__ = ("errand", "waiters")

    def __init__(self) -> None:
        #: None when it has ended, or was abandoned.
        self.errand: Errand[Any] | None = None
        self.waiters: dict[Waiter, None] = {}

    def join(self, waiter: Waiter) -> None:
        """Add a call."""
        self.waiters[waiter] = None

    def leave(self, waiter: Waiter) -> None:
        """Remove a call; the errand is abandoned with the last one."""
        del self.waiters[waiter]
        if not self.waiters and self.errand is not None:
            errand, self.errand = self.errand, None
            errand.abandon()

    def _end(self, found: Any, failure: Exception | None) -> None:
        self.errand = None
        try:
            for waiter in [*self.waiters]:
                if waiter in self.waiters:  # the end of one may have others leave
                    del self.waiters[waiter]
                    waiter.end(found, failure)
        finally:
            del failure  # break the cycle exception -> traceback -> frame


class Together:
    """The short calls of all clients that were received, and are to be begun."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, Joint] = {}

    def find(self, key: Hashable) -> Joint | None:
        """Return what calls with this key wait for, if there are any whose errand begins soon."""
        joint = self._waiting.get(key)
        return None if joint is None or joint.errand is None else joint

    def add(self, key: Hashable, make: Callable[[Done[Any]], Errand[Any] | None]) -> Joint | None:
        """Make an errand that begins soon, and that calls with this key may join.

        Args:
            key: what they say, and on whose behalf; no other call has it if an answer is one's own.
            make: makes the errand, to call what it is given at its end.

        Returns:
            What the first of them is to join; None where no errand can be made.

        """
        joint = Joint()
        joint.errand = make(joint._end)  # noqa: SLF001 - it is this module's own
        if joint.errand is None:
            return None
        self._waiting[key] = joint
        return joint

    def begin(self) -> None:
        """Begin all that wait; called at the end of each pass that receives calls."""
        while self._waiting:
            waiting, self._waiting = self._waiting, {}
            for joint in waiting.values():
                if joint.errand is not None:
                    joint.errand.resume()
