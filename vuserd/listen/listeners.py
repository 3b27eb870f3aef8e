"""Keep the sockets of the daemon's own network namespace as the configuration wants them."""

import contextlib
import logging
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence

import trio

from vuserd.config.accounts import with_group
from vuserd.config.model import ListenConfig
from vuserd.errors import ConfigurationError, os_reason
from vuserd.listen.sockets import Bound, listening
from vuserd.rpc.server import Listener, Server
from vuserd.tasks.pauses import pauses
from vuserd.tasks.threads import in_thread

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

    One that cannot be had, or not with its mode and group, keeps none of the others from being
    listened on. It is tried again by :meth:`run`.

    Args:
        server: serves the clients.
        nursery: runs the tasks that accept them.
        inherited: sockets that the service manager listens on, with their names: they stay open and
            unchanged, whatever the configuration says.
        on_change: called when a socket has failed, or has no longer.

    """

    def __init__(
        self,
        server: Server,
        nursery: trio.Nursery,
        inherited: Iterable[tuple[str, socket.socket]] = (),
        on_change: Callable[[], object] = lambda: None,
    ) -> None:
        self._server = server
        self._nursery = nursery
        self._on_change = on_change
        self._open: dict[str, _Open] = {}
        self._wanted: dict[str, ListenConfig] = {}
        #: Why a socket is not there, or not as it is configured.
        self._problems: dict[str, str] = {}
        #: Held by the task that opens and closes sockets: a reload, or :meth:`run`.
        self._changing = trio.Lock()
        self._changed = trio.Event()
        for name, sock in inherited:
            address = _address_of(sock)
            _LOG.info("serving on %s, from the service manager (%s)", address, name)
            opened = self._open[address] = _Open(None, Listener(address, sock, inherited=True))
            nursery.start_soon(self._serve, opened)

    @property
    def addresses(self) -> list[str]:
        """The addresses that clients can connect to."""
        return list(self._open)

    @property
    def problems(self) -> Mapping[str, str]:
        """Why sockets are not there, or not as they are configured, by their addresses."""
        return self._problems

    def describe(self) -> list[dict[str, object]]:
        """Return the listeners as ``status`` shows them."""
        described: list[dict[str, object]] = []
        for address in dict.fromkeys((*self._open, *self._problems)):
            opened = self._open.get(address)
            reason = self._problems.get(address)
            row: dict[str, object] = {
                "socket": address,
                "state": "failed" if opened is None else "listening",
                "activated": opened is not None and opened.config is None,
                "clients": len(self._server.connections(opened.listener)) if opened else 0,
            }
            described.append(row | ({"reason": reason} if reason else {}))
        return described

    async def apply(self, configs: Sequence[ListenConfig]) -> list[str]:
        """Listen on these sockets and the inherited ones, and no others; return the changes made.

        Where none of these can be had, none is closed: the administrator needs one to mend it.
        """
        async with self._changing:
            self._wanted = {config.address: config for config in configs}
            done = await self._try(self._wanted)
        self._changed.set()
        return done

    async def run(self) -> None:
        """Try again what has failed, after longer and longer pauses, until cancelled."""
        while True:
            self._changed, later = trio.Event(), pauses()
            while self._problems and not self._changed.is_set():
                with trio.move_on_after(next(later)):
                    await self._changed.wait()
                async with self._changing:
                    for line in await self._try([*self._problems]):
                        _LOG.debug("%s", line)
            await self._changed.wait()

    def _note(self, problems: dict[str, str]) -> None:
        """Log what was not known yet, unless the start fails and says it; tell of changes."""
        known, self._problems = self._problems, problems
        for address, reason in problems.items():
            if self._open and known.get(address) != reason:
                _LOG.error("%s; it is tried again", reason)
        if known.keys() != problems.keys():
            self._on_change()

    async def _try(self, addresses: Iterable[str]) -> list[str]:
        """Open or alter these sockets as wanted, and close others; return the changes."""
        done = []
        problems: dict[str, str] = {}
        for address in addresses:
            try:
                change = await self._apply_one(self._wanted[address])
            except ConfigurationError as error:
                problems[address] = change = str(error)
            except OSError as error:
                problems[address] = change = f"cannot listen on {address}: {os_reason(error)}"
            if change:
                done.append(f"socket {address}: {change}")
        is_reachable = any(
            opened.config is None or address in self._wanted
            for address, opened in self._open.items()
        )
        for address, opened in list(self._open.items()):
            if is_reachable and opened.config is not None and address not in self._wanted:
                await self._close(opened)
                done.append(f"socket {address}: closed")
        self._note(problems)
        return done

    async def _apply_one(self, config: ListenConfig) -> str | None:
        """Listen on a socket as it is configured; return the change made, None if there is none.

        Raises:
            ConfigurationError: it cannot be bound, or cannot get its mode or group.

        """
        if config.missing is not None:
            config = await in_thread(with_group, config)
            if config.missing is not None:
                raise ConfigurationError(f"socket {config.address}: {config.missing}")
        current = self._open.get(config.address)
        if current is None:
            await self._nursery.start(self._listen, config)
            return "listening"
        if current.bound is None:
            return None
        change = None
        if current.config != config:
            try:
                current.bound.permit(config)
            except OSError as error:
                raise ConfigurationError(f"socket {config.address}: {os_reason(error)}") from error
            current.config, change = config, "other permissions"
        if not await in_thread(current.bound.is_at, config.address, abandon_on_cancel=True):
            await self._nursery.start(self._listen, config)
            await self._close(current)
            change = "listening again: its file was removed"
        return change

    async def _listen(self, config: ListenConfig, task_status: trio.TaskStatus[None]) -> None:
        with contextlib.ExitStack() as stack:  # in a thread, since locks and folders may be slow
            bound = await in_thread(stack.enter_context, listening(config))
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
            # Another one has the address where the first one's file was removed.
            if self._open.get(opened.listener.address) is opened:
                del self._open[opened.listener.address]
            opened.closed.set()

    async def _close(self, opened: _Open) -> None:
        opened.scope.cancel()
        await opened.closed.wait()


def _address_of(sock: socket.socket) -> str:
    name = sock.getsockname()
    if isinstance(name, bytes):
        return "@" + name[1:].decode(errors="backslashreplace")
    return str(name)
