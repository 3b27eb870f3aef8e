"""Resident tasks that run one job after the other: a job costs a wake-up, and no new task.

One of them leads: it waits for what brings jobs, and gives them to the others; one that comes alone
it keeps for itself. When that job waits for anything, another worker leads. So such a job needs no
wake-up to begin, and one that never waits needs none at all. Of several none is ahead of the rest::

    lead -> lone job ---- ends without waiting ----> lead
                    +---- waits: another one leads, and this one goes on with its job
"""

import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Final, TypeAlias

import trio

#: What a worker runs. Context variables that it sets are those of the next job, too.
Job: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

#: Workers that may wait for a job; of more, each ends with the job that it has.
_MOST_IDLE: Final = 128


class Worker:
    """A task of :class:`Workers`, while it has a job."""

    __slots__ = ("is_cancelled", "job", "listed", "scope", "task")

    def __init__(self, job: Job | None, listed: set["Worker"] | None) -> None:
        self.job = job
        self.listed = listed
        self.task: trio.lowlevel.Task | None = None
        #: Of the job, and of the task with it; what it knows itself of being cancelled costs a look
        #: at the clock.
        self.scope = trio.CancelScope()
        self.is_cancelled = False

    def cancel(self) -> None:
        """Cancel the job; the task ends with it."""
        self.is_cancelled = True
        self.scope.cancel()


class Workers:
    """Runs jobs in the tasks of a nursery, of which it keeps some for the next jobs."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._idle: list[Worker] = []
        #: The worker that leads, while no more than one job has come.
        self._leader: Worker | None = None
        self._wait: Callable[[], Awaitable[None]]
        self._start_jobs: Callable[[], None]

    def lead(self, wait: Callable[[], Awaitable[None]], start_jobs: Callable[[], None]) -> None:
        """Make one of the workers wait for jobs and start them, again and again.

        Args:
            wait: returns when there may be some; it may be cancelled only with all workers.
            start_jobs: calls :meth:`start` for each.

        """
        self._wait, self._start_jobs = wait, start_jobs
        self._give(None, None)

    def start(self, job: Job, listed: set[Worker]) -> None:
        """Run a job soon; its worker is in the set ``listed`` until it has ended."""
        leader = self._leader
        if leader is not None and leader.job is None:
            leader.job, leader.listed = job, listed
            listed.add(leader)
            return
        self._leader = None
        if leader is not None and not leader.is_cancelled:
            self._give_up_first(leader)
        listed.add(self._give(job, listed))

    def _give_up_first(self, leader: Worker) -> None:
        """Give the job that came first to another worker."""
        job, listed = leader.job, leader.listed
        leader.job = leader.listed = None
        assert listed is not None
        listed.discard(leader)
        listed.add(self._give(job, listed))

    def _give(self, job: Job | None, listed: set[Worker] | None) -> Worker:
        """Give a job to an idle worker or a new one, which leads if there is none."""
        if self._idle:
            worker = self._idle.pop()
            worker.job, worker.listed = job, listed
            assert worker.task is not None
            trio.lowlevel.reschedule(worker.task)
        else:
            worker = Worker(job, listed)
            self._nursery.start_soon(self._run, worker)
        return worker

    async def _run(self, worker: Worker) -> None:
        worker.task = trio.lowlevel.current_task()

        def abort(_: Any) -> trio.lowlevel.Abort:
            self._idle.remove(worker)
            return trio.lowlevel.Abort.SUCCEEDED

        with worker.scope:
            while True:
                leads = worker.job is None
                try:
                    if leads:
                        leads = await self._lead(worker)
                    else:
                        assert worker.job is not None
                        await worker.job()
                finally:
                    if worker.listed is not None:
                        worker.listed.discard(worker)
                    worker.job = worker.listed = None  # it keeps nothing of what has ended
                if worker.is_cancelled or (not leads and len(self._idle) >= _MOST_IDLE):
                    if leads:
                        self._let_another_lead()
                    return
                if not leads:
                    self._idle.append(worker)
                    await trio.lowlevel.wait_task_rescheduled(abort)

    async def _lead(self, worker: Worker) -> bool:
        """Wait for jobs and start them, a lone one here; return whether this one leads still."""
        while worker.job is None:
            await self._wait()
            self._leader = worker
            self._start_jobs()
            self._leader = None
        return await _run_at_once(worker.job(), self._let_another_lead)

    def _let_another_lead(self) -> None:
        self._give(None, None)


@types.coroutine
def _run_at_once(
    job: Coroutine[Any, Any, None], on_wait: Callable[[], None]
) -> Generator[Any, Any, bool]:
    """Run a job in this task, and call ``on_wait`` if it waits; return whether it never did."""
    try:
        trap = job.send(None)
    except StopIteration:
        return True
    on_wait()
    while True:
        # What ``yield from`` does, which cannot be had for a job that has begun.
        try:
            answer = yield trap
        except GeneratorExit:
            job.close()
            raise
        except BaseException as error:
            resume: Callable[[Any], Any] = job.throw
            answer = error
        else:
            resume = job.send
        try:
            trap = resume(answer)
        except StopIteration:
            return False
