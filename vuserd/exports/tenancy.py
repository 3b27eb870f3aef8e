"""A backend's time, in a task of its own: a session that moves to another one outlives it."""

from contextlib import AbstractAsyncContextManager

import trio

from vuserd.backend.base import Backend


class Tenancy:
    """The time from a backend's start to its end; made by :func:`let_in`."""

    backend: Backend

    def __init__(self, starting: AbstractAsyncContextManager[Backend]) -> None:
        self._starting = starting
        self._ends = trio.Event()
        self._over = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Start the backend and keep it until its end, whatever is cancelled before."""
        try:
            async with self._starting as self.backend:
                task_status.started()
                # The task that was to end it may have given up waiting for it meanwhile.
                await trio.lowlevel.checkpoint_if_cancelled()
                with trio.CancelScope(shield=True):
                    await self._ends.wait()
        finally:
            self._over.set()

    def ends(self) -> None:
        """End the backend soon."""
        self._ends.set()

    async def end(self) -> None:
        """End the backend, and wait for that."""
        self._ends.set()
        await self._over.wait()


async def let_in(nursery: trio.Nursery, starting: AbstractAsyncContextManager[Backend]) -> Tenancy:
    """Start a backend in a task of ``nursery``; the caller has to end it.

    Raises:
        BackendError: it does not start.

    """
    tenancy = Tenancy(starting)
    try:
        await nursery.start(tenancy.run)
    except BaseException:  # cancelled, it may have begun all the same
        tenancy.ends()
        raise
    return tenancy
