"""Procedures: a few requests after one another, carried out by a task, or without one.

A procedure yields what it asks for at once, is sent a result for each, and returns what it found.
It says in one place what follows from what, for two who carry it out. A task waits for the results,
and may wait for other things in between. An :class:`Errand` has no task: where the replies are
taken off the ring the procedure goes on at once, so that a short call costs no wake-up::

    def size(node: NodeId) -> Procedure[int]:
        [found] = yield [Ask(fuse.getattr(node))]
        return fuse.decode_attributes(body_of(found)).size
"""

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

from vuserd.device.lane.lane import Lane
from vuserd.device.request import Asked, Batch
from vuserd.device.results import Result
from vuserd.errors import BackendError
from vuserd.users.asker import ASKER, Asker

Found = TypeVar("Found")

#: Yields requests to be sent at once, is sent a result for each, and returns what it found.
Procedure: TypeAlias = Generator[Sequence[Asked], Sequence[Result], Found]
#: Takes what a procedure found, or None and what came out of it.
Done: TypeAlias = Callable[[Found | None, Exception | None], None]


class NeedsTask(Exception):  # noqa: N818 - it is no error
    """What a procedure is to do takes more than a few requests: a task has to do it."""


async def carry_out(lane: Lane, procedure: Procedure[Found]) -> Found:
    """Carry a procedure out in this task; return what it found.

    Raises:
        Exception: what comes out of the procedure.

    """
    try:
        asked = next(procedure)
        while True:
            asked = procedure.send(await lane.ask_all(asked))
    except StopIteration as end:
        found: Found = end.value
        return found
    finally:
        procedure.close()


class Errand(Batch, Generic[Found]):
    """A procedure without a task: :meth:`resume` begins it.

    Args:
        lane: where its requests go.
        asker: on whose behalf it is.
        procedure: must not keep others waiting for long.
        done: is called once, at the procedure's end.

    """

    __slots__ = ("_asked", "_done", "_lane", "_next", "_procedure")

    def __init__(
        self,
        lane: Lane,
        asker: Asker | None,
        procedure: Procedure[Found],
        done: Done[Found],
    ) -> None:
        super().__init__(asker)
        self._lane = lane
        self._procedure = procedure
        self._done = done
        self._asked: Sequence[Asked] = ()
        #: What the procedure is sent next: at first nothing, since it has asked for nothing.
        self._next: Any = None

    def resume(self) -> None:
        """Go on until it waits, or has ended."""
        send, lane = self._procedure.send, self._lane
        found: Found | None = None
        failure: Exception | None = None
        token = ASKER.set(self.asker)
        try:
            while not self.missing:
                self._asked = ()
                self._asked = asked = send(self._next)
                lane.submit(self, asked)
                self._next = self.results
            lane.requests.offer()
            return
        except StopIteration as end:
            found = end.value
        except Exception as error:
            if self.missing:  # it was not let ask for all of it
                self.abandon()
            failure = error
        finally:
            ASKER.reset(token)
        try:
            self._done(found, failure)
        finally:
            del failure  # break the cycle exception -> traceback -> frame

    def abandon(self) -> None:
        """End it; nobody is told, and what it has asked for is given up."""
        token = ASKER.set(self.asker)
        try:
            # What the backend has written may show only now that it broke the protocol: the session
            # knows, and is lost.
            with contextlib.suppress(BackendError):
                self._lane.give_up(self, self._asked)
            with contextlib.suppress(BackendError):
                self._procedure.close()
        finally:
            ASKER.reset(token)
