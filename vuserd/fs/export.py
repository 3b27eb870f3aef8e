"""An export's life: a backend, a session with it, and the file system that calls are put to."""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any

import trio

from vuserd.backend.adopted import AdoptedBackend
from vuserd.backend.base import Backend
from vuserd.backend.find import Program
from vuserd.backend.process import sandboxes, start_backend
from vuserd.config import DaemonConfig, ExportConfig
from vuserd.device.session import Session, open_session
from vuserd.errors import BackendDown, BackendError, ConfigurationError, VuserdError
from vuserd.fs.filesystem import FileSystem

_LOG = logging.getLogger(__name__)


class ExportState(StrEnum):
    """Where an export is in its life."""

    STARTING = "starting"
    UP = "up"
    FAILED = "failed"
    STOPPED = "stopped"


class Export:
    """A directory that can be read through a backend, as long as the backend lives.

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
        self._backend: Backend | None = None
        self._session: Session | None = None
        self._filesystem: FileSystem | None = None
        self._serving = trio.CancelScope()

    @property
    def filesystem(self) -> FileSystem:
        """The files.

        Raises:
            BackendDown: there is no working backend; the message says why.

        """
        if self._filesystem is None:
            why = f": {self.reason}" if self.reason else ""
            raise BackendDown(f"export {self.config.name} is {self.state}{why}")
        return self._filesystem

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
        self._serving.cancel()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until :meth:`stop` or the backend's end; started once the outcome is known."""
        try:
            async with self._first_session() as session:
                self._come_up(session)
                task_status.started()
                lost: BackendError | None = None
                with self._serving:
                    lost = await session.wait_lost()
                self._go_down()
                if lost is not None:
                    raise lost
                assert self._backend is not None
                self._backend.expect_end()
            self.state = ExportState.STOPPED
        except VuserdError as error:
            words = self._backend.last_words() if self._backend is not None else ""
            self.reason = f"{error} ({words})" if words else str(error)
            self.state = ExportState.FAILED
            _LOG.error("export %s failed: %s", self.config.name, self.reason)
            if self.generation == 0:
                task_status.started()
        finally:
            self._backend = None

    def _come_up(self, session: Session) -> None:
        self.generation += 1
        self._session = session
        # Each idle node keeps a descriptor open in the backend; leave it most of them.
        idle = min(self._daemon.idle_nodes, self._options.descriptors // 4)
        self._filesystem = FileSystem(session, idle)
        self.state = ExportState.UP
        assert self._backend is not None
        _LOG.info(
            "export %s is up: %s through virtiofsd %s (%s)",
            self.config.name,
            self.config.source,
            self._backend.version or "of unknown version",
            self._backend.kind,
        )

    def _go_down(self) -> None:
        filesystem, self._filesystem = self._filesystem, None
        self._session = None
        if filesystem is not None:
            filesystem.close()

    @asynccontextmanager
    async def _first_session(self) -> AsyncIterator[Session]:
        """Open a session: with the adopted backend, or in the best sandbox the machine allows."""
        if self.config.socket is not None:
            adopted = AdoptedBackend(self.config.socket)
            async with self._session_with(adopted) as session:
                yield session
            return
        if isinstance(self._program, ConfigurationError):
            raise self._program
        modes = sandboxes(self._program.kind, os.geteuid())
        for index, sandbox in enumerate(modes):
            try:
                async with self._started_session(self._program, sandbox) as session:
                    yield session
                return
            except BackendDown as error:
                if self.state is not ExportState.STARTING or index == len(modes) - 1:
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
