"""Clients for several threads: each has one for as long as it needs it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from vuserd.client.core.owner import Owner
from vuserd.client.core.reconnect import PATIENCE
from vuserd.client.sync_client import Client


class ClientPool:
    """Connections that threads share: ``with pool.client() as client: ...``.

    Args:
        address: of the daemon, as :meth:`vuserd.client.Client.connect` takes it.
        size: the most clients at once; a thread waits for one that another gives back.
        timeout: seconds for each answer, for each client; None is any number.
        reconnect: seconds in which a call may look for the daemon's successor.

    A client is connected when none is left, and kept for the next thread unless its connection has
    ended, or something is left on it: an unfinished call, attached memory, a walk. The child of a
    fork has a pool without clients.

    """

    def __init__(
        self,
        address: str | None = None,
        *,
        size: int = 8,
        timeout: float | None = None,
        reconnect: float = PATIENCE,
    ) -> None:
        if size < 1:
            raise ValueError(f"a pool of {size} clients")
        self._address, self._timeout, self._reconnect = address, timeout, reconnect
        self._size = size
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._idle: list[Client] = []  # append() and pop() are whole, whatever thread does them
        self._room = threading.BoundedSemaphore(self._size)
        self._owner = Owner()

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Lend a client to this thread; CannotConnect where there is no daemon.

        Raises RuntimeError once the pool is closed.
        """
        if not self._owner.is_of_this_process:
            self._begin()
        with self._room:
            client = self._take()
            try:
                yield client
            finally:
                self._give_back(client)

    def close(self) -> None:
        """Close the clients: those that are lent when they come back."""
        self._closed = True
        with suppress(IndexError):  # no more of them, or another thread has taken the last one
            while True:
                self._idle.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _take(self) -> Client:
        if self._closed:
            raise RuntimeError("the pool is closed")
        try:
            client = self._idle.pop()
        except IndexError:
            return Client.connect(self._address, timeout=self._timeout, reconnect=self._reconnect)
        client._talk.owner = Owner()  # noqa: SLF001 - no other thread has it
        return client

    def _give_back(self, client: Client) -> None:
        talk = client._talk  # noqa: SLF001
        if talk.owner.is_of_this_process and talk.is_unused:
            self._idle.append(client)
        else:
            client.close()
        if self._closed:
            self.close()
