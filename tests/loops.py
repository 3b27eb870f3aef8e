"""The asynchronous clients in their loops, with the same words for tasks."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ClassVar, Final, Protocol, TypeVar

import trio
from trio.testing import wait_all_tasks_blocked

from vuserd.client import AsyncioClient, TrioClient
from vuserd.client.async_client import AsyncClient

T = TypeVar("T")


class Task(Protocol):
    """A task that was started."""

    def cancel(self) -> object: ...

    def cancelled(self) -> bool:
        """Return whether it ended by that."""


class Group(Protocol):
    """Tasks; all end with the block."""

    def start(self, function: Callable[..., Awaitable[object]], *arguments: Any) -> Task: ...


class Loop(ABC):
    """A library for asynchronous programs."""

    client: ClassVar[type[AsyncClient]]

    @abstractmethod
    def run(self, main: Callable[[], Awaitable[T]]) -> T: ...

    @abstractmethod
    def group(self) -> AbstractAsyncContextManager[Group]: ...

    @abstractmethod
    async def settle(self) -> None:
        """Wait until all other tasks wait for something."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None: ...

    async def forever(self) -> None:
        await self.sleep(3600)


class _TrioTask:
    def __init__(self) -> None:
        self.scope = trio.CancelScope()

    def cancel(self) -> None:
        self.scope.cancel()

    def cancelled(self) -> bool:
        return self.scope.cancelled_caught


class _TrioGroup:
    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start(self, function: Callable[..., Awaitable[object]], *arguments: Any) -> Task:
        async def run() -> None:
            with task.scope:
                await function(*arguments)

        task = _TrioTask()
        self._nursery.start_soon(run)
        return task


class TrioLoop(Loop):
    client = TrioClient

    def run(self, main: Callable[[], Awaitable[T]]) -> T:
        return trio.run(main)

    @asynccontextmanager
    async def group(self) -> AsyncIterator[Group]:
        async with trio.open_nursery() as nursery:
            yield _TrioGroup(nursery)

    async def settle(self) -> None:
        await wait_all_tasks_blocked()

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


class _AsyncioGroup:
    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group

    def start(self, function: Callable[..., Awaitable[object]], *arguments: Any) -> Task:
        async def run() -> None:
            await function(*arguments)

        return self._group.create_task(run())


class AsyncioLoop(Loop):
    client = AsyncioClient

    def run(self, main: Callable[[], Awaitable[T]]) -> T:
        async def run() -> T:
            return await main()

        return asyncio.run(run(), debug=True)

    @asynccontextmanager
    async def group(self) -> AsyncIterator[Group]:
        async with asyncio.TaskGroup() as group:
            yield _AsyncioGroup(group)

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


LOOPS: Final = {"trio": TrioLoop(), "asyncio": AsyncioLoop()}
