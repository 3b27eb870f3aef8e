"""Keep the sockets of the daemon's own network namespace as the configuration wants them."""

import logging
import socket
from collections.abc import Iterable, Sequence

import trio

from vuserd.config.model import ListenConfig
from vuserd.errors import ConfigurationError, os_reason
from vuserd.listen.sockets import Bound, listening
from vuserd.rpc.server import Listener, Server

_LOG = logging.getLogger(__name__)


class _Open:
    """A socket that clients are accepted from."""

    def __init__(
        self, config: ListenConfig | None, listener: Listener, bound: Bound | None = None
    ) -> None:
        #: Like ``bound``, None for a socket of the service manager, which stays as it is.
        self.config = config
        self.bound = bound
        self.listener = listener
        self.scope = trio.CancelScope()
        self.closed = trio.Event()


class Listeners:
    """Every socket that the daemon listens on, by its address.

    Args:
        server: serves the clients.
        nursery: runs the tasks that accept them.
        inherited: sockets that the service manager listens on, with their names: they stay open and
            unchanged, whatever the configuration says.

    """

    def __init__(
        self,
        server: Server,
        nursery: trio.Nursery,
        inherited: Iterable[tuple[str, socket.socket]] = (),
    ) -> None:
        self._server = server
        self._nursery = nursery
        self._open: dict[str, _Open] = {}
        for name, sock in inherited:
            address = _address_of(sock)
            _LOG.info("serving on %s, from the service manager (%s)", address, name)
            opened = self._open[address] = _Open(None, Listener(address, sock, inherited=True))
            nursery.start_soon(self._serve, opened)

    @property
    def addresses(self) -> list[str]:
        """The addresses that clients can connect to."""
        return list(self._open)

    def describe(self) -> list[dict[str, object]]:
        """Return the listeners as ``status`` shows them."""
        return [
            {
                "socket": address,
                "activated": opened.config is None,
                "clients": len(self._server.connections(opened.listener)),
            }
            for address, opened in self._open.items()
        ]

    async def apply(self, configs: Sequence[ListenConfig]) -> list[str]:
        """Listen on these sockets and the inherited ones, and no others; return the changes made.

        Raises:
            ConfigurationError: some cannot be bound, or cannot get their mode or group. All others
                are listened on, and none was closed: the administrator needs one to mend it.

        """
        done = []
        problems = []
        wanted = {config.address: config for config in configs}
        for address, config in wanted.items():
            try:
                if change := await self._apply_one(config):
                    done.append(f"socket {address}: {change}")
            except ConfigurationError as error:
                problems.append(str(error))
        if problems:
            raise ConfigurationError("\n".join(problems))
        for address, opened in list(self._open.items()):
            if opened.config is not None and address not in wanted:
                opened.scope.cancel()
                await opened.closed.wait()
                done.append(f"socket {address}: closed")
        return done

    async def _apply_one(self, config: ListenConfig) -> str | None:
        """Listen on a socket as it is configured; return the change made, None if there is none.

        Raises:
            ConfigurationError: it cannot be bound, or cannot get its mode or group.

        """
        current = self._open.get(config.address)
        if current is None:
            await self._nursery.start(self._listen, config)
            return "listening"
        if current.config in (None, config):
            return None
        try:
            assert current.bound is not None
            current.bound.permit(config)
        except OSError as error:
            raise ConfigurationError(f"socket {config.address}: {os_reason(error)}") from error
        current.config = config
        return "other permissions"

    async def _listen(self, config: ListenConfig, task_status: trio.TaskStatus[None]) -> None:
        with listening(config) as bound:
            listener = Listener(config.address, bound.socket)
            opened = self._open[config.address] = _Open(config, listener, bound)
            _LOG.info("serving on %s", config.address)
            task_status.started()
            await self._serve(opened)

    async def _serve(self, opened: _Open) -> None:
        try:
            with opened.scope, opened.listener.socket:
                await self._server.accept(opened.listener)
        finally:
            del self._open[opened.listener.address]
            opened.closed.set()


def _address_of(sock: socket.socket) -> str:
    name = sock.getsockname()
    if isinstance(name, bytes):
        return "@" + name[1:].decode(errors="backslashreplace")
    return str(name)
