"""Run a virtiofsd: start it on a private socket, log what it prints, and reliably stop it."""

import contextlib
import logging
import os
import resource
import secrets
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, NamedTuple

import trio

from vuserd.backend import landlock
from vuserd.backend.base import Backend
from vuserd.backend.children import CHILDREN
from vuserd.backend.find import BackendKind, Program
from vuserd.backend.opened import has_opened
from vuserd.backend.stderr import Words, is_harmless
from vuserd.errors import BackendDown, os_reason
from vuserd.service.journal import about_export
from vuserd.tasks.threads import in_thread, starting_in_thread

_LOG = logging.getLogger(__name__)

#: Seconds for a backend to end by itself once its connection is closed, and then after SIGTERM.
_GRACE: Final = 2.0
#: The same if the session with it is lost already.
_SHORT_GRACE: Final = 0.05
#: How a process may end when the daemon ends it.
_ENDS_FOR_US: Final = frozenset({0, -signal.SIGTERM, -signal.SIGKILL})
_MOST_STATUS: Final = 256
#: Names of sockets to try: to spoil one, a process has to find and use it within microseconds.
_MOST_NAMES: Final = 8


class BackendOptions(NamedTuple):
    """How to start a backend."""

    #: The most descriptors that it may open: it needs one for each node that is looked up.
    descriptors: int = 65536
    #: One of :func:`sandboxes`; None for the best one that the machine grants.
    sandbox: str | None = None
    #: One of ``never``, ``metadata``, ``auto``, ``always``.
    cache: str = "auto"
    #: Threads beside the main one.
    thread_pool: int = 0
    #: Whether extended attributes can be read through it.
    xattr: bool = False
    #: One of ``never``, ``prefer``, ``mandatory``.
    inode_file_handles: str = "never"

    def within_limits(self) -> "BackendOptions":
        """Return the options cut to the machine's hard limit, above which no backend starts."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if hard == resource.RLIM_INFINITY:
            return self
        return self._replace(descriptors=min(self.descriptors, hard))


def sandboxes(kind: BackendKind, uid: int) -> Sequence[str]:
    """Return the sandboxes to try, best first: where the machine refuses one, the next is used.

    In no mode can a file outside the directory be reached through the socket. A namespace also
    hides the host's file system from a backend that is broken into; Landlock denies it the contents
    of other files, and all writing. Without root Landlock comes first, since in a user's namespace
    the owners of files are not those of the host.
    """
    if uid == 0:
        return ("namespace", "chroot")
    if kind is BackendKind.C:
        return ("namespace",)
    return ("landlock", "namespace", "none") if landlock.is_available() else ("namespace", "none")


def command_line(
    program: Program, directory: str, listener: int, sandbox: str, options: BackendOptions
) -> list[str]:
    """Return the command line that serves ``directory`` on the listening descriptor."""
    if sandbox == "landlock":
        if program.kind is not BackendKind.RUST:
            raise BackendDown("the C virtiofsd has a sandbox of its own, and none beside that")
        return landlock.command(
            command_line(program, directory, listener, "none", options), directory
        )
    common = [program.path, f"--fd={listener}", f"--rlimit-nofile={options.descriptors}"]
    if program.kind is BackendKind.RUST:
        served = [f"--shared-dir={directory}", f"--sandbox={sandbox}", f"--cache={options.cache}"]
        if options.xattr:
            served.append("--xattr")
        handles = f"--inode-file-handles={options.inode_file_handles}"
        threads = f"--thread-pool-size={options.thread_pool}"
        return [
            *common,
            *served,
            handles,
            threads,
            "--migration-verify-handles",
            "--readonly",
            "--log-level=warn",
        ]
    if options.cache == "metadata" or options.inode_file_handles != "never":
        raise BackendDown("the C virtiofsd has neither cache=metadata nor inode file handles")
    cache = "none" if options.cache == "never" else options.cache
    xattr = "xattr" if options.xattr else "no_xattr"
    # The C virtiofsd splits its options at commas, but for those after a backslash.
    source = directory.replace("\\", r"\\").replace(",", r"\,")
    shared = f"source={source},sandbox={sandbox},cache={cache},{xattr}"
    threads = f"--thread-pool-size={options.thread_pool}"
    return [*common, threads, "-f", "-o", f"{shared},announce_submounts,log_level=warn"]


def connected_listener() -> tuple[socket.socket, socket.socket]:
    """Return a listening unix socket and a connection that already waits in its queue.

    The backend takes a single connection in its life, and this one is always first in the queue: if
    the daemon dies, the backend finds the connection closed and ends too.

    The name is abstract and needs no file system. Any process of the network namespace could
    connect to it, so the queue has room for one connection only. The daemon takes that room before
    the backend starts; if another process was faster, another name is tried.

    Raises:
        OSError: no socket can be made, or other processes were faster with each of the names.

    """
    for _ in range(_MOST_NAMES - 1):
        with contextlib.suppress(BlockingIOError):
            return _connected_by_name(secrets.token_hex(16))
    return _connected_by_name(secrets.token_hex(16))


def _connected_by_name(name: str) -> tuple[socket.socket, socket.socket]:
    """Return listener and connection of an abstract name; BlockingIOError if its queue is full."""
    with contextlib.ExitStack() as undo:
        listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        connection = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        address = f"\0vuserd-backend-{name}"
        listener.bind(address)
        listener.listen(0)  # Linux keeps one more than that: this is a queue of one
        connection.setblocking(False)  # noqa: FBT003
        connection.connect(address)
        undo.pop_all()
        return listener, connection


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # Python has no names for most of the real-time ones
        return f"signal {number}"


class _Log:
    """Logs the lines of one backend; harmless ones, and all at an expected end, for debugging."""

    def __init__(self, export: str) -> None:
        self.end_expected = False
        self._export = export
        self._log = about_export(_LOG, export)

    def line(self, words: str) -> None:
        quiet = self.end_expected or is_harmless(words)
        level = logging.DEBUG if quiet else logging.INFO
        self._log.log(level, "export %s: virtiofsd: %s", self._export, words)


class BackendProcess(Backend):
    """A virtiofsd in a process group of its own. Use :func:`start_backend`."""

    def __init__(
        self, program: Program, process: trio.Process, connection: socket.socket, name: str
    ) -> None:
        self.kind = program.kind
        self.version = program.version
        self.pid = process.pid
        self._process = process
        self._connection: socket.socket | None = connection
        self._program = program.path
        self._log = _Log(name)
        self._words = Words(self._log.line)
        self._own_end: int | None = None

    async def connect(self) -> trio.SocketStream:
        """Return the connection that was made before the start."""
        connection, self._connection = self._connection, None
        if connection is None:
            raise BackendDown("a backend takes one connection in its life")
        return trio.SocketStream(trio.socket.from_stdlib_socket(connection))

    def last_words(self) -> str:
        """Return how the process ended and the last lines that it printed."""
        code = self._process.returncode
        if code is None:
            end = ""
        elif code < 0:
            end = f"virtiofsd was ended by {_signal_name(-code)}"
        else:
            end = f"virtiofsd ended with status {code}"
        return ": ".join(filter(None, [end, self._words.last()]))

    def own_end(self) -> int | None:
        """Return how the process ended by itself; None if it ended by the daemon's signal.

        The Rust virtiofsd's sandbox has a parent process, whose exit status is minus the signal
        that ended the child, in eight bits.
        """
        end = self._own_end
        if end is not None and self.kind is BackendKind.RUST and end > _MOST_STATUS - signal.NSIG:
            return end - _MOST_STATUS
        return end

    async def has_opened(
        self, device: int, inode: int, sandbox: str, limiter: trio.CapacityLimiter
    ) -> bool:
        """Look it up in ``/proc``; return False also if that takes too long."""
        look = partial(has_opened, self._process.pid, sandbox, device, inode)
        try:
            with trio.move_on_after(_GRACE):
                return await in_thread(look, abandon_on_cancel=True, limiter=limiter)
        except PermissionError:
            _LOG.warning(
                "%s: /proc/%d does not show which directory it has opened: is it another user's?",
                self._program,
                self.pid,
            )
        except OSError:
            pass  # the process has ended, or there is no thread to look with
        return False

    def expect_end(self, *, expected: bool = True) -> None:
        """Log what the backend prints at debug level from now on: even a clean exit has chatter.

        The C virtiofsd always prints some; the Rust one warns if its state is saved without notice.
        """
        self._log.end_expected = expected

    async def wait(self) -> None:
        """Wait until the process has ended."""
        await self._process.wait()

    async def stop(self) -> None:
        """End the process and all that it started: politely first, then by SIGKILL.

        One that failed gets little time: it has nothing to lose, and its successor is waited for.
        """
        if self._connection is not None:
            self._connection.close()
        requests = [None, signal.SIGTERM] if self._log.end_expected else [None]
        grace = _GRACE if self._log.end_expected else _SHORT_GRACE
        for request in (*requests, signal.SIGKILL):
            if request is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, request)
            # No other task reaps a killed process, so it has the long time, whatever delays it.
            with trio.move_on_after(_GRACE if request == signal.SIGKILL else grace):
                code = await self._process.wait()
                if request is None or code not in _ENDS_FOR_US:
                    self._own_end = code
                break
        # The child of the namespace sandbox outlives a parent that was killed: kill it, too.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def log_words(self) -> None:
        """Log the backend's standard error until it ends: see :class:`Words`."""
        assert self._process.stderr is not None
        await self._words.read(self._process.stderr)


async def _start_process(
    program: Program, directory: str, sandbox: str, options: BackendOptions, name: str
) -> tuple[trio.Process, socket.socket]:
    """Start a virtiofsd; return its process and the one connection to it."""
    listener, connection = connected_listener()
    with listener, contextlib.ExitStack() as undo:
        undo.enter_context(connection)
        arguments = command_line(program, directory, listener.fileno(), sandbox, options)
        if sandbox == "none" and landlock.can_set_apart():
            arguments = landlock.command(arguments)
        with CHILDREN.starting(), starting_in_thread():
            process = await trio.lowlevel.open_process(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                process_group=0,
            )
            CHILDREN.add(process.pid)
        undo.pop_all()
    command = " ".join(arguments)
    about_export(_LOG, name).info("export %s: started %s (pid %d)", name, command, process.pid)
    return process, connection


@asynccontextmanager
async def start_backend(
    program: Program, directory: str, sandbox: str, options: BackendOptions, name: str
) -> AsyncIterator[BackendProcess]:
    """Run a virtiofsd on ``directory`` for the block's time; ``name`` is for the log.

    Raises:
        BackendDown: it cannot be started.

    """
    try:
        process, connection = await _start_process(program, directory, sandbox, options, name)
    except OSError as error:
        raise BackendDown(f"{program.path} cannot be started: {os_reason(error)}") from error
    backend = BackendProcess(program, process, connection, name)
    assert process.stderr is not None
    async with process.stderr, trio.open_nursery() as nursery:
        nursery.start_soon(backend.log_words)
        try:
            yield backend
        finally:
            with trio.CancelScope(shield=True):
                await backend.stop()
                CHILDREN.remove(process.pid)
            # A stray child may hold stderr open: allow a second for reading what is left.
            nursery.cancel_scope.deadline = trio.current_time() + 1
