"""The daemon's RPC with no exports behind it."""

import os
import socket
from collections.abc import Callable
from typing import Any

from vuserd.config.model import ClientLimits
from vuserd.rpc.access import Peer, Rights
from vuserd.rpc.accounts import Account
from vuserd.rpc.connection import Connection
from vuserd.rpc.counters import Counters
from vuserd.rpc.methods import Methods
from vuserd.tasks.crowd import Arrivals
from vuserd.tasks.turns import Turns
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


def bare_connection(sock: socket.socket, images: Any, counters: Counters) -> Connection:
    """Return the connection of a client that is this process's user."""
    limits = ClientLimits()
    rights = Rights(Peer(os.getpid(), os.geteuid(), frozenset()))
    account = Account(os.geteuid(), None, limits, Turns(), Arrivals())
    return Connection(sock, bare_methods(images), limits, counters, account, rights)
