"""``vuserd serve`` for the time of a workload."""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from benchmarks.contender import Servers
from benchmarks.processes import running
from vuserd.client import Client
from vuserd.client.errors import CannotConnect

EXPORT: Final = "bench"
_READY_WITHIN: Final = 60.0
_LOOK_EVERY: Final = 0.001  #: seconds


class Served(NamedTuple):
    """A daemon that serves one directory as :data:`EXPORT`."""

    socket: str
    kind: str  #: of its virtiofsd
    daemon: int
    backend: int

    @property
    def servers(self) -> Servers:
        """The processes behind the socket."""
        return Servers((self.daemon,), (self.backend,))


def serve_command(
    program: str, directory: str, socket: str, *, image_cache: bool = True
) -> Sequence[str]:
    """Return the command line."""
    options = ["--socket", socket, "--export", f"{EXPORT}={directory}", "--backend", program]
    return [
        *(sys.executable, "-m", "vuserd", "serve", *options),
        *(() if image_cache else ("--image-cache", "0")),
    ]


@contextlib.contextmanager
def served(program: str, directory: str, *, image_cache: bool = True) -> Iterator[Served]:
    """Serve a directory for the block's time.

    Raises:
        RuntimeError: it does not come up; with what it said.

    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vuserd-bench-"))
        socket = os.path.join(folder, "s")
        log = stack.enter_context(open(os.path.join(folder, "log"), "w+b"))
        command = serve_command(program, directory, socket, image_cache=image_cache)
        process = stack.enter_context(running(command, stderr=log))
        deadline = time.monotonic() + _READY_WITHIN
        while True:
            with contextlib.suppress(CannotConnect), Client.connect(socket) as client:
                (export,) = client.exports()
                break
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                raise RuntimeError(f"the daemon does not serve: {log.read().decode()}")
            time.sleep(_LOOK_EVERY)
        if export.backend is None or export.backend.pid is None:
            raise RuntimeError(f"no backend behind {export}")
        yield Served(socket, export.backend.kind, process.pid, export.backend.pid)
