"""An export's life: a backend that serves it, the next one when that is lost or to be replaced."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from vuserd.backend.find import Program
from vuserd.config.accounts import with_accounts
from vuserd.config.model import ExportConfig
from vuserd.device.procedure import Done, Errand, Found
from vuserd.errors import BackendDown, CallError, ConfigurationError, ErrorCode, os_reason
from vuserd.exports.calls import Calls, Procedures
from vuserd.exports.directory import Lookout, Sight
from vuserd.exports.hangs import Hangs
from vuserd.exports.life import Life
from vuserd.exports.losses import Losses
from vuserd.exports.replacement import hand_over, start_beside
from vuserd.exports.retries import Retries
from vuserd.exports.serving import Serving, Usage
from vuserd.exports.starting import DirectoryGone, Plan, Starter
from vuserd.exports.states import Event, ExportState
from vuserd.fs.filesystem import FileSystem
from vuserd.service.journal import about_export
from vuserd.tasks.pauses import pauses
from vuserd.tasks.threads import in_thread
from vuserd.tracing.tap import Tracing
from vuserd.users.asker import Asker

_LOG = logging.getLogger(__name__)

Result = TypeVar("Result")


class Export:
    """A directory that can be read through a backend, and through the next one if that is lost.

    Args:
        config: what to export.
        program: the virtiofsd to start; or why there is none, which only matters to a directory.
        on_change: called whenever its state has changed.
        find: finds the virtiofsd to start, where there was none or it did not start.

    """

    def __init__(
        self,
        config: ExportConfig,
        program: Program | ConfigurationError,
        on_change: Callable[[], object] = lambda: None,
        find: Callable[[ExportConfig], Awaitable[Program | ConfigurationError]] | None = None,
    ) -> None:
        #: Counts sessions; a node id of one means nothing in another.
        self.generation = 0
        self.losses = Losses()
        self.tracing = Tracing()
        self._plan = Plan(config, program)
        self._find = find
        self._life = Life(config.name, on_change)
        #: Set once the first backend is up, or is known not to be.
        self.settled = self._life.settled
        self._retries = Retries()
        #: Those between the starts of an export that has failed.
        self._mending = pauses()
        hangs = Hangs(config.name)
        self._calls = Calls(self._life, hangs, self._retries.note_answer)
        #: What watches the directory; that of an adopted backend is not known.
        self._lookout = (
            None if config.directory is None else Lookout(config.directory, self._note_sight)
        )
        self._starter = Starter(self._lookout, self.tracing, hangs)
        self._log = about_export(_LOG, config.name)
        #: Whether a call may end the pause before the next try.
        self._may_hasten = False
        self._stopped = trio.Event()
        self._nursery: trio.Nursery | None = None
        #: A backend that serves already and is to take the place of the one in use.
        self._next: Serving | None = None
        self._replacement = trio.Lock()
        #: What :meth:`stop` and :meth:`replace` end: a start, the wait for a loss or the next try.
        self._waiting = trio.CancelScope()

    @property
    def config(self) -> ExportConfig:
        """What is exported, and how."""
        return self._plan.config

    def configure(self, config: ExportConfig) -> None:
        """Change what needs no other backend at once; the rest is the next backend's."""
        self._plan = self._plan._replace(config=config)

    @property
    def state(self) -> ExportState:
        """Where the export is in its life."""
        return self._life.state

    @property
    def reason(self) -> str:
        """Why it is in that state, for people; empty where nothing need be said."""
        return self._life.reason

    def has_ended(self) -> bool:
        """Return whether no backend will come any more."""
        return self._life.has_ended

    async def call(self, operation: Callable[[FileSystem], Awaitable[Result]]) -> Result:
        """Do an operation on the files, as long as the session's timeout allows.

        It is on behalf of :data:`~vuserd.users.asker.ASKER`: a user whose calls hang backends is
        held back, so that those of others are served.

        Raises:
            As :meth:`~vuserd.exports.calls.Calls.call`.

        """
        deadline = trio.current_time() + self.config.session.timeout
        await self.look()
        return await self._calls.call(operation, deadline)

    def errand(
        self, asker: Asker | None, procedure: Procedures[Found], done: Done[Found]
    ) -> Errand[Found] | None:
        """Return an errand on the files: see :meth:`~vuserd.exports.calls.Calls.errand`."""
        if self._has_to_look():
            return None
        deadline = trio.current_time() + self.config.session.timeout
        return self._calls.errand(asker, procedure, done, deadline)

    async def look(self) -> None:
        """Look where the path leads to, unless that was done a moment ago.

        Where another directory stands there, the next call is for that one; where none does, the
        export is gone. All calls share one look at a time, and a call that comes soon after the
        last look does not wait for the next.
        """
        self._hasten()
        if self._has_to_look() and self._lookout is not None:
            await self._lookout.wait()

    def _has_to_look(self) -> bool:
        """Begin a look if one is due; return whether a call has to wait for it."""
        lookout = self._lookout
        if lookout is None or not lookout.is_due or self._nursery is None or self.has_ended():
            return False
        lookout.begin(self._nursery)
        return lookout.is_stale or self.state is not ExportState.UP

    def describe(self) -> dict[str, Any]:
        """Return the export as the RPC's ``exports`` shows it."""
        serving = self._calls.serving
        return self._life.describe(self.generation, serving.backend if serving else None)

    def describe_fully(self) -> dict[str, Any]:
        """Return the export as ``status`` shows it."""
        usage = self.usage()
        described = self.describe() | {"source": self.config.source} | self.losses.describe()
        return described | (usage._asdict() if usage is not None else {})

    def usage(self) -> Usage | None:
        """Return what the present session uses; None where there is none."""
        return None if self._calls.serving is None else self._calls.serving.usage()

    def makes_progress(self) -> bool:
        """Return whether the session's tasks do their work: no deadline has passed unnoticed."""
        return self._calls.serving is None or self._calls.serving.makes_progress()

    def stop(self) -> None:
        """Ask :meth:`run` to end the backend in good order."""
        self._stopped.set()
        self._waiting.cancel()
        if self._lookout is not None:
            self._lookout.stop()

    async def replace(self, config: ExportConfig, program: Program | ConfigurationError) -> None:
        """Start another backend and put calls to it.

        Where it can take over what the old one has open, calls in progress go on with it. Else the
        old one ends after the calls that it has.

        Args:
            config: what it is to be like, in the place of the present one.
            program: the virtiofsd to start.

        Raises:
            CallError: BAD_REQUEST for an adopted backend.
            BackendDown: the other one cannot be had; the old one goes on serving.

        """
        name = self.config.name
        if self.config.socket is not None:
            raise CallError(
                ErrorCode.BAD_REQUEST,
                f"the backend of export {name} is adopted: restart it where it was started",
            )
        async with self._replacement:
            if self._nursery is None or self.state is not ExportState.UP:
                raise BackendDown(f"export {name} is {self.state}, and not to replace")
            before = self._calls.serving
            known = (self.config, self._plan.program) == (config, program)
            plan = Plan(config, program, self._plan.modes if known else ())
            moved = None if before is None else await hand_over(before, plan, self._lookout)
            if moved is not None:
                self._plan = moved
                return
            serving = await start_beside(self._starter, self._nursery, plan)
            if self._stopped.is_set() or self.has_ended():
                serving.retire()
                raise BackendDown(f"export {name} has ended or is about to")
            self._plan = plan
            if self._next is not None:
                self._next.retire()
            self._next = serving
            self._waiting.cancel()
            if before is not None:
                await before.over.wait()

    async def run(self) -> None:
        """Serve until :meth:`stop`, one backend after the other.

        An export whose first backend cannot be had has failed; so has one that needs a backend and
        fails more than ``restarts`` times in a row to start one. No call brings it to that: a
        backend that calls were put to did start. An adopted backend is waited for, for ever. What
        has failed or is gone is looked at again in :func:`~vuserd.tasks.pauses.pauses`.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._wait_for_accounts()
            while not self._stopped.is_set():
                serving, self._next = self._next, None
                if serving is None:
                    with trio.CancelScope() as self._waiting:
                        serving = await self._start_next(nursery)
                if serving is None:
                    continue
                served = serving.is_serving()
                if served:
                    serving = await self._serve_with(serving)
                if serving is None or self._stopped.is_set() or self._next is not None:
                    continue
                await self._back_off(serving, served=served)
            if self._next is not None:
                self._next.retire()
            self._life.happen(Event.STOP)

    async def _wait_for_accounts(self) -> None:
        """Wait until the users and groups exist that the configuration names."""
        while self.config.access.missing and not self._stopped.is_set():
            try:
                access = await in_thread(with_accounts, self.config.access)
            except OSError as error:
                await self._fail(f"accounts cannot be looked up: {os_reason(error)}")
                continue
            self.configure(self.config.with_access(access))
            if missing := self.config.access.missing:
                await self._fail(", ".join(sorted(map(str, missing))))
        if self.state is ExportState.FAILED and not self._stopped.is_set():
            self._life.happen(Event.MENDED)

    async def _start_next(self, nursery: trio.Nursery) -> Serving:
        """Start a backend; where the path leads to no directory, wait until it does."""
        try:
            return await self._starter.start(nursery, self._plan)
        except DirectoryGone as gone:
            self._note_gone(str(gone))
            later = pauses()
            while True:  # until this look, or that of a call, finds that it is there again
                await trio.sleep(next(later))
                await self.look()

    async def _serve_with(self, serving: Serving) -> Serving | None:
        """Put calls to a backend, and to what replaces it, until one is lost; return that one.

        Return None where the path has come to lead elsewhere.
        """
        while True:
            self._come_up(serving)
            with trio.CancelScope() as self._waiting:
                # Either may have come while this task was not in the wait that they end.
                if self._stopped.is_set() or self._next is not None:
                    self._waiting.cancel()
                await serving.lost()
            successor, self._next = self._next, None
            was_left = self._calls.serving is not serving
            if successor is None and was_left and not self._stopped.is_set():
                return None
            if successor is None:
                break
            serving.retire()
            serving = successor
        if self._stopped.is_set():
            serving.retire()
        else:
            self._calls.serving = None
            self._life.happen(Event.LOST)
        await serving.over.wait()
        self._calls.serving = None
        return serving

    def _come_up(self, serving: Serving) -> None:
        self.generation += 1
        self._calls.serving = serving
        if serving.mode is not None:
            self._plan = self._plan._replace(modes=[serving.mode])
        self._life.happen(Event.SERVING)
        self._log.info(
            "export %s is up: %s", self.config.name, self._plan.served_by(serving.backend)
        )

    def _note_sight(self, sight: Sight) -> None:
        """Leave a backend whose directory is not the one at the path; come back to one that is."""
        if self._stopped.is_set():
            return
        serving = self._calls.serving
        if serving is not None:
            if sight.standing != serving.standing:
                self._leave(serving, sight)
        elif self.state is ExportState.GONE:
            if sight.standing is None:
                self._note_gone(sight.reason)
            else:
                self._life.happen(Event.DIRECTORY_BACK)
                self._waiting.cancel()

    def _leave(self, serving: Serving, sight: Sight) -> None:
        """Put no call to this backend any more; it ends after those that it has."""
        self._calls.serving = None
        serving.retire()
        if sight.standing is None:
            self._note_gone(sight.reason)
        else:
            self._life.happen(Event.DIRECTORY_REPLACED, "another directory stands there")
            self._log.info(
                "export %s: another directory stands at %s", self.config.name, self.config.source
            )
        self._waiting.cancel()

    def _note_gone(self, reason: str) -> None:
        if self.state is ExportState.GONE and self.reason == reason:
            return
        self._life.happen(Event.DIRECTORY_GONE, reason)
        self._log.warning("export %s is gone: %s", self.config.name, reason)

    async def _fail(self, reason: str) -> None:
        """Become ``FAILED``, and pause until it is time to see whether that is mended."""
        if self.state is not ExportState.FAILED:
            self._mending = pauses()
        if self._life.happen(Event.GIVE_UP, reason):
            self._log.error("export %s failed: %s", self.config.name, reason)
        await self._pause(next(self._mending), may_hasten=False)

    async def _back_off(self, serving: Serving, *, served: bool) -> None:
        """Record the failure, and pause before the next try.

        An adopted socket on which no backend listens yet is no loss.
        """
        failure, asked = serving.failure, serving.was_asked
        adopted = self.config.socket is not None
        if served or not adopted:
            self.losses.note(serving.cause, failure)
        self.losses.count_fault(serving.fault)
        self._retries.note_failure(asked=asked)
        never_served = self.generation == 0
        if not adopted and (never_served or self._retries.are_over(self.config.restarts)):
            await self._fail(failure)
            if self._find is not None:
                self._plan = self._plan._replace(program=await self._find(self.config))
            return
        if served or not adopted:
            self.losses.restarts[serving.cause] += 1
        if failure != self.reason:
            self._log.warning("export %s: %s; trying again", self.config.name, failure)
        waited_for = self._life.waiting > 0
        self._life.happen(Event.RETRY, failure)  # which wakes them
        if adopted and not served:
            delay = self._retries.adopt_delay(waited_for=waited_for)
            await self._pause(delay, may_hasten=True)
        else:
            delay = self._retries.delay(*self.config.restart_delays, asked=asked)
            await self._pause(delay, may_hasten=False)

    async def _pause(self, seconds: float, *, may_hasten: bool) -> None:
        with trio.CancelScope() as self._waiting:
            if not self._stopped.is_set():
                self._may_hasten = may_hasten
                await trio.sleep(seconds)
        self._may_hasten = False

    def _hasten(self) -> None:
        """Try at once to connect to an adopted socket; once a call, not in its wait."""
        if self._may_hasten:
            self._may_hasten = False
            self._waiting.cancel()
