"""An export's life: a backend that serves it, the next one when that is lost or to be replaced."""

import errno
import logging
import os
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any, Final, TypeVar

import trio

from vuserd.backend.find import Program
from vuserd.backend.process import sandboxes
from vuserd.config import DaemonConfig, ExportConfig
from vuserd.errors import (
    BackendDown,
    BackendError,
    CallError,
    ConfigurationError,
    ErrorCode,
    FileError,
)
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.serving import Serving

_LOG = logging.getLogger(__name__)

#: Seconds between two tries to connect to a socket of somebody else's.
_ADOPT_PAUSE: Final = 0.1
#: What a backend says that has no descriptor left: each node that is known takes one.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE})
#: Seconds for it to give up those of nodes that were forgotten.
_FORGET_PAUSE: Final = 0.005

Result = TypeVar("Result")


class ExportState(StrEnum):
    """Where an export is in its life."""

    STARTING = "starting"
    UP = "up"
    RESTARTING = "restarting"  #: its backend was lost, and the next one is on its way
    FAILED = "failed"
    STOPPED = "stopped"


class Export:
    """A directory that can be read through a backend, and through the next one if that is lost.

    Args:
        config: what to export.
        daemon: limits and options.
        program: the virtiofsd to start; or why there is none, which only matters to a directory.

    """

    def __init__(
        self, config: ExportConfig, daemon: DaemonConfig, program: Program | ConfigurationError
    ) -> None:
        self.config = config
        self.state = ExportState.STARTING
        self.reason = ""
        #: Counts sessions; a node id of one means nothing in another.
        self.generation = 0
        self._daemon = daemon
        self._program = program
        #: The sandboxes to try; once one has worked, that one alone.
        self._modes: list[str] = []
        self._serving: Serving | None = None
        #: Backends in a row that were lost before any call was served.
        self._failures = 0
        self._changed = trio.lowlevel.ParkingLot()
        #: Set once the first backend is up, or is known not to be.
        self.settled = trio.Event()
        self._stopped = trio.Event()
        self._nursery: trio.Nursery | None = None
        #: A backend that serves already and is to take the place of the one in use.
        self._next: Serving | None = None
        self._replacement = trio.Lock()
        #: What :meth:`stop` and :meth:`replace` end: the wait for a loss, or for the next try.
        self._waiting = trio.CancelScope()

    async def call(self, operation: Callable[[FileSystem], Awaitable[Result]]) -> Result:
        """Do an operation on the files; again, when the backend is lost meanwhile.

        All that is asked of the files are reads, so nothing is done twice that must not be.

        Raises:
            BackendDown: there is no working backend, and none in time; the message says why.
            VuserdError: what the operation raises.

        """
        deadline = trio.current_time() + self._daemon.session_options.timeout
        while True:
            serving = self._serving
            if serving is None or not serving.is_serving():
                await self._wait_for_another(deadline)
                continue
            try:
                with serving.in_use() as files:
                    result = await operation(files)
            except BackendError:
                if serving.is_serving() or trio.current_time() >= deadline:
                    raise
            except FileError as error:
                if error.number not in _EXHAUSTED or not files.forget_idle():
                    raise
                await trio.sleep(_FORGET_PAUSE)  # forgets are not answered
            else:
                self._failures = 0
                return result

    def describe(self) -> dict[str, Any]:
        """Return the export as the RPC's ``exports`` shows it."""
        backend = self._serving.backend if self._serving is not None else None
        described: dict[str, Any] = {
            "name": self.config.name,
            "state": str(self.state),
            "backend": None
            if backend is None
            else {
                "kind": str(backend.kind),
                "version": backend.version,
                "pid": backend.pid,
                "generation": self.generation,
            },
        }
        if self.reason:
            described["reason"] = self.reason
        return described

    def describe_fully(self) -> dict[str, Any]:
        """Return the export as ``status`` shows it."""
        described = self.describe() | {"source": self.config.source}
        serving = self._serving
        if serving is not None and serving.session is not None and serving.files is not None:
            described |= {
                "nodes": len(serving.files.nodes),
                "lookups": serving.files.nodes.lookups,
                "in_flight": serving.session.channel.in_flight,
                "requests": serving.session.channel.submitted,
                "payloads": serving.session.payloads.taken,
            }
        return described

    def stop(self) -> None:
        """Ask :meth:`run` to end the backend in good order."""
        self._stopped.set()
        self._waiting.cancel()

    async def replace(self) -> None:
        """Start another backend and put calls to it; the old one ends after those that it has.

        Raises:
            CallError: BAD_REQUEST for a backend of somebody else's.
            BackendDown: the other one cannot be had; the old one goes on serving.

        """
        if self.config.socket is not None:
            raise CallError(
                ErrorCode.BAD_REQUEST,
                f"the backend of export {self.config.name} is somebody else's, who may restart it",
            )
        async with self._replacement:
            if self._nursery is None or self.state is not ExportState.UP:
                raise BackendDown(f"export {self.config.name} is {self.state}, and not to replace")
            serving = await self._start(self._nursery)
            if not serving.is_serving():
                raise BackendDown(f"the other backend: {serving.failure}")
            before, self._next = self._serving, serving
            self._waiting.cancel()
            assert before is not None
            await before.over.wait()

    async def run(self) -> None:
        """Serve until :meth:`stop`, one backend after the other.

        An export whose first backend cannot be had has failed; so has one that lost ``restarts``
        backends in a row without a call served. An adopted backend is waited for, for ever.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while not self._stopped.is_set():
                successor, self._next = self._next, None
                serving = successor or await self._start(nursery)
                served = serving.is_serving()
                if served:
                    serving = await self._serve_with(serving)
                if self._stopped.is_set():
                    break
                if not await self._goes_on(serving.failure, served=served):
                    return
            self._change(ExportState.STOPPED, "")

    async def _wait_for_another(self, deadline: float) -> None:
        """Wait for the export's next state, unless no other is to be expected.

        An adopted backend that was never there is not waited for: somebody has to start it.
        """
        ended = self.state in (ExportState.FAILED, ExportState.STOPPED)
        if not ended and not (self.state is ExportState.STARTING and self.reason):
            with trio.move_on_at(deadline) as patience:
                await self._changed.park()
            if not patience.cancelled_caught:
                return
        why = f": {self.reason}" if self.reason else ""
        raise BackendDown(f"export {self.config.name} is {self.state}{why}")

    async def _start(self, nursery: trio.Nursery) -> Serving:
        """Start a backend, and wait until it serves or cannot."""
        serving = Serving(self.config, self._daemon, None, ())
        if self.config.socket is None:
            if isinstance(self._program, ConfigurationError):
                serving.failure = str(self._program)
                return serving
            modes = self._modes or sandboxes(self._program.kind, os.geteuid())
            serving = Serving(self.config, self._daemon, self._program, modes)
        await nursery.start(serving.run)
        if serving.mode is not None:
            self._modes = [serving.mode]
        return serving

    async def _serve_with(self, serving: Serving) -> Serving:
        """Put calls to a backend, and to what replaces it, until one is lost; return that one."""
        while True:
            self._come_up(serving)
            with trio.CancelScope() as self._waiting:
                if self._stopped.is_set():
                    self._waiting.cancel()
                await serving.lost()
            successor, self._next = self._next, None
            if successor is None:
                break
            serving.retire()
            serving = successor
        if self._stopped.is_set():
            self._change(ExportState.STOPPED, "")
            serving.retire()
        else:
            self._change(ExportState.RESTARTING, "")
        await serving.over.wait()
        self._serving = None
        return serving

    async def _goes_on(self, failure: str, *, served: bool) -> bool:
        """Take note of a failure; tell whether to try again, once it is time to."""
        self._failures += 1
        adopted = self.config.socket is not None
        if not adopted and (self.generation == 0 or self._failures > self._daemon.restarts):
            _LOG.error("export %s failed: %s", self.config.name, failure)
            self._change(ExportState.FAILED, failure)
            self.settled.set()
            return False
        if failure != self.reason:
            _LOG.warning("export %s: %s; trying again", self.config.name, failure)
        begun = self.generation > 0
        self._change(ExportState.RESTARTING if begun else ExportState.STARTING, failure)
        self.settled.set()
        await self._pause(self._delay() if served or not adopted else _ADOPT_PAUSE)
        return True

    def _delay(self) -> float:
        """Return how long to wait for the next try: not at all at first, then longer and longer."""
        least, most = self._daemon.restart_delays
        return 0.0 if self._failures <= 1 else min(least * 2 ** (self._failures - 2), most)

    async def _pause(self, seconds: float) -> None:
        with trio.CancelScope() as self._waiting:
            if not self._stopped.is_set():
                await trio.sleep(seconds)

    def _change(self, state: ExportState, reason: str) -> None:
        self.state, self.reason = state, reason
        self._changed.unpark_all()

    def _come_up(self, serving: Serving) -> None:
        self.generation += 1
        self._serving = serving
        self._change(ExportState.UP, "")
        assert serving.backend is not None
        _LOG.info(
            "export %s is up: %s through virtiofsd %s (%s)",
            self.config.name,
            self.config.source,
            serving.backend.version or "of unknown version",
            serving.backend.kind,
        )
        self.settled.set()
