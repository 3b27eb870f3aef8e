"""An export's life: a backend, a session with it, and the next one when that is lost."""

import errno
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any, Final, TypeVar

import trio

from vuserd.backend.adopted import AdoptedBackend
from vuserd.backend.base import Backend
from vuserd.backend.find import Program
from vuserd.backend.process import sandboxes, start_backend
from vuserd.config import DaemonConfig, ExportConfig
from vuserd.device.session import Session, open_session
from vuserd.errors import BackendDown, BackendError, ConfigurationError, FileError, VuserdError
from vuserd.fs.filesystem import FileSystem

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
        self._options = daemon.backend_options.within_limits()
        self._program = program
        #: The sandboxes to try; once one has worked, that one alone.
        self._sandboxes: list[str] = []
        self._backend: Backend | None = None
        self._session: Session | None = None
        self._filesystem: FileSystem | None = None
        #: Backends in a row that were lost before any call was served.
        self._failures = 0
        self._changed = trio.lowlevel.ParkingLot()
        #: Set once the first backend is up, or is known not to be.
        self.settled = trio.Event()
        self._stopped = False
        #: What :meth:`stop` ends: the wait for the session's loss, or for the next try.
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
            filesystem = self._filesystem
            if filesystem is None or filesystem.is_lost():
                await self._wait_for_another(deadline)
                continue
            try:
                result = await operation(filesystem)
            except BackendError:
                if not filesystem.is_lost() or trio.current_time() >= deadline:
                    raise
            except FileError as error:
                if error.number not in _EXHAUSTED or not filesystem.forget_idle():
                    raise
                await trio.sleep(_FORGET_PAUSE)  # forgets are not answered
            else:
                self._failures = 0
                return result

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

    def describe(self) -> dict[str, Any]:
        """Return the export as the RPC's ``exports`` shows it."""
        backend = self._backend
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
        if self._session is not None and self._filesystem is not None:
            described |= {
                "nodes": len(self._filesystem.nodes),
                "lookups": self._filesystem.nodes.lookups,
                "in_flight": self._session.channel.in_flight,
                "requests": self._session.channel.submitted,
                "payloads": self._session.payloads.taken,
            }
        return described

    def stop(self) -> None:
        """Ask :meth:`run` to end the session in good order."""
        self._stopped = True
        self._waiting.cancel()

    async def run(self) -> None:
        """Serve until :meth:`stop`, one backend after the other.

        An export whose first backend cannot be had has failed; so has one that lost ``restarts``
        backends in a row without a call served. An adopted backend is waited for, for ever.
        """
        while not self._stopped:
            generation = self.generation
            failure = await self._serve_once()
            if failure is None:
                break
            self._failures += 1
            adopted = self.config.socket is not None
            if not adopted and (self.generation == 0 or self._failures > self._daemon.restarts):
                _LOG.error("export %s failed: %s", self.config.name, failure)
                self._change(ExportState.FAILED, failure)
                self.settled.set()
                return
            if failure != self.reason:
                _LOG.warning("export %s: %s; trying again", self.config.name, failure)
            begun = self.generation > 0
            self._change(ExportState.RESTARTING if begun else ExportState.STARTING, failure)
            self.settled.set()
            connected = self.generation > generation
            await self._pause(self._delay() if connected or not adopted else _ADOPT_PAUSE)
        self._change(ExportState.STOPPED, "")

    def _delay(self) -> float:
        """Return how long to wait for the next try: not at all at first, then longer and longer."""
        least, most = self._daemon.restart_delays
        return 0.0 if self._failures <= 1 else min(least * 2 ** (self._failures - 2), most)

    async def _pause(self, seconds: float) -> None:
        with trio.CancelScope() as self._waiting:
            if not self._stopped:
                await trio.sleep(seconds)

    def _change(self, state: ExportState, reason: str) -> None:
        self.state, self.reason = state, reason
        self._changed.unpark_all()

    async def _serve_once(self) -> str | None:
        """Serve with one backend; return why it was lost, None if :meth:`stop` was called."""
        try:
            async with self._next_session() as session:
                self._come_up(session)
                try:
                    lost = await self._wait_lost(session)
                finally:
                    self._go_down()
                if lost is not None:
                    self._change(ExportState.RESTARTING, str(lost))
                    raise lost
                assert self._backend is not None
                self._backend.expect_end()
        except VuserdError as error:
            words = self._backend.last_words() if self._backend is not None else ""
            return f"{error} ({words})" if words else str(error)
        finally:
            self._backend = None
        return None

    async def _wait_lost(self, session: Session) -> BackendError | None:
        """Wait for the loss of the session or its process; return it, None for :meth:`stop`."""
        assert self._backend is not None
        lost: BackendError | None = None
        with trio.CancelScope() as self._waiting:
            if self._stopped:
                return None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_process, self._backend, session)
                lost = await session.wait_lost()
                nursery.cancel_scope.cancel()
        return lost

    @staticmethod
    async def _watch_process(backend: Backend, session: Session) -> None:
        """Notice an end that the connection hides: what the process forked may hold that open."""
        await backend.wait()
        session.lose(BackendDown("the backend's process has ended"))

    def _come_up(self, session: Session) -> None:
        self.generation += 1
        self._session = session
        # Each idle node keeps a descriptor open in the backend; leave it most of them.
        idle = min(self._daemon.idle_nodes, self._options.descriptors // 4)
        self._filesystem = FileSystem(session, idle)
        self._change(ExportState.UP, "")
        assert self._backend is not None
        _LOG.info(
            "export %s is up: %s through virtiofsd %s (%s)",
            self.config.name,
            self.config.source,
            self._backend.version or "of unknown version",
            self._backend.kind,
        )
        self.settled.set()

    def _go_down(self) -> None:
        filesystem, self._filesystem = self._filesystem, None
        self._session = None
        if filesystem is not None:
            filesystem.close()

    @asynccontextmanager
    async def _next_session(self) -> AsyncIterator[Session]:
        """Open a session: with the adopted backend, or in the best sandbox the machine allows."""
        if self.config.socket is not None:
            adopted = AdoptedBackend(self.config.socket)
            async with self._session_with(adopted) as session:
                yield session
            return
        if isinstance(self._program, ConfigurationError):
            raise self._program
        generation = self.generation
        modes = self._sandboxes or sandboxes(self._program.kind, os.geteuid())
        for index, sandbox in enumerate(modes):
            try:
                async with self._started_session(self._program, sandbox) as session:
                    self._sandboxes = [sandbox]
                    yield session
                return
            except BackendDown as error:
                if self.generation > generation or index == len(modes) - 1:
                    raise
                words = self._backend.last_words() if self._backend is not None else ""
                _LOG.warning(
                    "export %s: no sandbox of kind %s here (%s), trying %s",
                    self.config.name,
                    sandbox,
                    words or error,
                    modes[index + 1],
                )

    @asynccontextmanager
    async def _started_session(self, program: Program, sandbox: str) -> AsyncIterator[Session]:
        assert self.config.directory is not None
        failure: VuserdError | None = None
        async with start_backend(
            program,
            self.config.directory,
            sandbox,
            self._options,
            self.config.name,
        ) as backend:
            try:
                async with self._session_with(backend) as session:
                    yield session
            except VuserdError as error:
                failure = error
        # Out here the backend has ended and its last words are known.
        if failure is not None:
            raise failure

    @asynccontextmanager
    async def _session_with(self, backend: Backend) -> AsyncIterator[Session]:
        self._backend = backend
        stream = await backend.connect()
        async with open_session(stream, self._daemon.session_options) as session:
            yield session
