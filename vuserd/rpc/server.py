"""All clients of the daemon: accepted, counted, and seen off when the daemon ends."""

import contextlib
import errno
import functools
import logging
import os
import socket
from collections.abc import Container, Sequence
from typing import Final, NamedTuple

import trio

from vuserd.config.model import ClientLimits
from vuserd.errors import CallError, ConfigurationError, ErrorCode, os_reason
from vuserd.exports.together import Together
from vuserd.rpc.access import Origin, Peer, Rights, netns_cookie
from vuserd.rpc.accounts import Account, Accounts
from vuserd.rpc.connection import Connection
from vuserd.rpc.counters import Counters
from vuserd.rpc.methods.table import Methods
from vuserd.rpc.peer_log import PeerLog
from vuserd.tasks.hub import Hub
from vuserd.tasks.workers import Workers
from vuserd.users.foreign_descriptors import ForeignDescriptors
from vuserd.wire.codec import encode_notification

_LOG = logging.getLogger(__name__)

#: accept() fails so where the socket itself is of no use; all else passes (accept(2)).
_USELESS: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP})
#: Seconds for it to pass: for descriptors to come back, say. Clients wait in the socket's queue.
_PAUSE: Final = 0.1
_LOG_PAUSE: Final = 60.0


class Listener(NamedTuple):
    """A socket that clients connect to, and what is behind it."""

    address: str
    socket: socket.socket
    #: The network namespace that it is in; None for the daemon's own.
    rig: str | None = None
    #: The exports that may be seen through it; None for all.
    exports: Container[str] | None = None
    #: Whether it is the service manager's, which goes on listening when this process ends.
    inherited: bool = False


class Server:
    """Serves the methods to the clients of any number of listeners.

    Args:
        methods: what may be called.
        limits: of each client and user.
        most_connections: of all users; beyond them root, the daemon's user and those who have none
            may connect, so that one person with many uids cannot shut the others out.

    """

    def __init__(
        self, methods: Methods, limits: ClientLimits, most_connections: int | None = None
    ) -> None:
        self._most_connections = most_connections
        self.counters = Counters()
        #: For those who connect from now on.
        self.limits = limits
        self._methods = methods
        self._accounts = Accounts()
        self._hub: Hub | None = None
        self._together = Together()
        #: For clients of whom not even the user is known.
        self._unknown = ForeignDescriptors(limits.user_descriptors)
        self._connections: dict[Connection, Listener] = {}
        self._open = trio.Event()
        self._stopped = False
        self._drain = 0.0
        #: Set when the last client is gone, after :meth:`stop`.
        self.ended = trio.Event()
        self._stop = trio.Event()
        self._accepting: dict[trio.CancelScope, Listener] = {}
        self._workers: Workers | None = None
        self._last_is_gone = trio.lowlevel.ParkingLot()
        self._next_complaint = 0.0
        self._without_groups = PeerLog(
            logging.WARNING, "supplementary groups of %s do not count: %s%s"
        )

    def connections(self, listener: Listener | None = None) -> Sequence[Connection]:
        """Return the clients that are connected: all, or those of one listener."""
        return [
            connection
            for connection, origin in self._connections.items()
            if listener is None or origin is listener
        ]

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Serve clients until :meth:`stop`.

        Raises:
            ConfigurationError: there is no descriptor to watch clients with.

        """
        try:
            self._hub = Hub(self._accounts.turns, self._together.begin)
        except OSError as error:
            raise ConfigurationError(
                f"clients cannot be watched: {os_reason(error)}; see RLIMIT_NOFILE"
            ) from error
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._accounts.turns.run)
                async with trio.open_nursery() as working:
                    self._workers = Workers(working)
                    nursery.start_soon(self._hub.run, self._workers)
                    task_status.started()
                    await self._stop.wait()
                    await self._drain_clients()
                    self._hub.stop()  # it would have work for tasks that are about to end
                    working.cancel_scope.cancel()
                nursery.cancel_scope.cancel()
        finally:
            async with trio.open_nursery() as closing:
                closing.cancel_scope.shield = True
                for connection in self.connections():  # whose calls were cut off
                    closing.start_soon(connection.close)
            self._hub.close()
        self.ended.set()

    async def _drain_clients(self) -> None:
        """See all clients off, within the time that they have."""
        while self._accepting:
            scope, listener = self._accepting.popitem()
            self._accept_last(listener)
            scope.cancel()
        for connection in self.connections():
            connection.shut_down("the daemon is about to end")
        with trio.move_on_after(self._drain) as draining:
            while self._connections:
                await self._last_is_gone.park()
        if draining.cancelled_caught:
            _LOG.warning("calls in progress were cut off after %g s", self._drain)
            for connection in self.connections():
                connection.cut_off()

    def open(self) -> None:
        """Begin to accept clients; until now they wait in the queues of their sockets."""
        self._open.set()

    def stop(self, drain: float) -> None:
        """Accept no more clients and calls; those in progress may take ``drain`` seconds."""
        self._drain = drain
        self._stopped = True
        self._stop.set()

    async def accept(self, listener: Listener) -> None:
        """Accept the clients of a listener until cancelled; its clients are seen off then."""
        if self._stopped:
            return
        with trio.CancelScope() as scope:
            self._accepting[scope] = listener
            try:
                await self._open.wait()
                await self._accept(listener)
            finally:
                if self._accepting.pop(scope, None) is not None:
                    self._accept_last(listener)
                for connection in self.connections(listener):
                    connection.shut_down(f"{listener.address} is closed")

    async def _accept(self, listener: Listener) -> None:
        while True:
            try:
                await trio.lowlevel.wait_readable(listener.socket)
                if self._stopped:
                    return
                sock, _ = listener.socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:
                if error.errno in _USELESS:
                    raise
                self._complain(error)
                await trio.sleep(_PAUSE)
            else:
                self._admit(sock, listener)

    def _accept_last(self, listener: Listener) -> None:
        """Accept those who wait in the queue of a socket that is about to be closed.

        They may have sent requests already, and could not tell which of these were taken. Where the
        socket is this process's own, nobody gets into the queue any more; that of a service
        manager's stays open and goes on with the next daemon. A server that never opened takes
        nobody: it could answer nothing, and the next daemon can.
        """
        if not self._open.is_set():
            return
        with contextlib.suppress(OSError):
            if not listener.inherited:
                listener.socket.shutdown(socket.SHUT_RD)
            while True:
                sock, _ = listener.socket.accept()
                self._admit(sock, listener)

    def _complain(self, error: OSError) -> None:
        now = trio.current_time()
        if now >= self._next_complaint:
            self._next_complaint = now + _LOG_PAUSE
            _LOG.warning("no client can be accepted for now: %s", os_reason(error))

    def _require_room(self, peer: Peer, account: Account) -> None:
        """Leave the last connections to those who manage the daemon, or have none.

        Raises:
            CallError: BUSY.

        """
        most = self._most_connections
        if most is None or len(self._connections) < most or not account.connections:
            return
        if peer.uid not in (0, os.geteuid()) or account.rig is not None:
            raise CallError(
                ErrorCode.BUSY,
                f"all users together have {len(self._connections)} connections, and the rest is"
                " for those who have none",
                limit=most,
            )

    def _namespace_of(self, sock: socket.socket, listener: Listener) -> str:
        """Return in which network namespace a client is, in the words of :class:`Origin`."""
        theirs, ours = netns_cookie(sock), netns_cookie(listener.socket)
        if theirs is None or ours is None or theirs == ours:
            return "unknown" if theirs is None or ours is None else "same"
        rigs = [other.socket for other in self._accepting.values() if other.rig is not None]
        return "rig" if theirs in map(netns_cookie, rigs) else "other"

    def _admit(self, sock: socket.socket, listener: Listener) -> None:
        """Serve a client that has connected, or tell it why not."""
        sock.setblocking(False)  # noqa: FBT003 - the name is the standard library's
        try:
            peer = Peer.of(sock)
        except OSError as error:
            _LOG.warning("a client was dropped whose user is not known: %s", os_reason(error))
            self._unknown.close_socket(sock)
            return
        if peer.without_groups is not None:
            self._without_groups.note(peer, peer.without_groups)
        account = self._accounts.of(peer.uid, listener.rig, self.limits)
        try:
            self._require_room(peer, account)
            account.enter()
        except CallError as refusal:
            self._methods.refusals.note(peer, str(refusal))
            with contextlib.suppress(OSError):
                sock.send(encode_notification("error", [refusal.to_wire()]), socket.MSG_NOSIGNAL)
            account.foreign.close_socket(sock)
            return
        assert self._hub is not None
        assert self._workers is not None
        origin = Origin(listener.address, listener.rig, self._namespace_of(sock, listener))
        connection = Connection(
            sock,
            self._methods,
            self.limits,
            self.counters,
            account,
            Rights(peer, listener.exports, origin),
            self._hub,
            self._workers,
            self._together,
            functools.partial(self._forget, account),
        )
        try:
            self._hub.add(connection)
        except OSError as error:
            self._complain(error)
            account.foreign.close_socket(sock)
            account.leave()
            return
        self._connections[connection] = listener
        self.counters.connections += 1
        if self._stopped:
            connection.shut_down("the daemon is about to end")
        elif all(listener is not accepting for accepting in self._accepting.values()):
            connection.shut_down(f"{listener.address} is closed")

    def _forget(self, account: Account, connection: Connection) -> None:
        """Stop counting a client of whom nothing is left."""
        del self._connections[connection]
        account.leave()
        if not self._connections:
            self._last_is_gone.unpark_all()
