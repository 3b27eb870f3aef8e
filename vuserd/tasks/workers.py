"""Resident tasks that run one job after the other: a job costs a wake-up, and no new task."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import trio

#: What a worker runs. Context variables that it sets are those of the next job, too.
Job: TypeAlias = Callable[[], Awaitable[None]]

#: Workers that may wait for a job; of more, each ends with the job that it has.
_MOST_IDLE: Final = 128


class Worker:
    """A task of :class:`Workers`, while it has a job."""

    __slots__ = ("is_cancelled", "job", "listed", "scope", "task")

    def __init__(self, job: Job, listed: set["Worker"]) -> None:
        self.job: Job | None = job
        self.listed: set[Worker] | None = listed
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

    def start(self, job: Job, listed: set[Worker]) -> None:
        """Run a job soon; its worker is in the set ``listed`` until it has ended."""
        if self._idle:
            worker = self._idle.pop()
            worker.job, worker.listed = job, listed
            assert worker.task is not None
            trio.lowlevel.reschedule(worker.task)
        else:
            worker = Worker(job, listed)
            self._nursery.start_soon(self._run, worker)
        listed.add(worker)

    async def _run(self, worker: Worker) -> None:
        worker.task = trio.lowlevel.current_task()

        def abort(_: Any) -> trio.lowlevel.Abort:
            self._idle.remove(worker)
            return trio.lowlevel.Abort.SUCCEEDED

        with worker.scope:
            while True:
                try:
                    assert worker.job is not None
                    await worker.job()
                finally:
                    assert worker.listed is not None
                    worker.listed.discard(worker)
                    worker.job = worker.listed = None  # it keeps nothing of what has ended
                if worker.is_cancelled or len(self._idle) >= _MOST_IDLE:
                    return
                self._idle.append(worker)
                await trio.lowlevel.wait_task_rescheduled(abort)
