"""Clients of the daemon for the loops in which a file system is used: one for each."""

import asyncio
import os
import threading
from contextlib import AbstractAsyncContextManager
from functools import partial

from vuserd.client import AsyncioClient


class Connections:
    """Connects where there is no client yet; a loop that ends closes what it has.

    Args:
        socket: of the daemon, as a client takes it.
        timeout: seconds for each answer; None is any number.

    """

    def __init__(self, socket: str | None, timeout: float | None) -> None:
        self._connect = partial(AsyncioClient.connect, socket, timeout=timeout)
        self._of_loops: dict[asyncio.AbstractEventLoop, _Connection] = {}

    def close(self) -> None:
        """Close what is left; the child of a fork leaves its parent's alone."""
        for connection in [*self._of_loops.values()]:
            if connection.client is not None and connection.process == os.getpid():
                connection.client.close()

    async def client(self) -> AsyncioClient:
        """Return the client of the loop that runs; CannotConnect where there is no daemon."""
        loop = asyncio.get_running_loop()
        if loop not in self._of_loops:
            for other in [*self._of_loops]:  # a copy: loops of other threads come and go
                if other.is_closed():
                    self._of_loops.pop(other, None)
            self._of_loops[loop] = _Connection()
        connection = self._of_loops[loop]
        async with connection.lock:
            if connection.client is None:
                # The block that this opens is a generator, which the loop ends when it ends.
                connection.block = self._connect()
                connection.client = await connection.block.__aenter__()
        return connection.client


def loop_in_a_thread() -> asyncio.AbstractEventLoop:
    """Return a loop that runs in a new thread: older fsspecs make none in the child of a fork."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="vuserd", daemon=True).start()
    return loop


class _Connection:
    """A client, once there is one."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.lock = asyncio.Lock()
        self.client: AsyncioClient | None = None
        self.block: AbstractAsyncContextManager[AsyncioClient] | None = None
