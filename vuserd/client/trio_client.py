"""The trio client: what the asynchronous clients need, as trio has it."""

from collections.abc import Awaitable, Callable

import trio

from vuserd.client.async_client import AsyncClient
from vuserd.client.runtime import Closed, Runtime


class _TrioRuntime(Runtime):
    cancelled = trio.Cancelled

    def now(self) -> float:
        return trio.current_time()

    def event(self) -> trio.Event:
        return trio.Event()

    def semaphore(self, count: int) -> trio.Semaphore:
        return trio.Semaphore(count)

    # As they are: each call of the daemon is a checkpoint, and a wrapper's cost shows.
    checkpoint = staticmethod(trio.lowlevel.checkpoint)
    sleep = staticmethod(trio.sleep)

    async def readable(self, fileno: int) -> None:
        try:
            await trio.lowlevel.wait_readable(fileno)
        except trio.ClosedResourceError:
            raise Closed from None

    def closing(self, fileno: int) -> None:
        trio.lowlevel.notify_closing(fileno)

    async def within(self, seconds: float, wait: Callable[[], Awaitable[None]]) -> None:
        with trio.move_on_after(seconds):
            await wait()

    async def in_thread(self, function: Callable[[], object]) -> None:
        await trio.to_thread.run_sync(function)


class TrioClient(AsyncClient):
    """A connection to the daemon: ``async with TrioClient.connect() as client: ...``.

    Every call may raise a :class:`vuserd.client.errors.ClientError`, mostly a RemoteError with the
    daemon's answer.  A cancelled call leaves the connection and all other calls as they are.  Of
    whole files 48 are taken at once, and others wait for one of these.

    A restart of the daemon goes unnoticed, as with :class:`vuserd.client.Client`, which tells what
    becomes of a call then.
    """

    _make_runtime = _TrioRuntime
