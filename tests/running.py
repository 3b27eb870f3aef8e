"""A real daemon in a process of its own, and checks of what a run of the suite leaves behind."""

import contextlib
import ctypes
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from tests.e2e.processes import family
from tests.forking import ForkedDaemon

REPOSITORY: Final = Path(__file__).parent.parent
_PLACES: Final = {
    "rust": (REPOSITORY / ".cache/virtiofsd-rust/virtiofsd", Path("/usr/libexec/virtiofsd")),
    "c": (Path("/usr/lib/qemu/virtiofsd"),),
}
_START: Final = 60.0
#: Seconds for what another process does by itself, on however busy a machine.
_PATIENCE: Final = 60.0
_PR_SET_CHILD_SUBREAPER: Final = 36


def find_backend(kind: str) -> str | None:
    """Return the virtiofsd of a kind; $VUSERD_TEST_RUST and $VUSERD_TEST_C come first."""
    configured = os.environ.get(f"VUSERD_TEST_{kind.upper()}")
    if configured:
        return configured
    for place in _PLACES[kind]:
        # Where there is no C one any more, Debian has a link to the Rust one in its place.
        if os.access(place, os.X_OK) and not (kind == "c" and os.path.islink(place)):
            return str(place)
    return None


class RunningDaemon:
    """``vuserd serve`` for the block's time; ended by SIGTERM, which has to give status 0.

    ``log`` is its standard error, complete after the block. With ``configured`` the arguments name
    a configuration that listens on ``socket_path``. ``program`` is another installation's command
    for ``vuserd``; ``variables`` are set in its environment, and ``folder`` is where it is started.
    """

    def __init__(
        self,
        exports: Mapping[str, Path],
        socket_path: Path,
        backend: str | None,
        *arguments: str,
        descriptors: int | None = None,
        user: int | None = None,
        configured: bool = False,
        program: Sequence[str] | None = None,
        variables: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.socket = str(socket_path)
        self.backend = backend
        self.log = ""
        self._program = program
        self._command = ["serve"]
        if not configured:
            self._command += ["--socket", self.socket]
        for name, directory in exports.items():
            self._command += ["--export", f"{name}={directory}"]
        if backend is not None:
            self._command += ["--backend", backend]
        self._command += arguments
        self._descriptors = descriptors
        self._user = user
        self._variables = {"PYTHONPATH": str(REPOSITORY)} if variables is None else variables
        self._folder = folder
        self._log_path = Path(f"{self.socket}.log")
        self._temporary = Path(f"{self.socket}.tmp")

    def __enter__(self) -> Self:
        self._temporary.mkdir()
        self._temporary.chmod(0o777)
        environment = {**os.environ, "TMPDIR": str(self._temporary), **self._variables}
        if self._user is not None:  # it may not write its coverage data beside this process's
            environment = {k: v for k, v in environment.items() if not k.startswith("COVERAGE_")}
        with self._log_path.open("wb") as log:
            self.process = self._start(log, environment)
        deadline = time.monotonic() + _START
        while not self._reachable():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                self.process.wait()
                raise RuntimeError(f"the daemon did not start: {self._log_path.read_text()}")
            time.sleep(0.01)  # there is nothing to wait on before the socket is there
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=30)
        self.log = self._log_path.read_text()
        if error is None:
            assert status == 0, self.log
            assert "Traceback" not in self.log, self.log
            assert not os.path.exists(self.socket)
            self._temporary.rmdir()  # and nothing is left in it

    def _start(self, log: IO[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        if self._program is None:
            return ForkedDaemon(
                self._command,
                log,
                environment,
                folder=self._folder,
                descriptors=self._descriptors,
                user=self._user,
            )
        return subprocess.Popen(
            [*self._program, *self._command],
            stdin=subprocess.DEVNULL,
            stderr=log,
            env=environment,
            cwd=self._folder,
            preexec_fn=self._limit if self._descriptors else None,
        )

    def _limit(self) -> None:
        assert self._descriptors is not None
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._descriptors, self._descriptors))

    def _reachable(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(self.socket)
            return True
        return False


def wait_until(met: Callable[[], bool]) -> None:
    """Wait until something is so that comes by itself, and of which nobody tells."""
    deadline = time.monotonic() + _PATIENCE
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def open_descriptors(process: int) -> int:
    """Return how many descriptors a process has open, with those of all that descend from it."""
    return sum(len(os.listdir(f"/proc/{one}/fd")) for one in family(process))


def adopt_orphans() -> None:
    """Become the parent of every process whose own parent ends, to lose sight of none."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def leftovers() -> dict[str, set[str]]:
    """Return the child processes of this process, its shared memory and its pipes."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    processes = set()
    for child in children:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                os.waitpid(int(child), 0)  # an orphan that has ended: init would reap it
                continue
            command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            processes.add(f"{child} {command}")
    descriptors = set()
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{entry}")
            if target.startswith(("/memfd:", "pipe:")):
                descriptors.add(f"{entry} {target}")
    return {"processes": processes, "descriptors": descriptors}
