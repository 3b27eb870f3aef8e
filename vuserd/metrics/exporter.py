"""Export the metrics: as text for the RPC, and in a file for node_exporter.

prometheus_client takes longer to load than the daemon takes to start, so it is loaded in a thread,
when metrics are first asked for.
"""

import contextlib
import errno
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from vuserd.errors import UnsafePath, os_reason
from vuserd.metrics.sources import Sources
from vuserd.tasks.threads import in_thread
from vuserd.trust.path import own_trust, require_answers, route

if TYPE_CHECKING:
    from vuserd.metrics.families import Metrics

_LOG = logging.getLogger(__name__)

#: Readable by all users: node_exporter runs as a user of its own.
_MODE: Final = 0o644
#: Seconds for writing or removing the file.
_PATIENCE: Final = 2.0


class Exporter:
    """Renders the metrics as text; :meth:`run` keeps a file of them if one is configured.

    The file is removed at the end, since node_exporter would go on showing its numbers. A file that
    a killed daemon left behind is known by its age, ``node_textfile_mtime_seconds``.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._metrics: Metrics | None = None
        self._path: str | None = None
        self._interval = 0.0
        self._changed = trio.Event()
        #: Why the last attempt to write the file failed.
        self._problem = ""
        #: Of threads that wait for the folder's file system.
        self._limiter = trio.CapacityLimiter(2)

    async def text(self) -> str:
        """Return all metrics in Prometheus' text format."""
        if self._metrics is None:
            self._metrics = await in_thread(_loaded, self._sources)
        return await in_thread(self._metrics.read())

    def configure(self, path: str | None, interval: float) -> None:
        """Write the file every ``interval`` seconds from now on; a path of None ends that."""
        self._path, self._interval = path, interval
        self._changed.set()

    async def run(self) -> None:
        """Keep the file up to date until cancelled, then remove it."""
        path: str | None = None
        try:
            while True:
                self._changed = trio.Event()
                if path != self._path:
                    before, path = path, self._path
                    await self._remove(before)
                while not self._changed.is_set():
                    if path is not None:
                        await self._write(path)
                    with trio.move_on_after(self._interval if path is not None else float("inf")):
                        await self._changed.wait()
        finally:
            await self._remove(path)

    async def _remove(self, path: str | None) -> None:
        if path is not None:
            with contextlib.suppress(OSError):
                await self._in_time(_remove, path)

    async def _write(self, path: str) -> None:
        try:
            await self._in_time(_replace, path, await self.text())
        except (OSError, UnsafePath) as error:
            why = os_reason(error) if isinstance(error, OSError) else error.wrong
            problem = f"{path}: {why}"
            if problem != self._problem:
                _LOG.warning("metrics cannot be written: %s", problem)
            self._problem = problem
        else:
            if self._problem:
                _LOG.info("metrics are written to %s again", path)
            self._problem = ""

    async def _in_time(self, function: Callable[..., None], *arguments: str) -> None:
        """Do it in a thread, also when cancelled: what was begun comes to its end first.

        Raises:
            TimeoutError: the folder's file system does not answer. The thread is left to itself.

        """
        with trio.move_on_after(_PATIENCE) as scope:
            scope.shield = True
            await in_thread(function, *arguments, abandon_on_cancel=True, limiter=self._limiter)
        if scope.cancelled_caught:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def _loaded(sources: Sources) -> "Metrics":
    from vuserd.metrics.families import Metrics

    return Metrics(sources)


def _replace(path: str, text: str) -> None:
    """Replace the file atomically: a reader sees the old one or the new one, whole."""
    folder, name = os.path.split(path)
    temporary = f"{name}.tmp"  # node_exporter reads *.prom
    trust = own_trust()
    with route(folder, trust) as found:
        require_answers(found, folder, trust)
        with contextlib.suppress(FileNotFoundError):
            # Whatever it is: opening it instead could wait, if it were a pipe.
            os.unlink(temporary, dir_fd=found.descriptor)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, _MODE, dir_fd=found.descriptor)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), _MODE)  # regardless of the umask
                file.write(text)
            os.rename(temporary, name, src_dir_fd=found.descriptor, dst_dir_fd=found.descriptor)
        except OSError:  # no room for it: leave no half of it, either
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=found.descriptor)
            raise


def _remove(path: str) -> None:
    folder, name = os.path.split(path)
    trust = own_trust()
    with contextlib.suppress(OSError, UnsafePath), route(folder, trust) as found:
        require_answers(found, folder, trust)
        os.unlink(name, dir_fd=found.descriptor)
