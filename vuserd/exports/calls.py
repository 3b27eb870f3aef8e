"""Calls on an export's files: put to the backend that serves now, and again when it is lost."""

import math
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Final, NamedTuple, TypeAlias, TypeVar

import trio

from vuserd.device.procedure import Done, Errand, Found, NeedsTask, Procedure
from vuserd.errors import BackendDown, BackendError, FileError, HeldBack, LossCause
from vuserd.exports.hangs import Hangs
from vuserd.exports.life import Life
from vuserd.exports.serving import Serving
from vuserd.exports.trials import Trials
from vuserd.fs.filesystem import FileSystem
from vuserd.users.asker import Asker

#: Backends that a call may lose which never had one to itself: other calls may have killed them.
_MOST_LOSSES: Final = 8
#: How often a backend is given back all nodes that no call uses, and asked again, in one call.
_MOST_FORGETS: Final = 3
#: Seconds for it to give up the descriptors of nodes that were forgotten.
_FORGET_PAUSE: Final = 0.005

Result = TypeVar("Result")
#: Makes a procedure on the files of a backend.
Procedures: TypeAlias = Callable[[FileSystem], Procedure[Found]]


class Past(NamedTuple):
    """What a call has behind it when it is given a task."""

    #: Backends that it may have killed.
    losses: int = 0
    #: Until when it waits for another, by trio's clock.
    deadline: float = math.inf


class Lost(NeedsTask):
    """A backend was lost while it had a call, which has to be put to another.

    Args:
        error: how.
        serving: what was lost.
        deadline: until when the call waits for another.

    """

    def __init__(self, error: BackendError, serving: Serving, deadline: float) -> None:
        super().__init__(str(error))
        self.error = error
        #: Whether it had no other call then.
        self.alone = serving.had_one_call
        #: With 1 loss where the call may be to blame. It is not where another backend takes its
        #: place; and what hung one is held back by now: of other calls nothing is to be feared.
        losses = int(not (serving.is_retired or error.cause is LossCause.SILENT))
        self.past = Past(losses, deadline)


#: That of a call which is put to a backend for the first time.
NO_PAST: Final = Past()
#: What this task's call has behind it.
PAST: Final[ContextVar[Past]] = ContextVar("PAST", default=NO_PAST)


class Calls:
    """The way of an export's calls to its backends.

    Args:
        life: the export's: a call waits for its next state where no backend serves.
        hangs: what hung its backends, and is held back.
        on_answer: called whenever a backend has answered a call.

    """

    def __init__(self, life: Life, hangs: Hangs, on_answer: Callable[[], None]) -> None:
        #: What calls are put to; None where no backend serves.
        self.serving: Serving | None = None
        self.trials = Trials()
        self._life = life
        self._hangs = hangs
        self._on_answer = on_answer

    async def call(
        self, operation: Callable[[FileSystem], Awaitable[Result]], deadline: float
    ) -> Result:
        """Do an operation on the files; again, when the backend is lost meanwhile.

        All that is asked of the files are reads, so nothing is done twice that must not be. A call
        that lost a backend may be what killed it, so others wait while it is tried again. If the
        next one is lost as well, with no other call on it, it is not tried any more.

        Raises:
            BackendDown: there is no working backend, and none in time; the message says why.
            HeldBack: it hung a backend before, and is not tried again yet.
            CallError: BUSY: the user's calls hung several, and are not put to others yet.
            VuserdError: what the operation raises.

        """
        losses, latest = PAST.get()
        deadline = min(deadline, latest)
        if self.trials.are_on:
            await self.trials.wait(deadline)
        while True:
            if self._hangs.askers.held:
                self._hangs.require_asker()
            try:
                if not losses:
                    return await self._ask(operation, deadline)
                async with self.trials.turn(deadline):
                    return await self._ask(operation, deadline, self.trials.begin)
            except Lost as lost:
                losses += lost.past.losses
                if (losses > 1 and lost.alone) or losses > _MOST_LOSSES:
                    raise BackendDown(
                        f"the call lost {losses} backends, and is put to no other: {lost.error}"
                    ) from lost.error
                if trio.current_time() >= deadline:
                    raise lost.error.again() from None  # itself, it would refer to itself

    def errand(
        self,
        asker: Asker | None,
        procedure: Procedures[Found],
        done: Done[Found],
        deadline: float,
    ) -> Errand[Found] | None:
        """Return an errand that carries a procedure out on the files of the backend that serves.

        It fails with what :meth:`call` raises; or with NeedsTask, and then :meth:`call` has to do
        all of it, with :data:`PAST` set to the ``past`` of a :class:`Lost`. If the backend is lost
        after ``deadline``, it fails with that. None: :meth:`call` has to do it from the beginning.
        """
        serving = self.serving
        if self.trials.are_on or self._hangs.holds_back(asker):
            return None
        if serving is None or serving.session is None or not serving.is_serving():
            return None
        return Errand(serving.session.lane, asker, self._put(serving, procedure, deadline), done)

    def _put(
        self, serving: Serving, procedure: Procedures[Found], deadline: float
    ) -> Procedure[Found]:
        """Do what :meth:`_ask` does, as far as a procedure can."""
        try:
            with serving as files:
                found = yield from procedure(files)
        except BackendError as error:
            if serving.is_serving() or trio.current_time() >= deadline:
                raise
            raise Lost(error, serving, deadline) from None
        except HeldBack:
            raise
        except FileError as error:
            self._on_answer()
            if error.is_exhaustion:
                raise NeedsTask from None
            raise
        self._on_answer()
        return found

    async def _ask(
        self,
        operation: Callable[[FileSystem], Awaitable[Result]],
        deadline: float,
        begin: Callable[[], None] = lambda: None,
    ) -> Result:
        """Do an operation on the files of one backend; ``begin`` is called when there is one.

        Raises:
            Lost: the backend was lost meanwhile.

        """
        forgets = 0
        while True:
            serving = self.serving
            if serving is None or not serving.is_serving():
                await self._life.wait_changed(deadline)
                continue
            if not forgets:
                begin()
            try:
                with serving as files:
                    result = await operation(files)
            except BackendError as error:
                if serving.is_serving():
                    raise
                raise Lost(error, serving, deadline) from None
            except HeldBack:
                raise
            except FileError as error:
                self._on_answer()  # an error of the file system's is one, too
                if not error.is_exhaustion or forgets == _MOST_FORGETS:
                    raise
                forgets += 1
                files.nodes.forget_idle()
                await trio.sleep(_FORGET_PAUSE)  # forgets are not answered
            else:
                self._on_answer()
                return result
