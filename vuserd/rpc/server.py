"""All clients of the daemon: accepted, counted, and seen off when the daemon ends."""

import logging
import socket

import trio

from vuserd.rpc.connection import Connection, ConnectionLimits, Counters
from vuserd.rpc.methods import Methods

_LOG = logging.getLogger(__name__)


class Server:
    """Serves the methods on any number of listeners."""

    def __init__(self, methods: Methods, limits: ConnectionLimits | None = None) -> None:
        self.counters = Counters()
        self._methods = methods
        self._limits = limits or ConnectionLimits()
        self._connections: set[Connection] = set()
        self._accepting = trio.CancelScope()

    @property
    def connections(self) -> int:
        """Clients that are connected."""
        return len(self._connections)

    async def serve(self, listeners: list[trio.SocketListener], drain: float) -> None:
        """Accept and serve until :meth:`stop`, then let calls in progress end within ``drain``."""
        async with trio.open_nursery() as clients:
            with self._accepting:
                await trio.serve_listeners(self._serve_client, listeners, handler_nursery=clients)
            for connection in self._connections:
                connection.shut_down()
            clients.cancel_scope.deadline = trio.current_time() + drain
        if clients.cancel_scope.cancelled_caught:
            _LOG.warning("calls in progress were cut off after %g s", drain)

    def stop(self) -> None:
        """Accept no more clients and no more calls."""
        self._accepting.cancel()

    async def _serve_client(self, stream: trio.SocketStream) -> None:
        sock = socket.socket(fileno=stream.socket.detach())
        connection = Connection(sock, self._methods, self._limits, self.counters)
        self._connections.add(connection)
        if self._accepting.cancel_called:
            connection.shut_down()
        self.counters.connections += 1
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
