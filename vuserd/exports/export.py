"""An export's life: a backend that serves it, the next one when that is lost or to be replaced."""

import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeVar

import trio

from protocol import Check
from vuserd.backend.base import Backend
from vuserd.backend.find import BackendKind, Program
from vuserd.backend.process import sandboxes
from vuserd.config.model import ExportConfig
from vuserd.errors import (
    BackendDown,
    BackendError,
    CallError,
    ConfigurationError,
    ErrorCode,
    FileError,
    HeldBack,
    LossCause,
    printable,
)
from vuserd.exports.directory import Lookout, Sight
from vuserd.exports.hangs import Hangs
from vuserd.exports.serving import Serving
from vuserd.exports.trials import Trials
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.owners import Owners
from vuserd.service.journal import about_export
from vuserd.tracing.tap import Tracing

_LOG = logging.getLogger(__name__)

#: Seconds between two tries to connect to a socket of somebody else's: at first, at most while a
#: call waits for it, and at most.
_ADOPT_PAUSE: Final = 0.1
_LONGEST_WAITED_PAUSE: Final = 0.5
_LONGEST_ADOPT_PAUSE: Final = 10.0
#: Backends that a call may lose which never had one to itself: others may have killed them.
_MOST_LOSSES: Final = 8
#: The most seconds before the next try where calls were put to the backend that was lost.
_LONGEST_AFTER_CALLS: Final = 0.5
#: Backends that are started in a row while one directory after the other takes its place.
_MOST_MOVES: Final = 5
#: Seconds before calls can have as many started again: somebody may switch the path all the time.
_MOVES_PAUSE: Final = 0.25
#: Seconds for the look before a start: what is mounted on demand may take a while.
_LOOK_BEFORE_START: Final = 10.0
#: How often it is given back all nodes that no call uses, and asked again, in one call.
_MOST_FORGETS: Final = 3
#: Seconds for it to give up those of nodes that were forgotten.
_FORGET_PAUSE: Final = 0.005

Result = TypeVar("Result")


class ExportState(StrEnum):
    """Where an export is in its life."""

    STARTING = "starting"
    UP = "up"
    RESTARTING = "restarting"  #: its backend was lost, and the next one is on its way
    GONE = "gone"  #: its path leads to no directory; it comes up again when it does
    FAILED = "failed"
    STOPPED = "stopped"


class _Lost(Exception):  # noqa: N818
    """A backend was lost while it had a call.

    Args:
        error: how.
        alone: whether it had no other call then.
        expected: whether it was to end, since another takes its place.

    """

    def __init__(self, error: BackendError, *, alone: bool, expected: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.alone = alone
        self.expected = expected


class _DirectoryGone(Exception):  # noqa: N818
    """An export's path leads to no directory; the words say why."""


class Loss(NamedTuple):
    """How a backend was lost."""

    cause: LossCause
    reason: str  #: for people
    when: float  #: seconds since 1970


class Usage(NamedTuple):
    """What a session uses now."""

    requests: int  #: sent so far
    in_flight: int
    nodes: int
    lookups: int
    payloads: int


class Export:
    """A directory that can be read through a backend, and through the next one if that is lost.

    Args:
        config: what to export.
        program: the virtiofsd to start; or why there is none, which only matters to a directory.
        on_change: called whenever its state has changed.

    """

    def __init__(
        self,
        config: ExportConfig,
        program: Program | ConfigurationError,
        on_change: Callable[[], object] = lambda: None,
    ) -> None:
        self.config = config
        self.state = ExportState.STARTING
        self.reason = ""
        #: Counts sessions; a node id of one means nothing in another.
        self.generation = 0
        self._program = program
        #: The sandboxes to try; once one has worked, that one alone.
        self._modes: Sequence[str] = ()
        self._serving: Serving | None = None
        #: Backends in a row that were lost before any call was served.
        self._failures = 0
        #: Those in a row that did not start, or ended before any call was put to them.
        self._failed_starts = 0
        self._trials = Trials()
        self._hangs = Hangs(config.name)
        #: What watches the directory; of a backend of somebody else's no directory is known.
        self._lookout = (
            None if config.directory is None else Lookout(config.directory, self._note_sight)
        )
        #: Backends that another had to take the place of, by why; and the last one that was lost.
        self.restarts = dict.fromkeys(LossCause, 0)
        self.last_loss: Loss | None = None
        #: Sessions that ended because bytes were not to be believed, by the check that they failed.
        self.faults = dict.fromkeys(map(str, Check), 0)
        self.tracing = Tracing()
        self._log = about_export(_LOG, config.name)
        self._changed = trio.lowlevel.ParkingLot()
        self._on_change = on_change
        #: Whether a call may end the pause before the next try.
        self._may_hasten = False
        #: Set once the first backend is up, or is known not to be.
        self.settled = trio.Event()
        self._stopped = trio.Event()
        self._nursery: trio.Nursery | None = None
        #: A backend that serves already and is to take the place of the one in use.
        self._next: Serving | None = None
        self._replacement = trio.Lock()
        #: What :meth:`stop` and :meth:`replace` end: a start, the wait for a loss or the next try.
        self._waiting = trio.CancelScope()

    async def call(self, operation: Callable[[FileSystem], Awaitable[Result]]) -> Result:
        """Do an operation on the files; again, when the backend is lost meanwhile.

        It is on behalf of :data:`~vuserd.users.asker.ASKER`, for whom others are not to wait for
        ever.
        All that is asked of the files are reads, so nothing is done twice that must not be. A call
        that lost a backend may be what killed it, so others wait while it is tried again. If the
        next one is lost as well, with no other call on it, it is not tried any more.

        Raises:
            BackendDown: there is no working backend, and none in time; the message says why.
            HeldBack: it hung a backend before, and is not tried again yet.
            CallError: BUSY: the user's calls hung several, and are not put to others yet.
            VuserdError: what the operation raises.

        """
        deadline = trio.current_time() + self.config.session.timeout
        losses = 0
        self._hasten()
        if self._lookout is not None and self._lookout.is_due:
            await self.look()
        if self._trials.are_on:
            await self._trials.wait(deadline)
        while True:
            if self._hangs.askers.held:
                self._hangs.require_asker()
            try:
                if not losses:
                    return await self._ask(operation, deadline)
                async with self._trials.turn(deadline):
                    return await self._ask(operation, deadline, self._trials.begin)
            except _Lost as lost:
                # What hung a backend is held back by now: of other calls nothing is to be feared.
                losses += not (lost.expected or lost.error.cause is LossCause.SILENT)
                if (losses > 1 and lost.alone) or losses > _MOST_LOSSES:
                    raise BackendDown(
                        f"the call lost {losses} backends, and is put to no other: {lost.error}"
                    ) from lost.error
                if trio.current_time() >= deadline:
                    raise lost.error.again() from None  # itself, it would refer to itself

    async def _ask(
        self,
        operation: Callable[[FileSystem], Awaitable[Result]],
        deadline: float,
        begin: Callable[[], None] = lambda: None,
    ) -> Result:
        """Do an operation on the files of one backend; ``begin`` is called when there is one.

        Raises:
            _Lost: the backend was lost meanwhile.

        """
        forgets = 0
        while True:
            serving = self._serving
            if serving is None or not serving.is_serving():
                await self._wait_for_another(deadline)
                continue
            if not forgets:
                begin()
            try:
                with serving.in_use() as files:
                    result = await operation(files)
            except BackendError as error:
                if serving.is_serving():
                    raise
                raise _Lost(
                    error, alone=serving.had_one_call, expected=serving.is_retired
                ) from None
            except HeldBack:
                raise
            except FileError as error:
                self._failures = 0  # that was an answer, too
                if not error.is_exhaustion or forgets == _MOST_FORGETS:
                    raise
                forgets += 1
                files.nodes.forget_idle()
                await trio.sleep(_FORGET_PAUSE)  # forgets are not answered
            else:
                self._failures = 0
                return result

    async def look(self) -> None:
        """Look where the path leads to, unless that was done a moment ago.

        Where another directory stands there, the next call is for that one; where none does, the
        export is gone. One look at a time goes on for all who want one, and nobody waits for it
        who comes in a row of calls.
        """
        self._hasten()
        lookout = self._lookout
        if lookout is None or not lookout.is_due or self._nursery is None or self.has_ended():
            return
        lookout.begin(self._nursery)
        if lookout.is_stale or self.state is not ExportState.UP:
            await lookout.wait()

    def _note_sight(self, sight: Sight) -> None:
        """Leave a backend whose directory is not the one at the path; come back to one that is."""
        serving = self._serving
        if self._stopped.is_set():
            return
        if serving is not None:
            if sight.standing != serving.standing:
                self._leave(serving, sight)
        elif self.state is ExportState.GONE and sight.standing is not None:
            self._change(ExportState.RESTARTING, "")
            self._waiting.cancel()
        elif self.state is ExportState.GONE and sight.reason != self.reason:
            self._change(ExportState.GONE, sight.reason)

    def _leave(self, serving: Serving, sight: Sight) -> None:
        """Put no call to this backend any more; it ends after those that it has."""
        self._serving = None
        serving.retire()
        if sight.standing is None:
            self._change(ExportState.GONE, sight.reason)
            self._log.warning("export %s is gone: %s", self.config.name, sight.reason)
        else:
            self._change(ExportState.RESTARTING, "another directory stands there")
            self._log.info(
                "export %s: another directory stands at %s", self.config.name, self.config.source
            )
        self._waiting.cancel()

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
        described = self.describe() | {
            "source": self.config.source,
            "restarts": sum(self.restarts.values()),
            "restarts_by_cause": {str(cause): n for cause, n in self.restarts.items() if n},
            "last_loss": self.last_loss._asdict() if self.last_loss is not None else None,
        }
        usage = self.usage()
        return described | (usage._asdict() if usage is not None else {})

    @property
    def owners(self) -> Owners | None:
        """How the backend sees the owners of files; None where it sees what the host has."""
        return None if self._serving is None else self._serving.owners

    def usage(self) -> Usage | None:
        """Return what the present session uses; None where there is none."""
        serving = self._serving
        if serving is None or serving.session is None or serving.files is None:
            return None
        return Usage(
            serving.session.channel.submitted,
            serving.session.channel.in_flight,
            len(serving.files.nodes),
            serving.files.nodes.lookups,
            serving.session.payloads.taken,
        )

    def makes_progress(self) -> bool:
        """Tell whether the session's tasks do their work: what is overdue has been told so."""
        session = None if self._serving is None else self._serving.session
        return session is None or session.lost or session.channel.makes_progress()

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
            before = self._serving
            modes = self._modes if (self.config, self._program) == (config, program) else ()
            if before is not None and await self._try_move(before, config, program, modes):
                return
            # Cancelled, it takes the backend that it is starting with it.
            try:
                serving = await self._start_there(self._nursery, config, program, modes)
            except _DirectoryGone as gone:
                raise BackendDown(
                    f"the directory of export {config.name} is gone: {gone}"
                ) from None
            if not serving.is_serving():
                raise BackendDown(f"the other backend: {serving.failure}")
            if self._stopped.is_set() or self.has_ended():
                serving.retire()
                raise BackendDown(f"export {self.config.name} has ended or is about to")
            self.config, self._program, self._modes = config, program, modes
            if self._next is not None:
                self._next.retire()
            self._next = serving
            self._waiting.cancel()
            if before is not None:
                await before.over.wait()

    async def _try_move(
        self,
        serving: Serving,
        config: ExportConfig,
        program: Program | ConfigurationError,
        modes: Sequence[str],
    ) -> bool:
        """Have another backend take over all that the present one has; tell whether it did."""
        if isinstance(program, ConfigurationError) or not serving.can_move(config, program):
            return False
        lookout, standing = self._lookout, serving.standing
        sight = None if lookout is None else await lookout.see()
        if lookout is None or sight is None or standing is None or sight.standing != standing:
            return False
        mode, *_ = modes or _sandboxes(config, program)

        async def check(backend: Backend) -> None:
            there = await lookout.see()
            if there is None or there.standing != standing:
                raise BackendDown("another directory stands there by now")
            device, inode = standing.device, standing.inode
            if not await backend.has_opened(device, inode, mode, lookout.limiter):
                raise BackendDown("the other backend has opened another directory")

        try:
            await serving.move(config, program, mode, _to_share(program, config, sight), check)
        except BackendError as error:
            self._log.info(
                "export %s: its open files stay with the backend that they are on: %s",
                self.config.name,
                error,
            )
            return False
        self.config, self._program, self._modes = config, program, [mode]
        self._log_backend(serving, "goes on with all that it has open")
        return True

    async def run(self) -> None:
        """Serve until :meth:`stop`, one backend after the other.

        An export whose first backend cannot be had has failed; so has one that needs a backend and
        fails more than ``restarts`` times in a row to start one. No call brings it to that: a
        backend that calls were put to did start. An adopted backend is waited for, for ever.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while not self._stopped.is_set():
                serving, self._next = self._next, None
                if serving is None:
                    with trio.CancelScope() as self._waiting:
                        serving = await self._next_one(nursery)
                if serving is None:
                    continue
                served = serving.is_serving()
                if served:
                    serving = await self._serve_with(serving)
                if serving is None or self._stopped.is_set() or self._next is not None:
                    continue
                self._note_loss(serving, served=served)
                if not await self._goes_on(serving, served=served):
                    return
            if self._next is not None:
                self._next.retire()
            self._change(ExportState.STOPPED, "")
            self.settled.set()

    async def _wait_for_another(self, deadline: float) -> None:
        """Wait for the export's next state, unless no other is to be expected.

        An adopted backend that was never there is not waited for: somebody has to start it.
        """
        waits = not self.has_ended() and self.state is not ExportState.GONE
        if waits and not (self.state is ExportState.STARTING and self.reason):
            with trio.move_on_at(deadline) as patience:
                await self._changed.park()
            if not patience.cancelled_caught:
                return
        why = f": {self.reason}" if self.reason else ""
        raise BackendDown(f"export {self.config.name} is {self.state}{why}")

    def has_ended(self) -> bool:
        """Tell whether no backend will come any more."""
        return self.state in (ExportState.FAILED, ExportState.STOPPED)

    async def _next_one(self, nursery: trio.Nursery) -> Serving:
        """Start a backend; wait before that, if need be, until there is a directory."""
        while True:
            try:
                return await self._start_there(nursery, self.config, self._program, self._modes)
            except _DirectoryGone as gone:
                if self.state is not ExportState.GONE or self.reason != str(gone):
                    self._log.warning("export %s is gone: %s", self.config.name, gone)
                self._change(ExportState.GONE, str(gone))
                self.settled.set()
                await trio.sleep_forever()  # until a call finds that it is there again

    async def _start_there(
        self,
        nursery: trio.Nursery,
        config: ExportConfig,
        program: Program | ConfigurationError,
        modes: Sequence[str],
    ) -> Serving:
        """Start a backend on the directory that the path leads to, before and after the start.

        It opens that by name. What it has opened is looked at before it is used.

        Raises:
            _DirectoryGone: it leads to none.

        """
        if self._lookout is None:
            return await self._start(nursery, config, program, modes, None)
        sight = await self._lookout.see(_LOOK_BEFORE_START)
        for _ in range(_MOST_MOVES):
            if sight is None:
                raise _DirectoryGone(f"{config.source}: its file system does not answer")
            if sight.standing is None:
                raise _DirectoryGone(sight.reason)
            serving = await self._start(nursery, config, program, modes, sight)
            try:
                # While it serves, its directory cannot end: another that looks the same is that.
                before, sight = sight.standing, await self._lookout.see()
                is_there = sight is not None and sight.standing == before
                limiter = self._lookout.limiter
                if is_there and (not serving.is_serving() or await serving.is_on(before, limiter)):
                    break
            except BaseException:  # cancelled, it takes the backend with it
                serving.retire()
                raise
            serving.retire()
        else:
            await trio.sleep(_MOVES_PAUSE)
            raise _DirectoryGone(f"{config.source} leads to another directory all the time")
        if not serving.is_serving():
            await serving.over.wait()  # it was lost meanwhile, and by then it is known why
        return serving

    async def _start(
        self,
        nursery: trio.Nursery,
        config: ExportConfig,
        program: Program | ConfigurationError,
        modes: Sequence[str],
        sight: Sight | None,
    ) -> Serving:
        """Start a backend, and wait until it serves or cannot; ``modes``: where one is known."""
        if config.socket is not None:
            serving = Serving(config, None, (), self.tracing, hangs=self._hangs)
        elif isinstance(program, ConfigurationError):
            serving = Serving(config, None, (), self.tracing)
            serving.failure = str(program)
            serving.over.set()
            return serving
        else:
            modes = modes or _sandboxes(config, program)
            directory = _to_share(program, config, sight)
            serving = Serving(config, program, modes, self.tracing, directory, self._hangs)
            serving.standing = None if sight is None else sight.standing
        await nursery.start(serving.run)
        if not serving.is_serving():
            await serving.over.wait()  # by then it is known why
        return serving

    async def _serve_with(self, serving: Serving) -> Serving | None:
        """Put calls to a backend, and to what replaces it, until one is lost; return that one.

        Return None where the path has come to lead elsewhere.
        """
        while True:
            self._come_up(serving)
            with trio.CancelScope() as self._waiting:
                # One may have come while there was nobody in this wait to be told so.
                if self._stopped.is_set() or self._next is not None:
                    self._waiting.cancel()
                await serving.lost()
            successor, self._next = self._next, None
            if successor is None and self._serving is not serving and not self._stopped.is_set():
                return None
            if successor is None:
                break
            serving.retire()
            serving = successor
        if self._stopped.is_set():
            serving.retire()
        else:
            self._change(ExportState.RESTARTING, "")
        await serving.over.wait()
        self._serving = None
        return serving

    def _note_loss(self, serving: Serving, *, served: bool) -> None:
        """Count a loss; a socket of somebody else's where nobody listens yet is none."""
        if served or self.config.socket is None:
            self.last_loss = Loss(serving.cause, serving.failure, time.time())
        if serving.fault in self.faults:
            self.faults[serving.fault] += 1

    async def _goes_on(self, serving: Serving, *, served: bool) -> bool:
        """Record the failure and back off; return False once the export has failed for good."""
        failure = serving.failure
        self._failures += 1
        self._failed_starts = 0 if serving.was_asked else self._failed_starts + 1
        adopted = self.config.socket is not None
        if not adopted and (self.generation == 0 or self._failed_starts > self.config.restarts):
            self._log.error("export %s failed: %s", self.config.name, failure)
            self._change(ExportState.FAILED, failure)
            self.settled.set()
            return False
        if served or not adopted:
            self.restarts[serving.cause] += 1
        if failure != self.reason:
            self._log.warning("export %s: %s; trying again", self.config.name, failure)
        begun = self.generation > 0
        self._change(ExportState.RESTARTING if begun else ExportState.STARTING, failure)
        self.settled.set()
        delay = self._delay(asked=serving.was_asked)
        absent = adopted and not served
        await self._pause(self._adopt_delay() if absent else delay, may_hasten=absent)
        return True

    def _adopt_delay(self) -> float:
        """Return how long to wait for a socket of somebody else's; a call makes that shorter."""
        longest = _LONGEST_WAITED_PAUSE if len(self._changed) else _LONGEST_ADOPT_PAUSE
        return min(_ADOPT_PAUSE * 1.2 ** min(self._failures, 40), longest)

    def _delay(self, *, asked: bool) -> float:
        """Return how long to wait for the next try: not at all at first, then longer and longer.

        Where calls were put to the backend others wait for the next one: it is not kept from them.
        """
        least, most = self.config.restart_delays
        longest = min(most, _LONGEST_AFTER_CALLS) if asked else most
        doublings = min(self._failures - 2, 40)
        return 0.0 if doublings < 0 else min(least * 2**doublings, longest)

    async def _pause(self, seconds: float, *, may_hasten: bool) -> None:
        with trio.CancelScope() as self._waiting:
            if not self._stopped.is_set():
                self._may_hasten = may_hasten
                await trio.sleep(seconds)
        self._may_hasten = False

    def _hasten(self) -> None:
        """Try at once to connect to a socket of somebody else's; once a call, not in its wait."""
        if self._may_hasten:
            self._may_hasten = False
            self._waiting.cancel()

    def _change(self, state: ExportState, reason: str) -> None:
        self.state, self.reason = state, printable(reason)
        self._changed.unpark_all()
        self._on_change()

    def _come_up(self, serving: Serving) -> None:
        self.generation += 1
        self._serving = serving
        if serving.mode is not None:
            self._modes = [serving.mode]
        self._change(ExportState.UP, "")
        self._log_backend(serving, "is up")
        self.settled.set()

    def _log_backend(self, serving: Serving, what: str) -> None:
        assert serving.backend is not None
        self._log.info(
            "export %s %s: %s through virtiofsd %s (%s)",
            self.config.name,
            what,
            self.config.source,
            serving.backend.version or "of unknown version",
            serving.backend.kind,
        )


def _sandboxes(config: ExportConfig, program: Program) -> Sequence[str]:
    """Return the sandboxes to try, the best one first."""
    wanted = config.options.sandbox
    return sandboxes(program.kind, os.geteuid()) if wanted is None else [wanted]


def _to_share(program: Program, config: ExportConfig, sight: Sight | None) -> str:
    """Return the path to start a backend on: without links, which could be switched meanwhile."""
    assert config.directory is not None
    if sight is None or (program.kind is BackendKind.C and "," in sight.resolved):
        return config.directory  # the C one cannot share a path with a comma, but a link to it
    return sight.resolved
