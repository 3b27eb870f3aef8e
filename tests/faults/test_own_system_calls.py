"""The daemon's own system calls: each fails once, and that is all that comes of it."""

import contextlib
import errno
import fcntl
import gc
import mmap
import os
import select
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest
import trio
import trio.lowlevel
from trio._socket import _SocketType

from tests.fake.backend import CONFIGURE_MEM_SLOTS, FakeBackend
from tests.faults.catalogue import fault
from tests.faults.harness import CONTENT, FOR_EVER, read
from tests.faults.system_calls import FILE, Failure, SystemCall, daemon_on, is_served, open_now
from vuserd.backend.find import BackendKind, Program, identify
from vuserd.backend.process import BackendOptions, start_backend
from vuserd.client.errors import CannotConnect, ConnectionLost, RemoteError
from vuserd.client.trio_client import TrioClient
from vuserd.config.model import DaemonConfig, ExportConfig, ListenConfig
from vuserd.daemon import Daemon
from vuserd.delivery.census import CENSUS
from vuserd.errors import BackendDown, ConfigurationError
from vuserd.exports.export import Export
from vuserd.listen.sockets import listening

#: What any call gives that makes a descriptor.
NO_DESCRIPTOR: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
NO_MEMORY: Final = (errno.ENOMEM, errno.ENOBUFS)
GONE: Final = (errno.EPIPE, errno.ECONNRESET)

SERVED = "The session is given up, nothing is left of it, and the call is served by the next one."
ERRNO = "The caller gets this errno; what was made is given back, and the same call is served then."
DROPPED = "At most this client is dropped; others are served, and so is it when it comes again."
NOT_STARTED = (
    "The backend is not started: BACKEND_DOWN, or the next try serves the call; nothing is left."
)
CONFIGURATION = "The daemon does not start: a message with the cause, and nothing is left."


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    """No more descriptors are open afterwards than were before, of any kind."""
    os.close(CENSUS.create("image", 0)[0])  # what it watches with is open from the first one on
    before = open_now()
    yield
    if open_now() - before:
        gc.collect()  # a fake backend and its own methods keep each other
    assert not open_now() - before


def failing(
    name: str,
    done: str,
    must: str,
    call: SystemCall,
    numbers: Sequence[int],
) -> list[object]:
    """Return a set of parameters for each errno that the call can give, under one row."""
    marks = [fault(name, done=f"{done} fails: {_names(numbers)}", must=must, on="daemon")]
    return [
        pytest.param(call, number, marks=marks, id=f"{name}-{errno.errorcode[number]}")
        for number in numbers
    ]


def _names(numbers: Sequence[int]) -> str:
    *most, last = [errno.errorcode[number] for number in numbers]
    return f"{', '.join(most)} or {last}" if most else last


# --- a session with a backend ---------------------------------------------------------------------

REGION = "memory.region"
QUEUE = "vuserd.device.queue"
VHOST = "vuserd.device.connection"

SESSION = [
    *failing(
        "memfd-for-the-rings",
        "memfd_create of a session's memory",
        SERVED,
        SystemCall(os, "memfd_create", REGION),
        NO_DESCRIPTOR,
    ),
    *failing(
        "size-of-the-rings",
        "ftruncate of a session's memory",
        SERVED,
        SystemCall(os, "ftruncate", REGION),
        (errno.ENOMEM, errno.ENOSPC, errno.EFBIG, errno.EIO),
    ),
    *failing(
        "seals-of-the-rings",
        "F_ADD_SEALS on a session's memory",
        SERVED,
        SystemCall(fcntl, "fcntl", REGION),
        (errno.EPERM, errno.EBUSY, errno.EINVAL),
    ),
    *failing(
        "mapping-of-the-rings",
        "mmap of a session's memory",
        SERVED,
        SystemCall(mmap, "mmap", REGION),
        (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE),
    ),
    *[
        parameters
        for skip in range(4)
        for parameters in failing(
            f"pipe-{skip + 1}-of-4",
            f"pipe2 {skip + 1} of the four of a session",
            SERVED,
            SystemCall(os, "pipe2", QUEUE, skip),
            NO_DESCRIPTOR,
        )
    ],
    *failing(
        "size-of-a-pipe",
        "F_SETPIPE_SZ on the pipe of a ring",
        SERVED,
        SystemCall(fcntl, "fcntl", QUEUE),
        (errno.ENOMEM, errno.EPERM),
    ),
    *failing(
        "connect-to-the-backend",
        "connect to an adopted backend",
        SERVED,
        SystemCall(trio, "open_unix_socket", "vuserd.backend.adopted"),
        (*NO_DESCRIPTOR, errno.ECONNREFUSED, errno.ENOENT, errno.EACCES, errno.EAGAIN),
    ),
    *failing(
        "send-to-the-backend",
        "sendmsg on the vhost-user socket",
        SERVED,
        SystemCall(_SocketType, "sendmsg", VHOST),
        (*GONE, *NO_MEMORY, errno.ETOOMANYREFS),
    ),
    *failing(
        "send-of-descriptors-to-the-backend",
        "sendmsg of the memory's descriptor on the vhost-user socket",
        SERVED,
        SystemCall(_SocketType, "sendmsg", VHOST, skip=6),
        (errno.ETOOMANYREFS, errno.ENOMEM),
    ),
    *failing(
        "receive-from-the-backend",
        "recvmsg on the vhost-user socket",
        SERVED,
        SystemCall(_SocketType, "recvmsg", VHOST),
        (errno.ECONNRESET, *NO_MEMORY),
    ),
]


@pytest.mark.parametrize(("call", "number"), SESSION)
@pytest.mark.alike
async def test_a_session(
    backend: FakeBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: SystemCall,
    number: int,
) -> None:
    async with daemon_on(backend, str(tmp_path)) as address:
        await is_served(address, CONTENT)
        failure = Failure(call, number, monkeypatch)
        backend.die()
        await is_served(address, CONTENT)
        assert failure.happened
        await is_served(address, CONTENT)


# --- a call ---------------------------------------------------------------------------------------

IMAGE = "vuserd.delivery.image"
MEMFD = SystemCall(os, "memfd_create", "vuserd.delivery.census")
FOREIGN = "memory.foreign"

FETCH = [
    *failing(
        "memfd-for-an-image",
        "memfd_create of an image",
        ERRNO,
        MEMFD,
        (errno.ENOMEM,),
    ),
    *failing(
        "no-descriptor-for-an-image",
        "memfd_create of an image",
        "The call is made again: the nodes that no call uses are given up before.",
        MEMFD,
        (errno.EMFILE, errno.ENFILE),
    ),
    *failing(
        "mode-of-an-image",
        "fchmod of an image",
        ERRNO,
        SystemCall(os, "fchmod", IMAGE),
        (errno.EPERM,),
    ),
    *failing(
        "pages-of-an-image",
        "posix_fallocate of an image",
        ERRNO,
        SystemCall(os, "posix_fallocate", IMAGE),
        (errno.ENOMEM, errno.ENOSPC, errno.EFBIG, errno.EINTR),
    ),
    *failing(
        "bytes-of-an-image",
        "pwrite to an image",
        ERRNO,
        SystemCall(os, "pwrite", IMAGE),
        (errno.ENOMEM, errno.ENOSPC, errno.EIO),
    ),
    *failing(
        "seals-of-an-image",
        "F_ADD_SEALS on an image",
        ERRNO,
        SystemCall(fcntl, "fcntl", IMAGE),
        (errno.EPERM, errno.EBUSY),
    ),
    *failing(
        "descriptor-of-an-image",
        "open of an image through /proc/self/fd, for the client's own descriptor,",
        ERRNO,
        SystemCall(os, "open", IMAGE),
        (*NO_DESCRIPTOR, errno.ENOENT, errno.EACCES),
    ),
]


@pytest.mark.parametrize(("call", "number"), FETCH)
@pytest.mark.alike
async def test_a_fetch(
    backend: FakeBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: SystemCall,
    number: int,
) -> None:
    async with (
        daemon_on(backend, str(tmp_path)) as address,
        TrioClient.connect(address) as client,
    ):
        failure = Failure(call, number, monkeypatch)
        with trio.fail_after(FOR_EVER):
            if call == MEMFD and number != errno.ENOMEM:
                (await client.fetch(FILE, "Image")).close()
            else:
                with pytest.raises(RemoteError) as raised:
                    await client.fetch(FILE, "Image")
                assert raised.value.code == errno.errorcode[number]
            assert failure.happened
            with await client.fetch(FILE, "Image") as image:
                assert image.buffer() == CONTENT
        await is_served(address, CONTENT)
        assert (await client.status())["exports"][0]["payloads"] == 0


ATTACH = failing(
    "seals-of-a-clients-memory",
    "F_ADD_SEALS on memory that a client attaches",
    "The client gets BAD_REQUEST and the cause; the descriptor that came is closed.",
    SystemCall(fcntl, "fcntl", FOREIGN, command=fcntl.F_ADD_SEALS),
    (errno.EPERM, errno.EBUSY),
)


@pytest.mark.parametrize(("call", "number"), ATTACH)
async def test_an_attach(
    backend: FakeBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: SystemCall,
    number: int,
) -> None:
    async with (
        daemon_on(backend, str(tmp_path)) as address,
        TrioClient.connect(address) as client,
    ):
        failure = Failure(call, number, monkeypatch)
        descriptor = os.memfd_create("client", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, 1 << 16)
        with trio.fail_after(FOR_EVER):
            with pytest.raises(RemoteError, match="sealed against that") as raised:
                await client.attach(descriptor)
            assert failure.happened
            assert raised.value.code == "BAD_REQUEST"
            async with await client.attach(descriptor):
                pass
        os.close(descriptor)


LOAD = failing(
    "send-of-a-clients-memory",
    "sendmsg of a client's memory to the backend",
    SERVED,
    SystemCall(_SocketType, "sendmsg", VHOST),
    (*GONE, *NO_MEMORY, errno.ETOOMANYREFS),
)


@pytest.mark.parametrize(("call", "number"), LOAD)
async def test_a_load(
    backend: FakeBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: SystemCall,
    number: int,
) -> None:
    backend.protocol_features |= CONFIGURE_MEM_SLOTS
    async with (
        daemon_on(backend, str(tmp_path)) as address,
        TrioClient.connect(address) as client,
    ):
        with trio.fail_after(FOR_EVER):
            async with await client.attach(size=1 << 16) as memory:
                failure = Failure(call, number, monkeypatch)
                assert await memory.load(FILE, "Image", 0) == len(CONTENT)
                assert failure.happened
                assert memory.buffer[: len(CONTENT)] == CONTENT
        await is_served(address, CONTENT)


# --- a client's connection ------------------------------------------------------------------------

DESCRIPTORS = "vuserd.users.foreign_descriptors"

CLIENT = [
    *failing(
        "accept-of-a-client",
        "accept of a client",
        "The daemon tries again, and the client is served.",
        SystemCall(socket.socket, "accept", "vuserd.rpc.server"),
        (
            *NO_DESCRIPTOR,
            errno.ENOBUFS,
            errno.ECONNABORTED,
            errno.EAGAIN,
        ),
    ),
    *failing(
        "client-that-is-refused",
        "accept of a client that the system refuses",
        "The daemon tries again, and the client is served.",
        SystemCall(socket.socket, "accept", "vuserd.rpc.server"),
        (errno.EPERM, errno.EPROTO),
    ),
    *failing(
        "credentials-of-a-client",
        "getsockopt SO_PEERCRED of a client",
        DROPPED,
        SystemCall(socket.socket, "getsockopt", "vuserd.rpc.access"),
        (errno.ENOTCONN, *NO_MEMORY),
    ),
    *failing(
        "groups-of-a-client",
        "getsockopt SO_PEERGROUPS of a client",
        "Its supplementary groups do not count.",
        SystemCall(socket.socket, "getsockopt", "vuserd.rpc.access", skip=1),
        (errno.ERANGE, errno.ENOPROTOOPT, errno.ENOMEM),
    ),
    *failing(
        "buffer-of-a-client",
        "setsockopt SO_SNDBUFFORCE of a client, for others than root,",
        "The buffer is as large as the system allows; the client is served.",
        SystemCall(socket.socket, "setsockopt", "vuserd.rpc.send_buffers"),
        (errno.EPERM,),
    ),
    *failing(
        "no-buffer-for-a-client",
        "setsockopt SO_SNDBUFFORCE of a client",
        DROPPED,
        SystemCall(socket.socket, "setsockopt", "vuserd.rpc.send_buffers"),
        NO_MEMORY,
    ),
    *failing(
        "receive-from-a-client",
        "recvmsg of a client",
        DROPPED,
        SystemCall(socket.socket, "recvmsg", DESCRIPTORS),
        (errno.ECONNRESET, *NO_MEMORY, errno.EAGAIN),
    ),
    *failing(
        "send-to-a-client",
        "sendmsg to a client",
        DROPPED,
        SystemCall(socket.socket, "sendmsg", "vuserd.rpc.outbox"),
        (*GONE, *NO_MEMORY, errno.ETOOMANYREFS, errno.EAGAIN),
    ),
]


@pytest.mark.parametrize(("call", "number"), CLIENT)
async def test_a_connection(
    backend: FakeBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: SystemCall,
    number: int,
) -> None:
    async with (
        daemon_on(backend, str(tmp_path)) as address,
        TrioClient.connect(address) as bystander,
    ):
        with trio.fail_after(FOR_EVER):
            assert (await bystander.exports())[0].name == FILE
            failure = Failure(call, number, monkeypatch)
            with contextlib.suppress(CannotConnect, ConnectionLost):
                async with TrioClient.connect(address) as client:
                    assert await client.read(FILE, "Image", 0, len(CONTENT)) == CONTENT
            assert failure.happened
            assert await bystander.read(FILE, "Image", 0, len(CONTENT)) == CONTENT
        await is_served(address, CONTENT)


HUB = "vuserd.tasks.hub"


@pytest.mark.parametrize(
    ("call", "number"),
    [
        *failing(
            "epoll-of-the-hub",
            "epoll_create1 to watch all clients with",
            CONFIGURATION,
            SystemCall(select, "epoll", HUB),
            NO_DESCRIPTOR,
        ),
        *failing(
            "eventfd-of-the-hub",
            "eventfd2 to wake the task that watches them",
            CONFIGURATION,
            SystemCall(os, "eventfd", HUB),
            NO_DESCRIPTOR,
        ),
    ],
)
async def test_nothing_to_watch_clients_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: SystemCall, number: int
) -> None:
    config = DaemonConfig((ListenConfig(str(tmp_path / "vuserd.sock")),), ())
    failure = Failure(call, number, monkeypatch)
    with pytest.raises(ConfigurationError, match="clients cannot be watched"):
        await Daemon(lambda: config).run()
    assert failure.happened
    assert os.listdir(tmp_path) == []


# --- the daemon's socket --------------------------------------------------------------------------

LISTENER = "vuserd.listen.sockets"
BIND = (errno.EADDRINUSE, errno.EACCES, errno.ENOSPC, errno.EROFS, errno.ENOMEM, errno.ENOENT)

SOCKET = [
    *failing(
        "socket-to-listen-on",
        "socket of the daemon's socket",
        CONFIGURATION,
        SystemCall(socket.socket, "__init__", LISTENER),
        (*NO_DESCRIPTOR, errno.ENOBUFS),
    ),
    *failing(
        "folder-of-the-socket",
        "open of the folder of the daemon's socket",
        CONFIGURATION,
        SystemCall(os, "open", LISTENER),
        (*NO_DESCRIPTOR, errno.EACCES),
    ),
    *failing(
        "lock-of-the-folder",
        "flock of the folder of the daemon's socket",
        CONFIGURATION,
        SystemCall(fcntl, "flock", LISTENER),
        (errno.ENOLCK, errno.EINTR),
    ),
    *failing(
        "mode-of-the-socket",
        "fchmod of the daemon's socket",
        CONFIGURATION,
        SystemCall(os, "fchmod", LISTENER),
        (errno.EPERM, errno.EIO, errno.EROFS),
    ),
    *failing(
        "name-of-the-socket",
        "bind of the daemon's socket",
        CONFIGURATION,
        SystemCall(socket.socket, "bind", LISTENER),
        BIND,
    ),
    *failing(
        "listen-on-the-socket",
        "listen on the daemon's socket",
        CONFIGURATION,
        SystemCall(socket.socket, "listen", LISTENER),
        (errno.EADDRINUSE, errno.ENOMEM),
    ),
]


@pytest.mark.parametrize(("call", "number"), SOCKET)
def test_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: SystemCall, number: int
) -> None:
    config = ListenConfig(str(tmp_path / "vuserd.sock"))
    with monkeypatch.context() as patch:
        failure = Failure(call, number, patch)
        with (
            pytest.raises(ConfigurationError, match="cannot listen on"),
            listening(config),
        ):
            pytest.fail("it listens")
        assert failure.happened
    with listening(config):  # what is left of the first try does not hinder the next
        pass
    assert os.listdir(tmp_path) == []


# --- the backend's process ------------------------------------------------------------------------

PROCESS = "vuserd.backend.process"
EXEC = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ETXTBSY, errno.E2BIG, errno.EIO)

START = [
    *failing(
        "socket-for-the-backend",
        "socket of the backend's listening socket",
        NOT_STARTED,
        SystemCall(socket.socket, "__init__", PROCESS),
        (*NO_DESCRIPTOR, errno.ENOBUFS),
    ),
    *failing(
        "socket-to-the-backend",
        "socket of the connection to the backend",
        NOT_STARTED,
        SystemCall(socket.socket, "__init__", PROCESS, skip=1),
        (*NO_DESCRIPTOR, errno.ENOBUFS),
    ),
    *failing(
        "bind-for-the-backend",
        "bind of the backend's listening socket",
        NOT_STARTED,
        SystemCall(socket.socket, "bind", PROCESS),
        BIND,
    ),
    *failing(
        "listen-for-the-backend",
        "listen on the backend's listening socket",
        NOT_STARTED,
        SystemCall(socket.socket, "listen", PROCESS),
        (errno.EADDRINUSE, errno.ENOMEM),
    ),
    *failing(
        "connect-for-the-backend",
        "connect to the backend's listening socket",
        NOT_STARTED,
        SystemCall(socket.socket, "connect", PROCESS),
        (errno.ECONNREFUSED, errno.EACCES, errno.ENOENT, errno.ENOMEM),
    ),
    *failing(
        "fork-of-the-backend",
        "pipe, fork or exec of the backend",
        NOT_STARTED,
        SystemCall(trio.lowlevel, "open_process", PROCESS),
        (*NO_DESCRIPTOR, errno.EAGAIN, *EXEC),
    ),
]


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a folder to export; nothing stays in the one for temporary files."""
    folder, temporary = tmp_path / "shared", tmp_path / "tmp"
    folder.mkdir()
    temporary.mkdir()
    (folder / "Image").write_bytes(CONTENT)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield folder
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(("call", "number"), START)
async def test_a_first_start(
    shared: Path, monkeypatch: pytest.MonkeyPatch, call: SystemCall, number: int
) -> None:
    failure = Failure(call, number, monkeypatch)
    program = Program("/bin/false", BackendKind.RUST, "1")
    with pytest.raises(BackendDown, match=os.strerror(number)[1:]):
        async with start_backend(program, str(shared), "none", BackendOptions(), "files"):
            pytest.fail("it was started")
    assert failure.happened


@pytest.mark.parametrize(("call", "number"), START)
@pytest.mark.alike
async def test_a_restart(
    shared: Path,
    monkeypatch: pytest.MonkeyPatch,
    rust_virtiofsd: str,
    call: SystemCall,
    number: int,
) -> None:
    program = await identify(rust_virtiofsd)
    config = ExportConfig("files", directory=str(shared))
    export = Export(config, program)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(export.run)
        with trio.fail_after(FOR_EVER):
            await export.settled.wait()
            assert await export.call(read) == CONTENT
            failure = Failure(call, number, monkeypatch)
            session = export._calls.serving.session  # type: ignore[union-attr]
            assert session is not None
            session.lose(BackendDown("for a test"))
            assert await export.call(read) == CONTENT
        assert failure.happened
        assert export.generation == 2
        export.stop()
