"""The daemon: the one place that connects exports, methods and sockets."""

import itertools
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import trio

from vuserd import __version__
from vuserd.backend.children import CHILDREN
from vuserd.config.descriptor_limits import (
    cuts,
    descriptors_allowed,
    limits_within,
    most_connections,
    most_images,
)
from vuserd.config.memory_limits import limits_within_memory
from vuserd.config.model import ClientLimits, DaemonConfig, ListenConfig
from vuserd.delivery.census import CENSUS
from vuserd.delivery.headroom import HEADROOM
from vuserd.delivery.images import ImageStore
from vuserd.errors import CallError, ConfigurationError, ErrorCode, os_reason
from vuserd.exports.states import ExportState
from vuserd.exports.table import Exports
from vuserd.listen.listeners import Listeners
from vuserd.listen.rigs import Rigs
from vuserd.metrics.exporter import Exporter
from vuserd.metrics.sources import Sources
from vuserd.rpc.access import Rights
from vuserd.rpc.methods.table import Methods
from vuserd.rpc.server import Server
from vuserd.service.systemd import Notifier
from vuserd.tasks.threads import in_thread
from vuserd.wire.address import socket_address

_LOG = logging.getLogger(__name__)

#: The most connections that ``status`` shows to a client that does not manage the daemon.
_MOST_NAMED: Final = 64
#: Seconds for which the service manager is asked while calls end, and between two requests.
_EXTENSION: Final = 10.0
_EXTENSION_PERIOD: Final = 1.0
#: Seconds between checks while an export makes no progress: a ping is due once it does again.
_RECOVERY: Final = 1.0


class Daemon:
    """Serves a configuration, which :meth:`reload` reads again, until :meth:`stop`.

    Args:
        read: reads the configuration, at the start and for reloads; raises ConfigurationError.
        inherited: sockets that the service manager listens on, with their names.
        notifier: reports the daemon's state to the service manager.

    """

    def __init__(
        self,
        read: Callable[[], DaemonConfig],
        inherited: Sequence[tuple[str, socket.socket]] = (),
        notifier: Notifier | None = None,
    ) -> None:
        self._read = read
        self._inherited = inherited
        self._notifier = notifier or Notifier(None)
        self._started = time.monotonic()
        self._stopped = trio.Event()
        self._starting = trio.CancelScope()
        #: Held by the task that changes exports, listeners or rigs.
        self._changing = trio.Lock()
        #: Of the reload in progress.
        self._reloading = trio.CancelScope()
        #: Of threads that wait for the file system of the configuration.
        self._limiter = trio.CapacityLimiter(1)
        self._config = read()
        #: The state that the service manager was told last; empty before the daemon is ready.
        self._said = ""
        #: Lists the sockets and rigs that have failed.
        self._also_failed: Callable[[], list[str]] = list

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start every export and serve calls; ``task_status`` is started once clients are served.

        What cannot be brought up has failed and says why, and all else serves.

        Raises:
            ConfigurationError: no socket at all can be had.

        """
        config = self._config
        async with trio.open_nursery() as exporting:
            self._exports = Exports(exporting)
            most = most_images(descriptors_allowed())
            self._images = ImageStore(config.image_cache, most, exporting)
            CENSUS.limit = config.limits.user_images
            methods = Methods(self._exports, self._images, self)
            self._server = Server(
                methods, _fitting(config.limits), most_connections(descriptors_allowed())
            )
            self._exporter = Exporter(
                Sources(
                    self._server.counters,
                    self._exports,
                    self._images,
                    methods.refusals,
                    lambda: len(self._server.connections()),
                    lambda: [*self._listeners.describe(), *self._rigs.describe(None)],
                )
            )
            self._exporter.configure(config.metrics_file, config.metrics_interval)
            async with trio.open_nursery() as serving:
                self._listeners = Listeners(
                    self._server, serving, self._inherited, self._tell_state
                )
                self._rigs = Rigs(self._server, serving, self._tell_state)
                self._also_failed = self._sockets_that_failed
                problem = await self._come_up(serving)
                if problem is None and not self._stopped.is_set():
                    serving.start_soon(self._listeners.run)
                    serving.start_soon(self._rigs.run)
                    serving.start_soon(CHILDREN.reap_orphans)
                    serving.start_soon(self._ping)
                    serving.start_soon(self._tell_states)
                    serving.start_soon(self._exporter.run)
                    self._server.open()
                    self._said = self._summary()
                    self._notifier.ready(self._said)
                    task_status.started()
                    await self._stopped.wait()
                    self._notifier.stopping("answering the calls in progress")
                    await self._drain(serving)
                await self._changing.acquire()  # for good: no change may come after this
                serving.cancel_scope.cancel()
            self._exports.stop()
            self._images.close()
        if problem is not None:
            raise problem

    async def _come_up(self, serving: trio.Nursery) -> ConfigurationError | None:
        """Bind the sockets, then start the exports; return the error if there is no socket."""
        try:
            await serving.start(self._server.run)
        except ConfigurationError as error:
            return error
        serving.start_soon(self._ask_for_time, self._starting)
        async with self._changing:
            with self._starting:
                config = self._config
                await self._listeners.apply(self._wanted_listeners(config))
                if not self._listeners.addresses:
                    reasons = self._listeners.problems.values()
                    return ConfigurationError(
                        "\n".join([*reasons, "there is no socket to serve on"])
                    )
                await self._rigs.apply(config.rigs)
                await self._exports.apply(config.exports)
        self._starting.cancel()
        return None

    def stop(self) -> None:
        """Stop cleanly: finish calls in progress first, then stop the exports."""
        self._stopped.set()
        self._starting.cancel()

    async def reload(self) -> list[str]:
        """Read the configuration again and apply what differs; return the changes made.

        Raises:
            ConfigurationError: it is wrong, and nothing was done.
            CallError: the daemon is about to end.

        """
        async with self._changing:
            self._refuse_change_at_the_end()
            self._notifier.reloading()
            try:
                with trio.CancelScope() as self._reloading:
                    config = await self._read_again()
                    self._refuse_change_at_the_end()
                    # The client that asked may disconnect: the configuration is applied whole.
                    self._reloading.shield = True
                    return await self._apply(config)
                raise _about_to_end()
            finally:
                if not self._stopped.is_set():
                    self._said = self._summary()
                    self._notifier.ready(self._said)

    async def _read_again(self) -> DaemonConfig:
        try:
            return await in_thread(self._read, abandon_on_cancel=True, limiter=self._limiter)
        except OSError as error:
            raise ConfigurationError(f"it was not read: {os_reason(error)}") from error
        except ConfigurationError as error:
            # Who asked for it is told what they are: a client, or the log after a signal.
            mistakes = len(str(error).split("\n"))
            plural = "s" if mistakes > 1 else ""
            _LOG.error("the configuration was not applied: %d mistake%s", mistakes, plural)
            raise

    async def reload_export(self, name: str) -> list[str]:
        """Replace an export's backend.

        Raises:
            VuserdError: the new one does not start; the old one, if there is one, goes on.

        """
        async with self._changing:
            self._refuse_change_at_the_end()
            return await self._exports.replace(name)

    def _refuse_change_at_the_end(self) -> None:
        if self._stopped.is_set():
            raise _about_to_end()

    def rigs(self, rights: Rights) -> list[dict[str, Any]]:
        """Return the rigs that a client with these rights may see."""
        return self._rigs.describe(rights)

    async def metrics(self) -> str:
        """Return all metrics in Prometheus' text format."""
        return await self._exporter.text()

    def status(self, rights: Rights) -> dict[str, Any]:
        """Return what ``vuserctl status`` shows to a client with these rights.

        Only a client that manages the daemon sees what concerns other users.
        """
        described = {
            "version": __version__,
            "uptime_s": time.monotonic() - self._started,
            "exports": [
                export.describe_fully() if rights.manages else export.describe()
                for name, export in self._exports.items()
                if rights.sees(name, export.config.access)
            ],
            "rigs": self._rigs.describe(rights),
            "origin": rights.origin._asdict(),
            "clients": [
                connection.describe()
                for connection in itertools.islice(
                    (
                        connection
                        for connection in self._server.connections()
                        if rights.manages or connection.rights.is_same_user(rights)
                    ),
                    None if rights.manages else _MOST_NAMED,
                )
            ],
        }
        return described | (self._totals() if rights.manages else {})

    def _totals(self) -> dict[str, Any]:
        counters = self._server.counters
        return {
            "pid": os.getpid(),
            "socket": ", ".join(self._listeners.addresses),
            "listeners": self._listeners.describe(),
            "connections": len(self._server.connections()),
            "requests": counters.requests,
            "errors": counters.errors,
            "bytes_read": counters.bytes_read,
            "bytes_of_images": counters.bytes_of_images,
            "bytes_loaded": counters.bytes_loaded,
            "images": {
                "count": len(self._images),
                "bytes": self._images.bytes,
                "hits": self._images.hits,
                "misses": self._images.misses,
            },
        }

    async def _apply(self, config: DaemonConfig) -> list[str]:
        """Apply what differs, sockets last, so that what they serve is up by then."""
        before, self._config = self._config, config
        done = await self._exports.apply(config.exports)
        done += await self._rigs.apply(config.rigs)
        if config.limits != before.limits:
            self._server.limits = _fitting(config.limits)
            CENSUS.limit = config.limits.user_images
            done.append("limits: changed, for users who connect from now on")
        if config.image_cache != before.image_cache:
            self._images.resize(config.image_cache)
            done.append(f"image_cache: {config.image_cache} bytes")
        if config.drain != before.drain:
            done.append(f"drain: {config.drain:g} s")
        metrics = (config.metrics_file, config.metrics_interval)
        if metrics != (before.metrics_file, before.metrics_interval):
            self._exporter.configure(*metrics)
            done.append(f"metrics_file: {config.metrics_file or 'none'}")
        done += await self._listeners.apply(self._wanted_listeners(config))
        failed = {f"socket {where}: {why}" for where, why in self._listeners.problems.items()}
        for line in done:
            if line not in failed:  # which is in the log already
                _LOG.info("reloaded: %s", line)
        return done

    def _wanted_listeners(self, config: DaemonConfig) -> Sequence[ListenConfig]:
        """Return the sockets to listen on: by default one, unless there are inherited ones."""
        if config.listeners or self._inherited:
            return config.listeners
        return [ListenConfig(socket_address())]

    def _summary(self) -> str:
        """Return the daemon's state as a line for ``systemctl status``."""
        states = [export.state for export in self._exports.values()]
        up = sum(state is ExportState.UP for state in states)
        down = [
            f"{name} {export.state}"
            for name, export in self._exports.items()
            if export.state is not ExportState.UP
        ]
        down += self._also_failed()
        return f"{up} of {len(states)} exports up" + (f"; {', '.join(down)}" if down else "")

    def _sockets_that_failed(self) -> list[str]:
        failed = [f"socket {address} failed" for address in self._listeners.problems]
        return failed + [f"rig {netns} failed" for netns in self._rigs.problems]

    async def _ping(self) -> None:
        """Ping the service manager's watchdog, if it has one, while all exports make progress."""
        interval = self._notifier.watchdog_interval
        if interval is None:
            return
        pause = interval
        while True:
            await trio.sleep(pause)
            if all(export.makes_progress() for export in self._exports.values()):
                self._notifier.watchdog()
                pause = interval
            else:
                pause = min(interval, _RECOVERY)

    async def _tell_states(self) -> None:
        """Report the exports' states to the service manager whenever they change."""
        while True:
            await self._exports.changed()
            self._tell_state()

    def _tell_state(self) -> None:
        """Report the state, if it is ready and says anything else than before."""
        summary = self._summary()
        if self._said not in ("", summary) and not self._stopped.is_set():
            self._notifier.status(summary)
            self._said = summary

    async def _drain(self, serving: trio.Nursery) -> None:
        """Let the server finish its clients' calls, and ask the service manager to wait for it.

        A reload in progress has as long as they have: it may wait for what does not answer.
        """
        serving.start_soon(self._ask_for_time, trio.CancelScope())
        self._reloading.deadline = trio.current_time() + self._config.drain
        self._server.stop(self._config.drain)
        await self._server.ended.wait()

    async def _ask_for_time(self, over: trio.CancelScope) -> None:
        """Keep asking the service manager for more time until ``over`` is cancelled."""
        while not over.cancel_called:
            self._notifier.extend_timeout(_EXTENSION)
            await trio.sleep(_EXTENSION_PERIOD)


def _about_to_end() -> CallError:
    return CallError(ErrorCode.SHUTTING_DOWN, "the daemon is about to end")


def _fitting(limits: ClientLimits) -> ClientLimits:
    """Return the limits cut to fit what the daemon may have; log the cuts."""
    allowed, total = descriptors_allowed(), HEADROOM.total()
    by_descriptors = limits_within(limits, allowed)
    if cut := cuts(limits, by_descriptors):
        _LOG.info(
            "limits of users are lowered to fit %s open files (LimitNOFILE=, ulimit -Hn): %s",
            allowed,
            cut,
        )
    by_memory = limits_within_memory(by_descriptors, total)
    if cut := cuts(by_descriptors, by_memory):
        _LOG.info(
            "limits of users are lowered to fit %s bytes of memory (MemoryMax=): %s", total, cut
        )
    return by_memory
