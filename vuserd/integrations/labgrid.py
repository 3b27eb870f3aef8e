"""labgrid: exports as resources, their files for drivers, and User-mode Linux as a board.

An environment loads it by ``imports: [vuserd.integrations.labgrid]``. An exporter publishes a
``NetworkVuserdExport`` without it; the client reaches that daemon's socket through ssh.
"""

import contextlib
import errno
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any, Final, NoReturn

import attr
import pexpect
from labgrid.driver import Driver, ExecutionError
from labgrid.driver.consoleexpectmixin import ConsoleExpectMixin
from labgrid.factory import target_factory
from labgrid.protocol import ConsoleProtocol, FileSystemProtocol, FileTransferProtocol
from labgrid.resource import Resource
from labgrid.resource.common import NetworkResource
from labgrid.step import step

from vuserd.client import Client

_A_STRING: Final = attr.validators.instance_of(str)
#: Bytes that one read of a console takes at most.
_CONSOLE_BYTES: Final = 4096
_OFF: Final = "the board has switched off"
#: Memory of a board in MiB, and how often its initramfs has to fit in beside that.
_MEMORY: Final = 256
_UNPACKING: Final = 3


@target_factory.reg_resource
@attr.s(eq=False)
class VuserdExport(Resource):
    """An export of a daemon on this machine.

    Args:
        export: its name.
        socket: the daemon's address, by default that which vuserctl finds.

    """

    export: str = attr.ib(validator=_A_STRING)
    socket: str | None = attr.ib(default=None, validator=attr.validators.optional(_A_STRING))


@target_factory.reg_resource
@attr.s(eq=False)
class NetworkVuserdExport(NetworkResource):
    """An export of a daemon on another machine, which ssh reaches.

    Args:
        host: the machine, as ssh names it.
        export: its name.
        socket: the path of the daemon's socket there.

    """

    export: str = attr.ib(validator=_A_STRING)
    socket: str = attr.ib(default="/run/vuserd/vuserd.sock", validator=_A_STRING)


@contextlib.contextmanager
def _reached(share: Any) -> Iterator[str | None]:
    """Yield the address of an export's daemon here: ssh forwards that of another machine."""
    if not isinstance(share, NetworkVuserdExport):
        yield share.socket
        return
    folder = tempfile.mkdtemp(prefix="vuserd-labgrid-")
    try:
        address = os.path.join(folder, "socket")
        ssh = [word for word in share.command_prefix if word != "--"]
        forward = ["-L", f"{address}:{share.socket}"]
        _run([*ssh, "-O", "forward", *forward])
        try:
            yield address
        finally:
            _run([*ssh, "-O", "cancel", *forward])
    finally:
        shutil.rmtree(folder)


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ExecutionError(f"{shlex.join(command)}: {done.stderr.strip()}")


@target_factory.reg_driver
@attr.s(eq=False)
class VuserdDriver(Driver, FileSystemProtocol, FileTransferProtocol):
    """The files of an export: each read or copied in one version of it. Nothing can be written."""

    bindings = {"share": {VuserdExport, NetworkVuserdExport}}  # noqa: RUF012 - labgrid's
    #: A target's FileTransferProtocol is that to its board, where there is one.
    priorities = {FileTransferProtocol: -10}  # noqa: RUF012

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._open = contextlib.ExitStack()
        #: The client, while the driver is active, for what labgrid has no words for.
        self.client: Client

    def on_activate(self) -> None:
        """Connect to the daemon."""
        with contextlib.ExitStack() as opened:
            address = opened.enter_context(_reached(self.share))
            self.client = opened.enter_context(Client.connect(address))
            self._open = opened.pop_all()

    def on_deactivate(self) -> None:
        """Disconnect from it."""
        self._open.close()

    @Driver.check_active
    @step(args=["filename"])
    def read(self, filename: str) -> bytes:
        """Return the bytes of a file."""
        return self.client.read_bytes(self.share.export, filename)

    @Driver.check_active
    @step(args=["filename", "destination"])
    def get(self, filename: str, destination: str) -> None:
        """Copy a file to a local path, whole or not at all."""
        self.client.download(self.share.export, filename, destination)

    @Driver.check_active
    @step(args=["directory"])
    def archive(self, directory: str, destination: int) -> int:
        """Write a directory, as root's initramfs, to a descriptor; return its size."""
        done = self.client.archive(self.share.export, directory, destination, owner=(0, 0))
        return done.size

    @Driver.check_active
    def program(self, filename: str) -> int:
        """Return a descriptor, the caller's, of a copy in memory that can be executed."""
        written = os.memfd_create("program")
        try:
            self.client.download(self.share.export, filename, written)
            # What is open for writing is no program.
            return os.open(f"/proc/self/fd/{written}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(written)

    def write(self, filename: str, data: bytes, append: bool = False) -> NoReturn:  # noqa: ARG002, FBT001, FBT002
        """Raise an OSError: exports are read-only."""
        self._refuse(filename)

    def put(self, filename: str, remotepath: str) -> NoReturn:  # noqa: ARG002
        """Raise an OSError: exports are read-only."""
        self._refuse(remotepath)

    def _refuse(self, path: str) -> NoReturn:
        where = f"{self.share.export}:{path}"
        raise OSError(errno.EROFS, "vuserd serves files, and takes none", where)


@target_factory.reg_driver
@attr.s(eq=False)
class UserModeLinuxDriver(ConsoleExpectMixin, Driver, ConsoleProtocol):
    """A board that is a process: its kernel and its files come from an export when it is activated.

    Args:
        kernel: the kernel in the export, a program.
        tree: the directory that is unpacked as its initramfs.
        arguments: more of the kernel's command line.

    """

    bindings = {"files": VuserdDriver}  # noqa: RUF012 - labgrid's
    kernel: str = attr.ib(default="/linux", validator=_A_STRING)
    tree: str = attr.ib(default="/root", validator=_A_STRING)
    arguments: str = attr.ib(default="quiet", validator=_A_STRING)
    txdelay: float = attr.ib(default=0.0, validator=attr.validators.instance_of(float))
    txchunk: int = attr.ib(default=1, validator=attr.validators.instance_of(int))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._running = contextlib.ExitStack()
        self._console: socket.socket

    def on_activate(self) -> None:
        """Switch the board on."""
        with contextlib.ExitStack() as started:
            # On a terminal the kernel would have a process for its size, which outlives it.
            ours, theirs = socket.socketpair()
            self._console = started.enter_context(ours)
            with theirs:
                self._boot(theirs, started)
            self._running = started.pop_all()

    def on_deactivate(self) -> None:
        """Switch it off."""
        self._running.close()

    def _boot(self, console: socket.socket, started: contextlib.ExitStack) -> None:
        """Start the kernel with its console on a socket; ``started`` ends what was started."""
        home = started.enter_context(tempfile.TemporaryDirectory(prefix="vuserd-labgrid-"))
        with contextlib.ExitStack() as inherited:
            kernel = self.files.program(self.kernel)
            inherited.callback(os.close, kernel)
            initramfs = os.memfd_create("initramfs")
            inherited.callback(os.close, initramfs)
            size = self.files.archive(self.tree, initramfs)
            memory = _MEMORY + _UNPACKING * size // (1 << 20)
            board = subprocess.Popen(
                [
                    *(f"/proc/self/fd/{kernel}", f"mem={memory}M", f"uml_dir={home}/"),
                    *(f"initrd=/proc/self/fd/{initramfs}", "rdinit=/init", "noreboot"),
                    *("con=null", "con0=fd:0,fd:1", *shlex.split(self.arguments)),
                ],
                pass_fds=(kernel, initramfs),
                stdin=console.fileno(),
                stdout=console.fileno(),
                stderr=console.fileno(),
                env={**os.environ, "HOME": home},
                start_new_session=True,
            )
            started.callback(_end, board)

    def _read(self, size: int = 1, timeout: float = 0.0, max_size: int | None = None) -> bytes:
        """Return what the board has written, once it has; up to ``max_size`` bytes."""
        if not select.select([self._console], [], [], timeout)[0]:
            raise pexpect.TIMEOUT(f"the board has written nothing for {timeout:.2f} s")
        try:
            written = self._console.recv(max_size or max(size, _CONSOLE_BYTES))
        except ConnectionResetError:  # it had not read all that it was written
            written = b""
        if not written:
            raise ExecutionError(_OFF)
        return written

    def _write(self, data: bytes) -> int:
        try:
            self._console.sendall(data)
        except BrokenPipeError:
            raise ExecutionError(_OFF) from None
        return len(data)


def _end(board: "subprocess.Popen[bytes]") -> None:
    """End a kernel with the processes that it consists of."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(board.pid, signal.SIGKILL)
    board.wait()
