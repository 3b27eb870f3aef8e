"""Workers: tasks that outlive their jobs, and end with those that are cancelled."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from vuserd.tasks.workers import _MOST_IDLE, Job, Worker, Workers


def noting(tasks: list[trio.lowlevel.Task], until: trio.Event) -> Job:
    async def job() -> None:
        tasks.append(trio.lowlevel.current_task())
        await until.wait()

    return job


@pytest.fixture
def over() -> trio.Event:
    event = trio.Event()
    event.set()
    return event


async def test_a_task_runs_one_job_after_the_other(nursery: trio.Nursery, over: trio.Event) -> None:
    workers, tasks, listed = Workers(nursery), list[trio.lowlevel.Task](), set[Worker]()
    for _ in range(3):
        workers.start(noting(tasks, over), listed)
        assert len(listed) == 1
        await wait_all_tasks_blocked()
        assert not listed
    assert len(set(tasks)) == 1
    nursery.cancel_scope.cancel()


async def test_jobs_at_once_have_tasks_of_their_own(nursery: trio.Nursery) -> None:
    workers, tasks, go_on = Workers(nursery), list[trio.lowlevel.Task](), trio.Event()
    for _ in range(3 * _MOST_IDLE):
        workers.start(noting(tasks, go_on), set())
    await wait_all_tasks_blocked()
    assert len(set(tasks)) == len(tasks)
    go_on.set()
    await wait_all_tasks_blocked()
    assert len(nursery.child_tasks) == _MOST_IDLE
    nursery.cancel_scope.cancel()


async def test_a_cancelled_job_takes_its_task_along(
    nursery: trio.Nursery, over: trio.Event
) -> None:
    workers, tasks, listed = Workers(nursery), list[trio.lowlevel.Task](), set[Worker]()
    workers.start(noting(tasks, trio.Event()), listed)
    await wait_all_tasks_blocked()
    for worker in listed:
        worker.cancel()
    await wait_all_tasks_blocked()
    assert not listed
    assert not nursery.child_tasks
    workers.start(noting(tasks, over), listed)
    await wait_all_tasks_blocked()
    assert len(set(tasks)) == 2
    nursery.cancel_scope.cancel()


async def test_a_job_that_is_cancelled_before_it_began(nursery: trio.Nursery) -> None:
    """It runs to where it waits first: so what it was given is given back."""
    workers, tasks, listed, over = Workers(nursery), list[trio.lowlevel.Task](), set[Worker](), 2
    for _ in range(over):
        workers.start(noting(tasks, trio.Event()), listed)
        for worker in listed:
            worker.cancel()
        await wait_all_tasks_blocked()
    assert len(tasks) == over
    assert not listed
    nursery.cancel_scope.cancel()


class Jobs:
    """Brings jobs to workers, some at a time, and knows who waited for them."""

    def __init__(self, workers: Workers) -> None:
        self.listed: set[Worker] = set()
        self.leaders: list[trio.lowlevel.Task] = []
        self._workers = workers
        self._send, self._come = trio.open_memory_channel[list[Job]](9)
        self._coming: list[Job] = []
        workers.lead(self._wait, self._start)

    def bring(self, *jobs: Job) -> None:
        self._send.send_nowait([*jobs])

    async def _wait(self) -> None:
        self.leaders.append(trio.lowlevel.current_task())
        self._coming = await self._come.receive()

    def _start(self) -> None:
        for job in self._coming:
            self._workers.start(job, self.listed)


async def test_a_leader_does_what_does_not_wait_itself(nursery: trio.Nursery) -> None:
    tasks: list[trio.lowlevel.Task] = []
    jobs = Jobs(Workers(nursery))

    async def job() -> None:
        assert len(jobs.listed) == 1
        tasks.append(trio.lowlevel.current_task())

    for _ in range(3):
        jobs.bring(job)
        await wait_all_tasks_blocked()
        assert not jobs.listed
    assert set(tasks) == set(jobs.leaders)
    assert len(set(tasks)) == len(nursery.child_tasks) == 1
    nursery.cancel_scope.cancel()


async def test_another_one_leads_while_a_job_waits(nursery: trio.Nursery) -> None:
    tasks, go_on = list[trio.lowlevel.Task](), trio.Event()
    jobs = Jobs(Workers(nursery))
    for _ in range(4):
        jobs.bring(noting(tasks, go_on))
        await wait_all_tasks_blocked()
    assert len(jobs.listed) == len(set(tasks)) == 4
    assert [*dict.fromkeys(jobs.leaders)][:4] == tasks
    go_on.set()
    await wait_all_tasks_blocked()
    assert not jobs.listed
    assert len(nursery.child_tasks) == 5
    nursery.cancel_scope.cancel()


async def test_of_several_none_is_ahead(nursery: trio.Nursery) -> None:
    """A leader that began the first one at once would serve some clients twice as often."""
    tasks, go_on = list[trio.lowlevel.Task](), trio.Event()
    jobs = Jobs(Workers(nursery))
    jobs.bring(*[noting(tasks, go_on)] * 3)
    await wait_all_tasks_blocked()
    assert {worker.task for worker in jobs.listed} == set(tasks)
    assert len(set(tasks)) == 3
    assert set(jobs.leaders).isdisjoint(tasks)
    go_on.set()
    await wait_all_tasks_blocked()
    assert not jobs.listed
    nursery.cancel_scope.cancel()


async def test_the_first_of_several_is_cancelled_before_the_second_comes(
    nursery: trio.Nursery,
) -> None:
    tasks: list[trio.lowlevel.Task] = []
    workers = Workers(nursery)
    first, second = set[Worker](), set[Worker]()
    come, never = trio.Event(), trio.Event()

    def start() -> None:
        workers.start(noting([], never), first)
        for worker in first:
            worker.cancel()
        workers.start(noting(tasks, never), second)
        workers.lead(trio.sleep_forever, lambda: None)

    workers.lead(come.wait, start)
    await wait_all_tasks_blocked()
    come.set()
    await wait_all_tasks_blocked()
    assert not first
    assert [worker.task for worker in second] == tasks
    nursery.cancel_scope.cancel()


async def test_a_job_of_a_leaders_is_its_task(nursery: trio.Nursery) -> None:
    """What a job waits with belongs to its task, from its first step to its end."""
    seen, over = list[object](), trio.Event()
    jobs = Jobs(Workers(nursery))

    async def job() -> None:
        seen.append(trio.lowlevel.current_task())
        with trio.move_on_after(0) as scope:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                seen.append("cancelled")
                raise
        assert scope.cancelled_caught
        async with trio.open_nursery() as inner:
            inner.start_soon(trio.lowlevel.checkpoint)
        try:
            await trio.to_thread.run_sync(int, "no number")
        except ValueError:
            seen.append(trio.lowlevel.current_task())
        over.set()

    jobs.bring(job)
    with trio.fail_after(60):
        await over.wait()
    assert seen == [jobs.leaders[0], "cancelled", jobs.leaders[0]]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("waits", [True, False])
async def test_a_leader_whose_job_is_cancelled_leads_no_more(
    nursery: trio.Nursery, over: trio.Event, *, waits: bool
) -> None:
    tasks: list[trio.lowlevel.Task] = []
    jobs = Jobs(Workers(nursery))

    async def job() -> None:
        for worker in jobs.listed:
            worker.cancel()
        if waits:
            await trio.sleep_forever()

    jobs.bring(job)
    await wait_all_tasks_blocked()
    assert not jobs.listed
    jobs.bring(noting(tasks, over))
    await wait_all_tasks_blocked()
    assert jobs.leaders[0] is not jobs.leaders[1] is tasks[0]
    nursery.cancel_scope.cancel()
