"""What an asynchronous client needs of the library whose loop it runs in."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol


class Closed(Exception):  # noqa: N818 - never leaves the clients
    """A descriptor was closed while a task waited for it."""


class Event(Protocol):
    """Wakes those who wait for it, once."""

    def set(self) -> object:
        """Wake them."""

    async def wait(self) -> object:
        """Wait until it is set."""


class Runtime(ABC):
    """How a task waits: one implementation for trio, one for asyncio."""

    #: What is raised in a task that is cancelled.
    cancelled: type[BaseException]

    @abstractmethod
    def now(self) -> float:
        """Return the time by the loop's clock, in seconds."""

    @abstractmethod
    def event(self) -> Event:
        """Return a new event."""

    @abstractmethod
    def semaphore(self, count: int) -> AbstractAsyncContextManager[object]:
        """Return what lets ``count`` tasks in at once."""

    @abstractmethod
    async def checkpoint(self) -> None:
        """Let other tasks run, and this one be cancelled."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Wait for some seconds."""

    @abstractmethod
    async def readable(self, fileno: int) -> None:
        """Wait until a descriptor can be read from; Closed where it is closed meanwhile.

        One task at a time waits for a descriptor.
        """

    @abstractmethod
    def closing(self, fileno: int) -> None:
        """Wake who waits for a descriptor that is about to be closed."""

    @abstractmethod
    async def within(self, seconds: float, wait: Callable[[], Awaitable[None]]) -> None:
        """Wait for something, for ``seconds`` at most."""

    @abstractmethod
    async def in_thread(self, function: Callable[[], object]) -> None:
        """Call a function in a thread; wait for its end also where this is cancelled."""
