"""Jobs of many requests as generators: each yields what it asks for, and is sent the results.

A job says in plain code what comes after what, and any number of them share one task's turn::

    def size(node: NodeId) -> Job:
        [found] = yield [Ask(fuse.getattr(node))]
        sizes.append(fuse.decode_attributes(found.unwrap()).size)
"""

from collections import deque
from collections.abc import Generator, Sequence
from typing import Final, NamedTuple, TypeAlias

import trio

from protocol import fuse
from vuserd.device.channel import FuseChannel
from vuserd.device.request import Result, Target, Undo

#: Jobs that are begun at once, if nothing else is said: more brings no more speed.
DEPTH: Final = 64


class Ask(NamedTuple):
    """A request of a job."""

    request: fuse.Request
    target: Target | None = None  #: where the reply's body goes; it stays the job's to give back
    undo: Undo | None = None  #: takes the body of a successful reply that the job does not see


#: Yields what it asks for at once, and is sent a result for each, in that order.
Job: TypeAlias = Generator[Sequence[Ask], Sequence[Result], None]


class Jobs:
    """Run jobs on a channel, at most ``depth`` of them begun at once."""

    def __init__(self, channel: FuseChannel, depth: int = DEPTH) -> None:
        self._channel = channel
        self._depth = depth
        self._waiting: deque[Job] = deque()
        self._begun = 0
        self._nursery: trio.Nursery | None = None
        self._failure: Exception | None = None

    def add(self, job: Job) -> None:
        """Run a job, too: at once, or when another one has ended."""
        self._waiting.append(job)
        self._begin()

    async def run(self) -> None:
        """Run until all jobs have ended, those that are added meanwhile included.

        An exception out of a job ends the others, as a cancellation does: each is closed, and what
        it still waited for becomes an orphan.

        Raises:
            Exception: what came out of the first job that failed.

        """
        self._begun = 0
        self._failure = None
        try:
            async with trio.open_nursery() as self._nursery:
                self._begin()
        finally:
            self._nursery = None
            while self._waiting:
                self._waiting.popleft().close()
        failure, self._failure = self._failure, None
        try:
            if failure is not None:
                raise failure
        finally:
            del failure  # break the cycle exception -> traceback -> frame

    def _begin(self) -> None:
        while self._nursery is not None and self._waiting and self._begun < self._depth:
            self._begun += 1
            self._nursery.start_soon(self._drive, self._waiting.popleft())

    async def _drive(self, job: Job) -> None:
        try:
            asked = next(job)
            while True:
                asked = job.send(await self._channel.ask_all(asked))
        except StopIteration:
            self._begun -= 1
            self._begin()
        except Exception as error:
            assert self._nursery is not None
            self._failure = self._failure or error
            self._nursery.cancel_scope.cancel()
        finally:
            job.close()
