"""Listen inside rigs: network namespaces that come and go while the daemon serves.

An abstract unix socket belongs to the network namespace that it was made in (unix(7)): only the
processes of that namespace can reach it, and its name is all they need.
"""

import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from vuserd.config.model import RigConfig
from vuserd.errors import os_reason
from vuserd.listen.namespaces import unix_socket_in
from vuserd.rpc.access import Rights
from vuserd.rpc.server import Listener, Server
from vuserd.tasks.threads import in_thread
from vuserd.wire.address import to_sockaddr

_LOG = logging.getLogger(__name__)

_BACKLOG: Final = 128
_OWN_NAMESPACE: Final = "/proc/self/ns/net"
#: Seconds between two looks where inotify reports changes, and where it does not.
_SELDOM: Final = 30.0
_OFTEN: Final = 1.0
#: Seconds after a change: a namespace's file exists a moment before the namespace is mounted on it.
_SOON: Final = 0.05
_SETTLING: Final = 2.0


class _Rig:
    """One rig, in its namespace or waiting for it."""

    def __init__(self, config: RigConfig) -> None:
        self.config = config
        self.exports = set(config.exports)
        #: The namespace that the socket is in: device and inode number on nsfs.
        self.namespace: tuple[int, int] | None = None
        self.listener: Listener | None = None
        self.problem = ""
        self.scope = trio.CancelScope()
        self.closed = trio.Event()
        #: Held by the task that opens or closes its socket: the namespaces' watcher, or a reload.
        self.lock = trio.Lock()
        self.is_wanted = True

    @property
    def state(self) -> str:
        if self.listener is not None:
            return "listening"
        return "failed" if self.problem else "absent"

    @property
    def reason(self) -> str:
        """Why it is not served, for people; empty where it is."""
        absent = f"there is no network namespace at {self.config.path}"
        return self.problem or (absent if self.state == "absent" else "")


class Rigs:
    """The rigs of the configuration.

    Args:
        server: serves their clients.
        nursery: runs the tasks that accept them.
        on_change: called when a rig has failed, or has no longer.

    """

    def __init__(
        self,
        server: Server,
        nursery: trio.Nursery,
        on_change: Callable[[], object] = lambda: None,
    ) -> None:
        self._server = server
        self._nursery = nursery
        self._on_change = on_change
        self._rigs: dict[tuple[str, str], _Rig] = {}
        self._changed = trio.Event()

    @property
    def problems(self) -> list[str]:
        """The rigs that cannot be served, though their namespaces are there."""
        return [rig.config.netns for rig in self._rigs.values() if rig.state == "failed"]

    def describe(self, rights: Rights | None) -> list[dict[str, Any]]:
        """Return the rigs as ``vuserctl rigs`` shows them; a rig's clients see only their own.

        Without rights, return all.
        """
        return [
            {
                "netns": rig.config.netns,
                "socket": rig.config.address,
                "state": rig.state,
                "exports": sorted(rig.exports),
                "clients": len(self._server.connections(rig.listener)) if rig.listener else 0,
            }
            | ({"reason": rig.reason} if rig.reason else {})
            for rig in self._rigs.values()
            if rights is None or rights.manages or rights.exports is rig.exports
        ]

    async def apply(self, configs: Sequence[RigConfig]) -> list[str]:
        """Serve these rigs and no others, touching only those that differ; return the changes."""
        done = []
        wanted = {(config.path, config.address): config for config in configs}
        for key in [key for key in self._rigs if key not in wanted]:
            rig = self._rigs.pop(key)
            rig.is_wanted = False
            async with rig.lock:
                await self._close(rig)
            done.append(f"rig {rig.config.netns}: removed")
        for key, config in wanted.items():
            current = self._rigs.get(key)
            if current is None:
                current = self._rigs[key] = _Rig(config)
                await self._look_at(current)
                done.append(f"rig {config.netns}: added, {current.state}")
            elif current.config != config:
                current.config = config
                current.exports.clear()  # the rights of its clients refer to this set object
                current.exports.update(config.exports)
                done.append(f"rig {config.netns}: other exports")
        self._changed.set()
        return done

    async def run(self) -> None:
        """Follow the namespaces until cancelled."""
        while True:
            self._changed = trio.Event()
            wanted = {os.path.dirname(rig.config.path) for rig in self._rigs.values()}
            if not wanted:
                await self._changed.wait()
                continue
            folders = set(map(_nearest, wanted))
            async with _watching(folders, self._changed) as look:
                while not self._changed.is_set() and set(map(_nearest, wanted)) == folders:
                    for rig in list(self._rigs.values()):
                        await self._look_at(rig)
                    await look()
                    if look.is_blind:
                        break  # try inotify again

    async def _look_at(self, rig: _Rig) -> None:
        """Listen in the rig's namespace if it is there; close the socket in one that is gone."""
        async with rig.lock:
            if rig.is_wanted:
                await self._follow(rig)

    async def _follow(self, rig: _Rig) -> None:
        namespace = _namespace_at(rig.config.path)
        if namespace is None or namespace != rig.namespace:
            await self._close(rig)
        if namespace is None or rig.listener is not None:
            return
        try:
            sock = await in_thread(_listen_in, rig.config)
        except OSError as error:
            problem = os_reason(error)
            if problem != rig.problem:
                _LOG.warning("rig %s: cannot listen in it: %s", rig.config.netns, problem)
                rig.problem = problem
                self._on_change()
            return
        rig.namespace = namespace
        self._mend(rig)
        rig.scope, rig.closed = trio.CancelScope(), trio.Event()
        rig.listener = Listener(rig.config.address, sock, rig.config.netns, rig.exports)
        self._nursery.start_soon(self._serve, rig, rig.listener)

    async def _close(self, rig: _Rig) -> None:
        rig.namespace = None
        self._mend(rig)
        if rig.listener is not None:
            rig.scope.cancel()
            await rig.closed.wait()

    def _mend(self, rig: _Rig) -> None:
        was_failed, rig.problem = bool(rig.problem), ""
        if was_failed:
            self._on_change()

    async def _serve(self, rig: _Rig, listener: Listener) -> None:
        _LOG.info("rig %s: serving on its %s", rig.config.netns, listener.address)
        try:
            with rig.scope, listener.socket:
                await self._server.accept(listener)
        finally:
            rig.listener = None
            rig.closed.set()
            _LOG.info("rig %s: closed", rig.config.netns)


def _nearest(folder: str) -> str:
    """Return a folder, or the one above in which it will appear: ip-netns(8) makes its own late."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def _namespace_at(path: str) -> tuple[int, int] | None:
    """Return device and inode of the namespace that is mounted at ``path``; None if none is."""
    try:
        there, own = os.stat(path), os.stat(_OWN_NAMESPACE)
    except OSError:
        return None
    return (there.st_dev, there.st_ino) if there.st_dev == own.st_dev else None


def _listen_in(config: RigConfig) -> socket.socket:
    """Return a listening socket in a rig's namespace."""
    sock = unix_socket_in(config.path)
    try:
        sock.setblocking(False)  # noqa: FBT003
        sock.bind(to_sockaddr(config.address))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


class _Look:
    """Waits for the next time to look."""

    def __init__(self, inotify: Any, changed: trio.Event) -> None:
        self._inotify = inotify
        self._changed = changed
        self._settled = trio.current_time()

    @property
    def is_blind(self) -> bool:
        """Whether inotify is not available, so that changes go unnoticed until the next look."""
        return self._inotify is None

    async def __call__(self) -> None:
        """Wait until something may have changed."""
        now = trio.current_time()
        pause = _SOON if now < self._settled else _OFTEN if self.is_blind else _SELDOM
        with trio.move_on_after(pause):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._wait_for_files, nursery.cancel_scope)
                await self._changed.wait()
                nursery.cancel_scope.cancel()

    async def _wait_for_files(self, scope: trio.CancelScope) -> None:
        if self._inotify is None:
            return
        await trio.lowlevel.wait_readable(self._inotify.fd)
        os.read(self._inotify.fd, 1 << 16)
        self._settled = trio.current_time() + _SETTLING
        scope.cancel()


@asynccontextmanager
async def _watching(folders: set[str], changed: trio.Event) -> AsyncIterator[_Look]:
    """Watch the folders by inotify, for the block's time; blindly where that is not possible.

    It is not possible where the system refuses.
    """
    inotify = None
    try:
        with contextlib.suppress(OSError):  # there is no thread to be had
            inotify = await in_thread(_inotify_on, folders)
        yield _Look(inotify, changed)
    finally:
        if inotify is not None:
            inotify.close()


def _inotify_on(folders: set[str]) -> Any:
    from pyroute2.inotify.inotify_fd import Inotify

    if not all(map(os.path.isdir, folders)):
        return None
    inotify = None
    with contextlib.suppress(OSError, ValueError):  # without descriptors, pyroute2 polls -1
        inotify = Inotify(path=folders)
        inotify.bind()
        if -1 not in inotify.wd:
            return inotify
    if inotify is not None:
        if inotify.fd == -1:
            inotify.fd = None
        inotify.close()
        for descriptor in (inotify.ctlr, inotify.ctlw) if inotify.fd is None else ():
            os.close(descriptor)
    return None
