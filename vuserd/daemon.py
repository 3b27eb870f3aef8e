"""The daemon: the one place that puts exports, methods and sockets together."""

import logging
import os
import resource
import time
from typing import Any, Final

import trio

from vuserd import __version__
from vuserd.backend.find import Program, find_program
from vuserd.config import DaemonConfig
from vuserd.delivery.images import ImageStore
from vuserd.errors import ConfigurationError
from vuserd.fs.export import Export
from vuserd.rpc.listener import listening
from vuserd.rpc.methods import Methods
from vuserd.rpc.server import Server

_LOG = logging.getLogger(__name__)

#: Images that are kept, however small: each takes a page and a descriptor at least.
_MOST_IMAGES: Final = 4096


class Daemon:
    """Serves a configuration until :meth:`stop`."""

    def __init__(self, config: DaemonConfig) -> None:
        self._config = config
        self._started = time.monotonic()
        self._exports: dict[str, Export] = {}
        self._server: Server | None = None
        self._images: ImageStore | None = None
        self._stopping = False

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start every export, then serve calls; started once clients can connect.

        An export that cannot be brought up is in state ``failed`` and the others serve.

        Raises:
            ConfigurationError: the socket cannot be had.

        """
        config = self._config
        program = await self._find_program()
        with listening(config.socket) as listener:
            async with trio.open_nursery() as nursery:
                self._images = ImageStore(config.image_cache, _most_images(), nursery)
                self._server = Server(Methods(self._exports, self._images, self.status))
                for export_config in config.exports:
                    export = Export(export_config, config, program)
                    self._exports[export_config.name] = export
                for export in self._exports.values():
                    nursery.start_soon(export.run)
                for export in self._exports.values():
                    await export.settled.wait()
                _LOG.info("serving on %s", config.socket)
                task_status.started()
                if not self._stopping:
                    await self._server.serve([listener], config.drain)
                for export in self._exports.values():
                    export.stop()
                self._images.close()

    def stop(self) -> None:
        """End in good order: calls in progress first, then the exports."""
        self._stopping = True
        if self._server is not None:
            self._server.stop()

    def status(self) -> dict[str, Any]:
        """Return what ``vuserctl status`` shows."""
        assert self._server is not None
        assert self._images is not None
        counters = self._server.counters
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": time.monotonic() - self._started,
            "socket": self._config.socket,
            "exports": [export.describe_fully() for export in self._exports.values()],
            "connections": self._server.connections,
            "requests": counters.requests,
            "errors": counters.errors,
            "bytes_read": counters.bytes_read,
            "images": {
                "count": len(self._images),
                "bytes": self._images.bytes,
                "hits": self._images.hits,
                "misses": self._images.misses,
            },
        }

    async def _find_program(self) -> Program | ConfigurationError:
        """Find the virtiofsd that directories need; adopted backends do without."""
        try:
            return await find_program(self._config.backend, os.geteuid())
        except ConfigurationError as error:
            return error


def _most_images() -> int:
    """Return how many images may be kept: clients need descriptors, too."""
    return min(_MOST_IMAGES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
