"""Which of a crowd of connections has something to read: a few of them in each pass of trio's."""

import select
import socket
from typing import Any, Final

import trio

#: Connections that go on in one pass of trio's scheduler.
_MOST: Final = 16


class Arrivals:
    """Wakes the tasks of connections that have something to read, or whose client has gone.

    trio goes on with every task that can, in one pass: where a thousand connections are closed at
    once, whoever else has something to do waits for the thousand. Here they are in an epoll of
    their own, and trio sees that one. :meth:`run` has to run; without an epoll, for want of a
    descriptor, all goes on as trio has it.
    """

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._waiting: dict[int, trio.lowlevel.Task] = {}

    async def wait_readable(self, sock: socket.socket) -> None:
        """Wait until a socket can be read; only one task may wait for it.

        Raises:
            OSError: the kernel has no memory for one more to wait for.

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
        """Wake who can read, until cancelled; nobody may wait by then."""
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
