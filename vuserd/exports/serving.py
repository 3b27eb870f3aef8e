"""One session in use, from its start to its end: its backend, its files, and the calls on them."""

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import trio

from vuserd.backend.adopted import AdoptedBackend
from vuserd.backend.base import Backend
from vuserd.backend.children import is_stopped
from vuserd.backend.find import BackendKind, Program
from vuserd.backend.process import start_backend
from vuserd.config.model import ExportConfig
from vuserd.device.session import Session, open_session
from vuserd.errors import BackendDown, BackendError, LossCause, VuserdError
from vuserd.exports.directory import Standing
from vuserd.exports.hangs import Hangs, NodeGate
from vuserd.exports.losses import cause_of
from vuserd.exports.tenancy import Tenancy, let_in
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.owners import owners_of
from vuserd.service.journal import about_export
from vuserd.tracing.tap import Tap, Tracing

_LOG = logging.getLogger(__name__)

#: Seconds for calls on files whose backend is to go in good order.
_DRAIN: Final = 10.0


class Usage(NamedTuple):
    """What a session uses now."""

    requests: int  #: sent so far
    in_flight: int
    nodes: int
    lookups: int
    payloads: int


class Serving:
    """A backend for an export: :meth:`run` starts it and serves until it is lost or retired.

    Each call on its files is a ``with`` block of it; any number may be in progress.

    Args:
        config: what to export.
        program: the virtiofsd to start; None for an adopted socket.
        modes: the sandboxes to try, the best one first.
        tracing: the clients that trace its requests.
        directory: where the export's path leads to; None for an adopted socket.
        hangs: what hung backends of the export, and is held back.

    """

    def __init__(
        self,
        config: ExportConfig,
        program: Program | None,
        modes: Sequence[str],
        tracing: Tracing,
        directory: str | None = None,
        hangs: Hangs | None = None,
    ) -> None:
        self.backend: Backend | None = None
        self.session: Session | None = None
        self.files: FileSystem | None = None
        #: Why it was lost, or could not be had; empty once it has ended in good order.
        self.failure = ""
        #: The same for counting, and the check that its bytes failed where it broke the protocol.
        self.cause = LossCause.NOT_STARTED
        self.fault = ""
        #: Set when nothing of it is left.
        self.over = trio.Event()
        #: Which directory stood at the export's path when it was started.
        self.standing: Standing | None = None
        #: The sandbox that it runs in.
        self.mode: str | None = None
        self._config = config
        self._program = program
        self._modes = modes
        self._tracing = tracing
        self._directory = directory
        self._hangs = hangs
        self._tap: Tap | None = None
        #: Where the backends live that it has started, and the one that is in use.
        self._tenancies: trio.Nursery
        self._tenancy: Tenancy | None = None
        #: Whether any call was put to it.
        self.was_asked = False
        self._calls = 0
        #: How many calls it had when it was lost, as far as one of them noticed.
        self._calls_at_loss = 0
        self._unused = trio.lowlevel.ParkingLot()
        self._retired = trio.Event()

    def is_serving(self) -> bool:
        """Return whether calls can be put to its files."""
        return self.files is not None and not self.files.is_lost()

    @property
    def had_one_call(self) -> bool:
        """Whether it had one call alone when it was lost."""
        return self._calls_at_loss == 1

    @property
    def is_retired(self) -> bool:
        """Whether it is to end, since another takes its place."""
        return self._retired.is_set()

    def __enter__(self) -> FileSystem:
        """Begin a call, and return the files: a backend that retires waits for its end."""
        assert self.files is not None
        self.was_asked = True
        self._calls += 1
        return self.files

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """End a call."""
        if isinstance(error, BackendError) and not self._calls_at_loss and not self.is_serving():
            self._calls_at_loss = self._calls
        self._calls -= 1
        if not self._calls and self._unused:
            self._unused.unpark_all()

    def retire(self) -> None:
        """End it once the calls on it have ended."""
        self._retired.set()

    async def is_on(self, standing: Standing, limiter: trio.CapacityLimiter) -> bool:
        """Return whether its backend has opened this directory; before any call is put to it."""
        if not self.is_serving() or self.files is None or self.backend is None:
            return False
        if self.mode is not None and hides_root(self._config, self.mode):
            with contextlib.suppress(VuserdError):
                return (await self.files.stat(b"/", follow=False)).ino == standing.inode
            return False
        return await self.backend.has_opened(
            standing.device, standing.inode, self.mode or "", limiter
        )

    def usage(self) -> Usage | None:
        """Return what its session uses now; None where there is none."""
        if self.session is None or self.files is None:
            return None
        return Usage(
            self.session.lane.submitted,
            self.session.lane.in_flight,
            len(self.files.nodes),
            self.files.nodes.lookups,
            self.session.payloads.taken,
        )

    def makes_progress(self) -> bool:
        """Return whether the session's tasks do their work: no deadline has passed unnoticed."""
        session = self.session
        return session is None or session.lost or session.lane.makes_progress()

    async def lost(self) -> None:
        """Wait until it is lost."""
        assert self.session is not None
        await self.session.wait_lost()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start it and serve until it is lost or retired; started once it serves or cannot."""
        try:
            async with trio.open_nursery() as self._tenancies:
                try:
                    await self._serve(task_status)
                except VuserdError as error:
                    self._note_failure(error)
                    if self.files is None:
                        task_status.started()
        finally:
            self.over.set()

    def can_move(self, config: ExportConfig, program: Program) -> bool:
        """Return whether :meth:`move` can be tried: what a session is like stays as it is."""
        return (
            self.is_serving()
            and self.session is not None
            and self.session.has_device_state
            and program.kind is BackendKind.RUST
            and not any(hides_root(config, mode) for mode in (self.mode, config.options.sandbox))
            and config.session == self._config.session
            and _idle_nodes(config) == _idle_nodes(self._config)
            and config.idle_time == self._config.idle_time
        )

    async def move(
        self,
        config: ExportConfig,
        program: Program,
        mode: str,
        directory: str,
        check: Callable[[Backend], Awaitable[None]],
    ) -> None:
        """Go on with another backend, to which nodes and open files go over; no call notices.

        Args:
            config: what it is to be like; of the same directory.
            program: the virtiofsd to start.
            mode: its sandbox.
            directory: where the export's path leads to.
            check: asked once it has opened its directory; raises BackendError for another one.

        Raises:
            BackendError: it cannot be; this goes on with the backend that it has, or is lost.

        """
        assert self.session is not None
        assert self.files is not None
        former, successor = self._tenancy, await self._let_in(config, program, mode, directory)
        assert former is not None

        def moved() -> None:
            self._tenancy, self.backend = successor, successor.backend
            self._config, self.mode, self._directory = config, mode, directory
            assert self.session is not None
            if self.session.lane.gate is not None:
                self.session.lane.gate.threads = _threads(config)
            self._note_backend()

        try:
            former.backend.expect_end()
            self.files.nodes.forget_idle()  # there is the less to move
            await self.session.move(
                await successor.backend.connect(), moved, lambda: check(successor.backend)
            )
        finally:
            if self._tenancy is former:
                former.backend.expect_end(expected=False)
            with trio.CancelScope(shield=True):
                await (successor if self._tenancy is former else former).end()

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        async with self._opened_session() as session:
            self.session = session
            self.files = FileSystem(
                session,
                _idle_nodes(self._config),
                self._config.idle_time,
                tells_mounts=self._program is not None,
                device=None if self.standing is None else self.standing.of_its_file_system,
            )
            if self._hangs is not None:
                gate = NodeGate(
                    self._hangs,
                    self.files.nodes,
                    session.timeout,
                    _threads(self._config),
                    self._stands_still,
                )
                session.lane.obey(gate)
            assert self._tap is not None
            self._tap.places = self.files.nodes
            self._note_backend()
            task_status.started()
            try:
                await self._run_session(session)
            finally:
                self.files.close()
            assert self.backend is not None
            self.backend.expect_end()

    def _stands_still(self) -> bool:
        """Return whether its backend was stopped: no request is to blame for its silence."""
        pid = None if self.backend is None else self.backend.pid
        return pid is not None and is_stopped(pid)

    def _note_backend(self) -> None:
        """Note how a started backend maps ids, and whether it does one request after the other."""
        assert self.session is not None
        assert self.files is not None
        has_one_thread = self._program is not None and not self._config.options.thread_pool
        self.session.lane.answers_in_order = has_one_thread
        pid = None if self.backend is None else self.backend.pid
        known = self._program is not None and self.mode == "namespace" and pid is not None
        self.files.owners = owners_of(pid) if known and pid is not None else None

    def _note_failure(self, error: VuserdError) -> None:
        words = self.backend.last_words() if self.backend is not None else ""
        self.failure = f"{error} ({words})" if words else str(error)
        if isinstance(error, BackendError):
            self.fault = error.check
        if self.files is not None:
            end = self.backend.own_end() if self.backend is not None else None
            self.cause = cause_of(error, end)

    async def _run_session(self, session: Session) -> None:
        """Wait until it is retired and unused.

        Raises:
            BackendError: it was lost before.

        """
        assert self.files is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_process, session)
            nursery.start_soon(self.files.expire)
            nursery.start_soon(self._wait_unused, nursery.cancel_scope)
            await session.wait_lost()
            nursery.cancel_scope.cancel()
        if session.lost:
            raise await session.wait_lost()

    async def _watch_process(self, session: Session) -> None:
        """Notice an end that the connection hides: what the process forked may hold that open."""
        backend = None
        while backend is not self.backend:
            backend = self.backend
            assert backend is not None
            await backend.wait()
        session.lose(BackendDown("the backend's process has ended", LossCause.EXITED))

    async def _wait_unused(self, scope: trio.CancelScope) -> None:
        await self._retired.wait()
        with trio.move_on_after(_DRAIN):
            while self._calls:
                await self._unused.park()
        scope.cancel()

    @asynccontextmanager
    async def _opened_session(self) -> AsyncIterator[Session]:
        """Open a session: with the adopted backend, or in the best sandbox the machine allows."""
        if self._program is None:
            assert self._config.socket is not None
            async with self._session_with(AdoptedBackend(self._config.socket)) as session:
                yield session
            return
        for index, mode in enumerate(self._modes):
            try:
                async with self._started_session(self._program, mode) as session:
                    self.mode = mode
                    yield session
                return
            except BackendDown as error:
                cause = error.__cause__  # the daemon's own, such as EMFILE, is no sandbox's fault
                is_own = isinstance(cause, OSError) and not isinstance(cause, ConnectionError)
                if is_own or self.mode is not None or index == len(self._modes) - 1:
                    raise
                words = self.backend.last_words() if self.backend is not None else ""
                about_export(_LOG, self._config.name).warning(
                    "export %s: no sandbox of kind %s here (%s), trying %s",
                    self._config.name,
                    mode,
                    words or error,
                    self._modes[index + 1],
                )

    @asynccontextmanager
    async def _started_session(self, program: Program, mode: str) -> AsyncIterator[Session]:
        assert self._directory is not None
        self._tenancy = await self._let_in(self._config, program, mode, self._directory)
        try:
            async with self._session_with(self._tenancy.backend) as session:
                yield session
        finally:  # out here the backend, whichever it is by now, ends, and its last words are known
            with trio.CancelScope(shield=True):
                await self._tenancy.end()

    async def _let_in(
        self, config: ExportConfig, program: Program, mode: str, directory: str
    ) -> Tenancy:
        options = config.options.within_limits()
        starting = start_backend(program, directory, mode, options, config.name)
        return await let_in(self._tenancies, starting)

    @asynccontextmanager
    async def _session_with(self, backend: Backend) -> AsyncIterator[Session]:
        self.backend = backend
        stream = await backend.connect()
        with self._tracing.session() as tap:
            self._tap = tap
            async with open_session(stream, self._config.session, tap.observer()) as session:
                tap.follow(session.lane)
                yield session


def _threads(config: ExportConfig) -> int:
    """Return how many requests a backend works at at once, as far as is known."""
    return max(1, config.options.thread_pool)


def hides_root(config: ExportConfig, mode: str | None) -> bool:
    """Return whether a backend holds its directory neither as its root nor by a descriptor."""
    return mode in ("none", "landlock") and config.options.inode_file_handles != "never"


def _idle_nodes(config: ExportConfig) -> int:
    """Return how many nodes may stay known that no call uses."""
    # Each keeps a descriptor open in the backend; leave it most of them.
    return min(config.idle_nodes, config.options.within_limits().descriptors // 4)
