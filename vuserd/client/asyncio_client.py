"""The asyncio client: what the asynchronous clients need, as asyncio has it."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress

from vuserd.client.async_client import AsyncClient
from vuserd.client.runtime import Closed, Runtime


class _AsyncioRuntime(Runtime):
    """The loop that runs where it is made."""

    cancelled = asyncio.CancelledError

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        #: Descriptors that are waited for.
        self._awaited: dict[int, asyncio.Future[None]] = {}

    def now(self) -> float:
        return self._loop.time()

    def event(self) -> asyncio.Event:
        return asyncio.Event()

    def semaphore(self, count: int) -> asyncio.Semaphore:
        return asyncio.Semaphore(count)

    async def checkpoint(self) -> None:
        await asyncio.sleep(0)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def readable(self, fileno: int) -> None:
        self._awaited[fileno] = future = self._loop.create_future()
        self._loop.add_reader(fileno, self._settle, fileno, None)
        try:
            await future
        finally:
            self._settle(fileno, None, future)

    def closing(self, fileno: int) -> None:
        self._settle(fileno, Closed())

    def _settle(
        self, fileno: int, error: Exception | None, only: "asyncio.Future[None] | None" = None
    ) -> None:
        """Stop watching a descriptor, whose number may soon be another's; wake its task."""
        future = self._awaited.get(fileno)
        if future is None or only not in (None, future):
            return
        del self._awaited[fileno]
        self._loop.remove_reader(fileno)
        if future.done():  # it was cancelled
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    async def within(self, seconds: float, wait: Callable[[], Awaitable[None]]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await wait()

    async def in_thread(self, function: Callable[[], object]) -> None:
        """Call a function in a thread of the loop's executor.

        Raises:
            RuntimeError: there is no thread to be had; it is not called then.

        """
        called: Future[None] = Future()
        try:
            future = self._loop.run_in_executor(None, _call, function, called)
        except RuntimeError:  # the executor has it all the same, for a thread that is busy
            if called.cancel():
                raise
            future = asyncio.wrap_future(called, loop=self._loop)  # that was quick
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            future.exception()  # or asyncio tells that nobody asked for it
            raise cancelled
        future.result()


def _call(function: Callable[[], object], called: "Future[None]") -> None:
    """Call a function, unless ``called`` was cancelled, and settle that."""
    if not called.set_running_or_notify_cancel():
        return
    try:
        function()
    except BaseException as error:
        called.set_exception(error)
        raise
    else:
        called.set_result(None)
    finally:
        del called  # which its error's traceback refers to


class AsyncioClient(AsyncClient):
    """A connection to the daemon: ``async with AsyncioClient.connect() as client: ...``.

    It belongs to the loop that it was made in.

    Every call may raise a :class:`vuserd.client.errors.ClientError`, mostly a RemoteError with the
    daemon's answer.  A cancelled call (a task's ``cancel()``, ``asyncio.timeout``) leaves the
    connection and all other calls as they are.  Of whole files 48 are taken at once, and others
    wait for one of these.

    A restart of the daemon goes unnoticed, as with :class:`vuserd.client.Client`, which tells what
    becomes of a call then.
    """

    _make_runtime = _AsyncioRuntime
