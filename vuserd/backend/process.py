"""A virtiofsd of our own: started on a private socket, its words logged, stopped for certain."""

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
from vuserd.backend.stderr import Words
from vuserd.errors import BackendDown, os_reason
from vuserd.service.journal import about_export

_LOG = logging.getLogger(__name__)

#: How long a backend whose connection was closed may take to end by itself, then after SIGTERM.
_GRACE: Final = 2.0
#: The same where the session with it is lost already.
_SHORT_GRACE: Final = 0.05
#: How a process may end when it is told to.
_ENDS_FOR_US: Final = frozenset({0, -signal.SIGTERM, -signal.SIGKILL})
_MOST_STATUS: Final = 256
#: Names of sockets to try: each takes another process that knew it within microseconds.
_MOST_NAMES: Final = 8


class BackendOptions(NamedTuple):
    """How to start a backend."""

    #: The most descriptors it may open: one for each node that is looked up.
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
        """Return what the machine grants: over its hard limit a backend does not start."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if hard == resource.RLIM_INFINITY:
            return self
        return self._replace(descriptors=min(self.descriptors, hard))


def sandboxes(kind: BackendKind, uid: int) -> Sequence[str]:
    """Return the sandboxes to try, best first: the next one where the machine refuses one.

    No mode lets a file outside the directory be reached through the socket; a namespace also takes
    the host's file system away from a backend that is broken into. Landlock takes its contents
    away, and the right to write: where there is no root, it comes first, since in a user's
    namespace the owners of files are not those of the host.
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
    # The C one splits its options at commas, and has no way to quote one.
    if "," in directory:
        raise BackendDown(f"the C virtiofsd cannot share a directory with a comma: {directory}")
    if options.cache == "metadata" or options.inode_file_handles != "never":
        raise BackendDown("the C virtiofsd has neither cache=metadata nor inode file handles")
    cache = "none" if options.cache == "never" else options.cache
    xattr = "xattr" if options.xattr else "no_xattr"
    shared = f"source={directory},sandbox={sandbox},cache={cache},{xattr}"
    threads = f"--thread-pool-size={options.thread_pool}"
    return [*common, threads, "-f", "-o", f"{shared},announce_submounts,log_level=warn"]


def connected_listener() -> tuple[socket.socket, socket.socket]:
    """Return a listening unix socket and a connection that already waits in its queue.

    The backend takes one connection in its life, and this one is first in the queue whatever
    happens: if this process dies, the backend finds the connection closed and ends too.

    The name is abstract and needs no file system. Any process of the network namespace could
    connect to it, so the queue has room for one connection alone: it is taken here before the
    backend starts, or somebody else was faster and another name is tried.

    Raises:
        OSError: there are no sockets to be had, or each of the names was taken by others.

    """
    for _ in range(_MOST_NAMES - 1):
        with contextlib.suppress(BlockingIOError):
            return _connected_by_name(secrets.token_hex(16))
    return _connected_by_name(secrets.token_hex(16))


def _connected_by_name(name: str) -> tuple[socket.socket, socket.socket]:
    """Return both ends of an abstract name; BlockingIOError if its queue is full already."""
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


class _Log:
    """Where a backend's words go: chatter once it is to end."""

    def __init__(self, export: str) -> None:
        self.end_expected = False
        self._export = export
        self._log = about_export(_LOG, export)

    def line(self, words: str) -> None:
        level = logging.DEBUG if self.end_expected else logging.INFO
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
        """Hand the connection out that was made before the start."""
        connection, self._connection = self._connection, None
        if connection is None:
            raise BackendDown("a backend takes one connection in its life")
        return trio.SocketStream(trio.socket.from_stdlib_socket(connection))

    def last_words(self) -> str:
        """Return how it ended and the last lines that it wrote."""
        code = self._process.returncode
        if code is None:
            end = ""
        elif code < 0:
            end = f"virtiofsd was ended by {signal.Signals(-code).name}"
        else:
            end = f"virtiofsd ended with status {code}"
        return ": ".join(filter(None, [end, self._words.last()]))

    def own_end(self) -> int | None:
        """Return how it ended by itself; None where that was for a signal of ours.

        The Rust one's sandbox has a process in front, whose status is minus the signal that ended
        the one behind it, in eight bits.
        """
        end = self._own_end
        if end is not None and self.kind is BackendKind.RUST and end > _MOST_STATUS - signal.NSIG:
            return end - _MOST_STATUS
        return end

    async def has_opened(
        self, device: int, inode: int, sandbox: str, limiter: trio.CapacityLimiter
    ) -> bool:
        """Look it up in ``/proc``; False also where that does not answer in time."""
        look = partial(has_opened, self._process.pid, sandbox, device, inode)
        try:
            with trio.move_on_after(_GRACE):
                return await trio.to_thread.run_sync(look, abandon_on_cancel=True, limiter=limiter)
        except PermissionError:
            _LOG.warning(
                "%s: what it has opened is not to be seen in /proc/%d: has it a user of its own?",
                self._program,
                self.pid,
            )
        except OSError:
            pass  # it has ended
        return False

    def expect_end(self, *, expected: bool = True) -> None:
        """Log what it says from here on as chatter: the C one never ends without some.

        The Rust one warns when its state is saved and nobody told it before.
        """
        self._log.end_expected = expected

    async def wait(self) -> None:
        """Wait until the process has ended."""
        await self._process.wait()

    async def stop(self) -> None:
        """End the process and all that it started: politely first, then for certain.

        Nothing is lost with one that failed, and its successor is waited for.
        """
        if self._connection is not None:
            self._connection.close()
        requests = [None, signal.SIGTERM] if self._log.end_expected else [None]
        grace = _GRACE if self._log.end_expected else _SHORT_GRACE
        for request in (*requests, signal.SIGKILL):
            if request is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, request)
            # Nobody else would wait for one that is killed, whatever keeps it from ending.
            with trio.move_on_after(_GRACE if request == signal.SIGKILL else grace):
                code = await self._process.wait()
                if request is None or code not in _ENDS_FOR_US:
                    self._own_end = code
                break
        # What the namespace sandbox forked outlives a parent that was killed: take it along.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def log_words(self) -> None:
        """Log its standard error until it ends: see :class:`Words`."""
        assert self._process.stderr is not None
        await self._words.read(self._process.stderr)


async def _start_process(
    program: Program, directory: str, sandbox: str, options: BackendOptions, name: str
) -> tuple[trio.Process, socket.socket]:
    """Start a virtiofsd; return it with the one connection to it."""
    listener, connection = connected_listener()
    with listener, contextlib.ExitStack() as undo:
        undo.enter_context(connection)
        arguments = command_line(program, directory, listener.fileno(), sandbox, options)
        if sandbox == "none" and landlock.can_set_apart():
            arguments = landlock.command(arguments)
        with CHILDREN.starting():
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
            # Its stderr may be held open by a stray child; a second to read what is left.
            nursery.cancel_scope.deadline = trio.current_time() + 1
