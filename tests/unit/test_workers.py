"""Workers: tasks that outlive their jobs, and end with those that are cancelled."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from vuserd.tasks.workers import _MOST_IDLE, Worker, Workers


def noting(tasks: list[trio.lowlevel.Task], until: trio.Event) -> Callable[[], Awaitable[None]]:
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
