"""Commands whose interpreter starts once for many runs: each is a fork of a process that waits.

That process has the streams and the environment of its runs from its start, and has imported what
they run. So a run's streams are those that the interpreter has made of what it found, and they are
flushed as an interpreter does it that ends.
"""

import gc
import importlib
import json
import os
import selectors
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_PATIENCE = 60.0


class Ended(NamedTuple):
    """What became of one run."""

    status: int
    out: bytes
    err: str


class StartedOnce:
    """Runs ``main`` of a module under some redirections of a shell, as often as is wanted.

    ``imports`` are modules that it imports later.
    """

    def __init__(
        self, module: str, imports: Sequence[str], streams: str, environment: Mapping[str, str]
    ) -> None:
        self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = json.dumps([other.fileno(), module, *imports])
        with other:
            self._process = subprocess.Popen(
                ["bash", "-c", f'exec "$0" "$@" {streams}', sys.executable, __file__, words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd=Path(__file__).parent.parent.parent,
                pass_fds=[other.fileno()],
            )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._pipes = self._process.stdout.fileno(), self._process.stderr.fileno()
        for pipe in self._pipes:
            os.set_blocking(pipe, False)

    def run(self, *arguments: str | bytes) -> Ended:
        """Run it with these arguments; its output is what the shell has left to be read here."""
        self._control.send(b"\0".join(map(os.fsencode, ("command", *arguments))))
        said = {pipe: bytearray() for pipe in self._pipes}
        with selectors.DefaultSelector() as selector:
            for each in (self._control, *self._pipes):
                selector.register(each, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select(_PATIENCE)}
                assert ready, f"{arguments}: no end within {_PATIENCE} s"
                for pipe in self._pipes:
                    if pipe in ready and not _take(pipe, said[pipe]):
                        selector.unregister(pipe)
                if self._control.fileno() in ready:
                    break
        status = self._control.recv(100)
        assert status, f"{arguments}: {self._process.wait(_PATIENCE)}, {said}"
        for pipe in self._pipes:  # what it has said last
            while _take(pipe, said[pipe]):
                pass
        out, err = (bytes(said[pipe]) for pipe in self._pipes)
        ended = Ended(int(status), out, os.fsdecode(err))
        assert "Traceback" not in ended.err
        assert "Exception ignored" not in ended.err
        return ended

    def close(self) -> None:
        self._control.close()
        self._process.communicate(timeout=_PATIENCE)


_shared: dict[tuple[int, str], StartedOnce] = {}


def shared(module: str, *imports: str) -> StartedOnce:
    """Return what runs a module for all tests of this process; it is started when first wanted."""
    which = os.getpid(), module  # a fork of this process has one of its own
    if which not in _shared:
        variables = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
        _shared[which] = StartedOnce(module, imports, "", variables)
    return _shared[which]


def stop_shared() -> None:
    """End all that :func:`shared` has started in this process."""
    for process, module in list(_shared):
        if process == os.getpid():
            _shared.pop((process, module)).close()


def _take(pipe: int, said: bytearray) -> bool:
    """Append what is in a pipe now; return False where there is nothing, or never will be."""
    try:
        part = os.read(pipe, 1 << 20)
    except BlockingIOError:
        return False
    said += part
    return bool(part)


def _wait_for_runs(control: socket.socket) -> None:
    """Fork for each run; return in the fork."""
    while request := control.recv(1 << 16):
        process = os.fork()
        if not process:
            sys.argv = [os.fsdecode(word) for word in request.split(b"\0")]
            control.close()
            return
        _, status = os.waitpid(process, 0)
        control.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


if __name__ == "__main__":
    sys.path[0] = os.getcwd()
    [descriptor, *modules] = json.loads(sys.argv[1])
    module, *_ = [importlib.import_module(name) for name in modules]
    gc.freeze()  # each fork would write to all of it, to look for garbage at its end
    _wait_for_runs(socket.socket(fileno=descriptor))
    sys.exit(module.main())
