"""The start of a backend on the directory that an export's path leads to, before and after it."""

import gc
import os
from collections.abc import Sequence
from typing import Final, NamedTuple

import trio

from vuserd.backend.base import Backend
from vuserd.backend.find import BackendKind, Program
from vuserd.backend.process import sandboxes
from vuserd.config.model import ExportConfig
from vuserd.errors import ConfigurationError
from vuserd.exports.directory import Lookout, Sight
from vuserd.exports.hangs import Hangs
from vuserd.exports.serving import Serving
from vuserd.tracing.tap import Tracing

#: Backends that are started in a row while one directory after the other takes its place.
_MOST_MOVES: Final = 5
#: Seconds before calls can have as many started again: another user may switch the path all the
#: time.
_MOVES_PAUSE: Final = 0.25
#: Seconds for the look before a start: what is mounted on demand may take a while.
_LOOK_BEFORE_START: Final = 10.0


class DirectoryGone(Exception):  # noqa: N818
    """An export's path leads to no directory; the words say why."""


class Plan(NamedTuple):
    """What a backend is to be like."""

    config: ExportConfig
    #: The virtiofsd to start; or why there is none, which only matters to a directory.
    program: Program | ConfigurationError
    #: The sandboxes to try; empty where none has worked yet.
    modes: Sequence[str] = ()

    def sandboxes(self) -> Sequence[str]:
        """Return the sandboxes to try, the best one first."""
        wanted = self.config.options.sandbox
        if self.modes or isinstance(self.program, ConfigurationError):
            return self.modes
        return sandboxes(self.program.kind, os.geteuid()) if wanted is None else [wanted]

    def served_by(self, backend: Backend | None) -> str:
        """Return what is served through which virtiofsd, for people."""
        assert backend is not None
        version = backend.version or "of unknown version"
        return f"{self.config.source} through virtiofsd {version} ({backend.kind})"

    def directory(self, sight: Sight | None) -> str:
        """Return the path to share: without links, which could be switched meanwhile."""
        assert self.config.directory is not None
        assert isinstance(self.program, Program)
        if sight is None or (self.program.kind is BackendKind.C and "," in sight.resolved):
            return self.config.directory  # the C one shares no path with a comma, but a link to it
        return sight.resolved


class Starter:
    """Starts the backends of one export.

    Args:
        lookout: looks where the path leads to; None for an adopted backend, whose directory is not
            known.
        tracing: the clients that trace its requests.
        hangs: what hung its backends, and is held back.

    """

    def __init__(self, lookout: Lookout | None, tracing: Tracing, hangs: Hangs) -> None:
        self._lookout = lookout
        self._tracing = tracing
        self._hangs = hangs
        self._has_started = False

    async def start(self, nursery: trio.Nursery, plan: Plan) -> Serving:
        """Start a backend; it serves then, or is over and says why.

        It opens its directory by name. What it has opened is looked at before it is used.

        Args:
            nursery: where it lives.
            plan: what it is to be like.

        Raises:
            DirectoryGone: the export's path leads to none.

        """
        if self._lookout is None:
            return await self._start(nursery, plan, None)
        sight = await self._lookout.see(_LOOK_BEFORE_START)
        for _ in range(_MOST_MOVES):
            if sight is None:
                raise DirectoryGone(f"{plan.config.source}: its file system does not answer")
            if sight.standing is None:
                raise DirectoryGone(sight.reason)
            serving = await self._start(nursery, plan, sight)
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
            raise DirectoryGone(
                f"{plan.config.source} leads to another directory all the time, or the backend is a"
                " script that does not exec virtiofsd"
            )
        if not serving.is_serving():
            await serving.over.wait()  # it was lost meanwhile, and by then it is known why
        return serving

    async def _start(self, nursery: trio.Nursery, plan: Plan, sight: Sight | None) -> Serving:
        """Start a backend on the directory of ``sight``, and wait until it serves or cannot."""
        if self._has_started:
            # A third of a MiB of what served before is in cycles, and the collector comes seldom.
            gc.collect()
        self._has_started = True
        config, program, _ = plan
        if config.socket is not None:
            serving = Serving(config, None, (), self._tracing, hangs=self._hangs)
        elif isinstance(program, ConfigurationError):
            serving = Serving(config, None, (), self._tracing)
            serving.failure = str(program)
            serving.over.set()
            return serving
        else:
            directory = plan.directory(sight)
            serving = Serving(
                config, program, plan.sandboxes(), self._tracing, directory, self._hangs
            )
            serving.standing = None if sight is None else sight.standing
        await nursery.start(serving.run)
        if not serving.is_serving():
            await serving.over.wait()  # by then it is known why
        return serving
