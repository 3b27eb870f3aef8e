"""Wake at most 16 readable connections per scheduler pass, however many are readable."""

import select
import socket
from typing import Any, Final

import trio

#: Connections that are woken in one pass of trio's scheduler.
_MOST: Final = 16


class Arrivals:
    """Wakes the tasks of connections that have something to read, or whose client has gone.

    trio runs every task that is ready in one pass: when a thousand connections close at once, all
    other tasks wait for the thousand. Here the connections are in an epoll of their own, and trio
    sees only that one. :meth:`run` has to run. Where there is no descriptor left for an epoll, each
    connection waits with trio directly.
    """

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._waiting: dict[int, trio.lowlevel.Task] = {}

    async def wait_readable(self, sock: socket.socket) -> None:
        """Wait until a socket is readable; only one task at a time may wait for a socket.

        Raises:
            OSError: the kernel has no memory to watch one more.

        """
        epoll, descriptor = self._epoll, sock.fileno()
        if epoll is None:
            await trio.lowlevel.wait_readable(sock)
            return
        epoll.register(descriptor, select.EPOLLIN)

        def abort(_: Any) -> trio.lowlevel.Abort:
            self._forget(epoll, descriptor)
            return trio.lowlevel.Abort.SUCCEEDED

        self._waiting[descriptor] = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    async def run(self) -> None:
        """Wake tasks whose sockets are readable, until cancelled; by then no task may wait."""
        try:
            epoll = select.epoll()
        except OSError:
            return
        with epoll:
            self._epoll = epoll
            try:
                while True:
                    await trio.lowlevel.wait_readable(epoll.fileno())
                    for descriptor, _ in epoll.poll(0, _MOST):
                        trio.lowlevel.reschedule(self._forget(epoll, descriptor))
            finally:
                self._epoll = None

    def _forget(self, epoll: select.epoll, descriptor: int) -> trio.lowlevel.Task:
        epoll.unregister(descriptor)
        return self._waiting.pop(descriptor)
