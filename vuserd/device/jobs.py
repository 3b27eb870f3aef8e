"""Jobs: procedures that return nothing, of which many go on at once while one task waits for all.

A job has no task: where the replies are taken off the ring it goes on at once, so a request costs a
fraction of what it costs a task that waits. It must not keep others waiting for long, therefore,
and it has no context of its own::

    def size(node: NodeId) -> Job:
        [found] = yield [Ask(fuse.getattr(node))]
        sizes.append(fuse.decode_attributes(body_of(found)).size)
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import trio

from vuserd.device.lane.lane import Lane
from vuserd.device.procedure import Procedure
from vuserd.device.request import Asked, Batch
from vuserd.users.asker import ASKER, Asker

#: Jobs that are begun at once, if nothing else is said: more brings no more speed.
DEPTH: Final = 64

#: A procedure that returns nothing.
Job: TypeAlias = Procedure[None]


class Member(Batch):
    """What :meth:`Jobs.run` waits for: a job that has begun, or what does the work of many."""

    __slots__ = ()

    #: What it waits for, to be undone where it has come and was not seen.
    asked: Sequence[Asked] = ()

    def close(self) -> None:
        """End before all is done; what it waited for was given up."""
        raise NotImplementedError


class Jobs:
    """Run jobs on a lane, at most ``depth`` of them begun at once."""

    def __init__(self, lane: Lane, depth: int = DEPTH) -> None:
        self._lane = lane
        self._depth = depth
        self._asker = ASKER.get()
        self._waiting: deque[Job] = deque()
        self._begun: set[Member] = set()
        #: Whether they run, none has failed, and nothing was cancelled.
        self.go_on = False
        #: Whether jobs are being begun: one that adds another begins none within itself.
        self._is_beginning = False
        self._task: trio.lowlevel.Task | None = None
        self._failure: Exception | None = None

    def add(self, job: Job) -> None:
        """Run a job, too: at once, or when another one has ended."""
        self._waiting.append(job)
        self._begin()

    def hold(self, member: Member) -> None:
        """Make :meth:`run` wait for a member, too, until it has :meth:`ended`."""
        self._begun.add(member)

    async def run(self, begin: Callable[[], None] = lambda: None) -> None:
        """Run until all jobs have ended, those that are added meanwhile included.

        First it calls ``begin``, which may begin what is not a job.

        An exception out of a job ends the others, as a cancellation does: each is closed, and what
        it still waited for becomes an orphan.

        Raises:
            Exception: what came out of the first job that failed.

        """
        self.go_on = True
        try:
            begin()
            self._begin()
            while self._begun and self._failure is None:
                await self._changed()
        finally:
            self.go_on = False
            self._close()
            failure, self._failure = self._failure, None
            try:
                if failure is not None:
                    raise failure
            finally:
                del failure  # break the cycle exception -> traceback -> frame

    async def _changed(self) -> None:
        """Wait until all have ended, or one has failed."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _begin(self) -> None:
        """Begin those that wait, as far as they may."""
        if self._is_beginning:
            return
        self._is_beginning = True
        while self._waiting and len(self._begun) < self._depth and self.go_on:
            begun = _Begun(self, self._lane, self._asker, self._waiting.popleft())
            self._begun.add(begun)
            begun.resume()
        self._is_beginning = False
        self._lane.requests.publish()

    def ended(self, begun: Member, failure: Exception | None) -> None:
        """Remove a member that has ended, or end all if it has failed."""
        if failure is None:
            self._begun.discard(begun)
            self._begin()
        else:
            self._failure = failure
            self.go_on = False
        if self._task is not None and (self._failure is not None or not self._begun):
            trio.lowlevel.reschedule(self._task)
            self._task = None

    def _close(self) -> None:
        """Close those that have not ended, whatever comes out of any of them."""
        closing: list[Callable[[], object]] = [
            *(partial(self._lane.give_up, begun, begun.asked) for begun in self._begun),
            *(begun.close for begun in self._begun),
            *(job.close for job in self._waiting),
        ]
        self._begun.clear()
        self._waiting.clear()
        for close in closing:
            try:
                close()
            except Exception as error:
                self._failure = self._failure or error


class _Begun(Member):
    """A job that has begun, and what it waits for."""

    __slots__ = ("_jobs", "_lane", "_next", "asked", "job")

    is_bulk = True

    def __init__(self, jobs: Jobs, lane: Lane, asker: Asker | None, job: Job) -> None:
        super().__init__(asker)
        self.job = job
        self.asked: Sequence[Asked] = ()
        self._jobs = jobs
        self._lane = lane
        #: What the job is sent next: at first nothing, since it has asked for nothing.
        self._next: Any = None

    def resume(self) -> None:
        """Let the job go on until it waits, ends or fails."""
        if not self._jobs.go_on:
            return  # what has come is undone
        send, submit = self.job.send, self._lane.submit
        try:
            while not self.missing:
                self.asked = ()
                self.asked = asked = send(self._next)
                submit(self, asked)
                self._next = self.results
        except StopIteration:
            self._jobs.ended(self, None)
        except Exception as error:
            self._jobs.ended(self, error)

    def close(self) -> None:
        """Close the job."""
        self.job.close()
