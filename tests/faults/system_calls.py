"""System calls of the daemon's own that are made to fail, and the daemon that makes them."""

import contextlib
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import pytest
import trio

from tests.fake.backend import FakeBackend
from tests.faults.harness import FOR_EVER
from vuserd.client.trio_client import TrioClient
from vuserd.config.model import Access, DaemonConfig, ExportConfig, ListenConfig
from vuserd.daemon import Daemon


class SystemCall(NamedTuple):
    """A call that one module makes.

    Args:
        owner: the module or class that has the function.
        name: the function's.
        module: who calls it; the same call fails nobody else.
        skip: so many times it works before it fails.
        command: the second argument that is meant, of a call that does many things.

    """

    owner: Any
    name: str
    module: str
    skip: int = 0
    command: int | None = None


class Failure:
    """A system call that fails once, with one error."""

    def __init__(self, call: SystemCall, number: int, patch: pytest.MonkeyPatch) -> None:
        self.happened = False
        self._call = call
        self._number = number
        self._skip = call.skip
        self._works: Callable[..., object] = getattr(call.owner, call.name)
        patch.setattr(call.owner, call.name, self._function(), raising=False)

    def _function(self) -> Callable[..., object]:
        def function(*arguments: object, **named: object) -> object:
            caller = sys._getframe(1).f_globals["__name__"]
            if caller == self._call.module and self._is_meant(arguments):
                raise OSError(self._number, os.strerror(self._number))
            return self._works(*arguments, **named)

        return function

    def _is_meant(self, arguments: tuple[object, ...]) -> bool:
        command = self._call.command
        if self.happened or (command is not None and arguments[1] != command):
            return False
        self._skip -= 1
        self.happened = self._skip < 0
        return self.happened


FILE: Final = "files"


@asynccontextmanager
async def daemon_on(
    backend: FakeBackend,
    folder: str,
    access: Access = Access(),  # noqa: B008 - it is immutable
) -> AsyncIterator[str]:
    """Run a daemon with one export, on a backend that comes back; give its socket's path."""
    theirs, ours = os.path.join(folder, "backend.sock"), os.path.join(folder, "vuserd.sock")
    export = ExportConfig(FILE, socket=theirs, access=access)
    config = DaemonConfig((ListenConfig(ours),), (export,))
    daemon = Daemon(lambda: config)
    async with backend.listening(theirs), trio.open_nursery() as nursery:
        with trio.fail_after(FOR_EVER):
            await nursery.start(daemon.run)
        try:
            yield ours
        finally:
            daemon.stop()


async def is_served(address: str, content: bytes) -> None:
    """Check that a new client is served."""
    with trio.fail_after(FOR_EVER):
        async with TrioClient.connect(address) as client:
            assert await client.read(FILE, "Image", 0, len(content)) == content


def open_now() -> Counter[str]:
    """Count what this process has open, by kind or by path."""
    kinds: Counter[str] = Counter()
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the list's own
            kinds[os.readlink(f"/proc/self/fd/{entry}").partition(":[")[0]] += 1
    return kinds
