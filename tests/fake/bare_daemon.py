"""The daemon's RPC with no exports behind it."""

import os
import socket
from collections.abc import Callable
from typing import Any

import trio

from vuserd.config.model import ClientLimits
from vuserd.exports.together import Together
from vuserd.rpc.access import Peer, Rights
from vuserd.rpc.accounts import Account
from vuserd.rpc.connection import Connection
from vuserd.rpc.counters import Counters
from vuserd.rpc.methods.table import Methods
from vuserd.tasks.hub import Hub
from vuserd.tasks.turns import Turns
from vuserd.tasks.workers import Workers
from vuserd.users.foreign_descriptors import ForeignDescriptors


class ThreadlessDescriptors(ForeignDescriptors):
    """Descriptors at which nothing hangs, for tests whose clock does not wait for threads."""

    def _start(self, job: Callable[[], None]) -> None:
        job()


class NoManager:
    """A daemon without state to report."""

    def status(self, rights: Rights) -> dict[str, Any]:  # noqa: ARG002 - the daemon's
        return {}

    def rigs(self, rights: Rights) -> list[dict[str, Any]]:  # noqa: ARG002
        return []

    async def metrics(self) -> str:
        return ""

    async def reload(self) -> list[str]:
        return []

    async def reload_export(self, name: str) -> list[str]:  # noqa: ARG002
        return []


def bare_methods(images: Any) -> Methods:
    return Methods({}, images, NoManager())


class Bare:
    """Serves one client that is this process's user, until nothing is left of it."""

    def __init__(self, sock: socket.socket, images: Any, counters: Counters) -> None:
        self._socket = sock
        self._methods = bare_methods(images)
        self._counters = counters
        self._is_gone = trio.Event()
        #: As long as it is served.
        self.connection: Connection | None = None

    async def run(self) -> None:
        limits = ClientLimits()
        rights = Rights(Peer(os.getpid(), os.geteuid(), frozenset()))
        turns = Turns()
        account = Account(os.geteuid(), None, limits, turns)
        together = Together()
        hub = Hub(turns, together.begin)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(turns.run)
                async with trio.open_nursery() as working:
                    workers = Workers(working)
                    nursery.start_soon(hub.run, workers)
                    self.connection = Connection(
                        self._socket,
                        self._methods,
                        limits,
                        self._counters,
                        account,
                        rights,
                        hub,
                        workers,
                        together,
                        lambda _: self._is_gone.set(),
                    )
                    hub.add(self.connection)
                    await self._is_gone.wait()
                    working.cancel_scope.cancel()
                nursery.cancel_scope.cancel()
        finally:
            hub.close()
