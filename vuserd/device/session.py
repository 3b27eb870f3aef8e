"""A vhost-user session as one block: negotiate, share memory, start rings, FUSE INIT; then stop."""

import contextlib
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import trio

from memory.fence import NoFenceError
from protocol import MalformedError, fuse
from protocol.vhost_user import Request, VringState, encode_vring_descriptor
from protocol.virtio_fs import QUEUES
from vuserd.device.connection import VhostUserConnection, close_stream
from vuserd.device.handover import move_state
from vuserd.device.lane.lane import Lane
from vuserd.device.layout import PAYLOAD_SIZE, SharedLayout
from vuserd.device.memory_slots import MemorySlots
from vuserd.device.negotiation import Agreement, negotiate
from vuserd.device.observer import Observer
from vuserd.device.payloads import PayloadPool
from vuserd.errors import (
    BackendBroken,
    BackendDown,
    BackendError,
    BackendRefused,
    BackendTimeout,
    FileError,
    VuserdError,
    os_reason,
)
from vuserd.tasks.short_work import short_work

_LOG = logging.getLogger(__name__)

_INIT_FLAGS: Final = (
    fuse.InitFlag.ASYNC_READ
    | fuse.InitFlag.DO_READDIRPLUS
    | fuse.InitFlag.PARALLEL_DIROPS
    | fuse.InitFlag.MAX_PAGES
    | fuse.InitFlag.SUBMOUNTS
)
#: 32 payload buffers then bring 8 MiB, the most that one call of the RPC may ask for.
_LEAST_READ: Final = 256 << 10
#: Seconds, once and again, that requests may wait while a backend's state moves to the next one.
_PAUSE: Final = 1.0


class SessionOptions(NamedTuple):
    """What a session may use."""

    timeout: float = 10.0  #: seconds for each reply, of vhost-user and of FUSE
    payloads: int = 32  #: payload buffers of 1 MiB; memory is used as they are
    drain: float = 2.0  #: seconds for requests in flight when the session ends


class Session:
    """A session whose rings run: ``lane`` for requests, ``payloads`` for what they bring."""

    def __init__(self, stream: trio.SocketStream, options: SessionOptions) -> None:
        self._options = options
        self._connection = VhostUserConnection(stream, options.timeout)
        self._layout = SharedLayout(options.payloads)
        try:
            self.lane = Lane(self._layout, options.timeout, self.lose)
        except OSError:
            self._layout.close()
            raise
        self.payloads = PayloadPool(self._layout.payloads, options.timeout, self.lose)
        self.init = fuse.InitReply(0, fuse.InitFlag(0), 0, 0)
        self._agreement = Agreement(slots=1, device_state=False, interrupts=True)
        self.slots = MemorySlots(self._connection, self._layout.memory, options.timeout, self.lose)
        self._tasks: trio.Nursery
        self._lost = trio.Event()
        self._reason: BackendError | None = None

    @property
    def max_read(self) -> int:
        """Bytes that one READ may ask for."""
        return min(self.init.max_read, PAYLOAD_SIZE)

    @property
    def timeout(self) -> float:
        """Seconds that the backend has for each reply."""
        return self._options.timeout

    @property
    def lost(self) -> bool:
        """Whether the session is over: what the backend mapped or holds does not matter then."""
        return self._reason is not None

    @property
    def regions(self) -> int:
        """Memory regions that the backend has mapped, the session's own among them."""
        return len(self._layout.memory)

    async def wait_lost(self) -> BackendError:
        """Wait until the backend is lost; return why."""
        await self._lost.wait()
        assert self._reason is not None
        return self._reason.again()

    def lose(self, reason: BackendError) -> None:
        """Declare the backend lost: all calls that wait for it fail with the reason."""
        if self._reason is None:
            self._reason = reason.again()
            self.lane.fail(reason)
            self.payloads.fail(reason)
            self.slots.fail(reason)
            self._lost.set()

    @property
    def has_device_state(self) -> bool:
        """Whether the backend can give its state to another one."""
        return self._agreement.device_state

    async def move(
        self,
        stream: trio.SocketStream,
        moved: Callable[[], None],
        check: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint,
    ) -> None:
        """Go on with another backend, which takes over nodes, open handles and memory as they are.

        Requests wait meanwhile, and no caller notices.

        Args:
            stream: a fresh connection to it, owned from here on.
            moved: called once the other one has the rings, before the former's connection ends.
            check: asked once it has the state, and no ring; raises BackendError to refuse it.

        Raises:
            BackendError: it cannot be done; the session goes on with the backend that it has,
                unless that is lost by now.

        """
        if self._reason is not None:
            close_stream(stream)
            raise self._reason.again()
        # A task of the session's: that does not end while its rings are on their way.
        await self._tasks.start(self._move, stream, moved, check)

    async def _move(
        self,
        stream: trio.SocketStream,
        moved: Callable[[], None],
        check: Callable[[], Awaitable[object]],
        task_status: trio.TaskStatus[None],
    ) -> None:
        successor = VhostUserConnection(stream, self._options.timeout)
        self._tasks.start_soon(self._watch, successor)
        try:
            await self._move_to(successor, moved, check)
        except MalformedError as error:
            raise BackendBroken(f"the other backend broke the protocol: {error}") from error
        finally:
            if self._connection is not successor:
                successor.close()
        task_status.started()

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        """Run what goes on beside the requests, until cancelled."""
        with short_work(self.lane.take_replies):
            async with trio.open_nursery() as self._tasks:
                self._tasks.start_soon(self._watch, self._connection)
                self._tasks.start_soon(self.lane.watch_deadlines)
                for index, queue in self.lane.queues.items():
                    self._tasks.start_soon(queue.kick_batches)
                    self._tasks.start_soon(self.lane.serve_queue, index)
                task_status.started()

    async def _watch(self, connection: VhostUserConnection) -> None:
        """Read a connection to its end; that of the one in use is the session's, too."""
        try:
            await connection.run()
        except BackendError as error:
            if connection is self._connection:
                self.lose(error)

    async def _start(self) -> None:
        """Negotiate, share memory and start the rings, in the order that every backend takes."""
        self._agree(await negotiate(self._connection))
        await self.slots.share(self._connection)
        await self._start_rings(self._connection)

    def _agree(self, agreement: Agreement) -> None:
        self._agreement = agreement
        self.slots.limit = agreement.slots
        self.lane.interrupts = agreement.interrupts

    async def _start_rings(self, connection: VhostUserConnection) -> None:
        tell = connection.tell
        for queue in QUEUES:
            notified = self.lane.queues[queue]
            index = encode_vring_descriptor(queue)
            base = notified.ring.hand_over()
            await tell(Request.SET_VRING_NUM, VringState(queue, notified.ring.layout.num).encode())
            await tell(Request.SET_VRING_BASE, VringState(queue, base).encode())
            await tell(Request.SET_VRING_ADDR, self._layout.ring_address(queue).encode())
            await tell(Request.SET_VRING_KICK, index, [notified.kick])
            await tell(Request.SET_VRING_CALL, index, [notified.call])
            await tell(Request.SET_VRING_ENABLE, VringState(queue, 1).encode())

    async def _stop_rings(self) -> None:
        for queue in QUEUES:
            stop = VringState(queue, 0).encode()
            await self._connection.ask(Request.GET_VRING_BASE, stop)

    async def _move_to(
        self,
        successor: VhostUserConnection,
        moved: Callable[[], None],
        check: Callable[[], Awaitable[object]],
    ) -> None:
        agreement = await negotiate(successor)
        if not (self._agreement.device_state and agreement.device_state):
            raise BackendRefused("the state of nodes and open files cannot be moved")
        async with self.slots.turn:
            if self.regions > agreement.slots:
                raise BackendRefused(
                    f"the other backend maps {agreement.slots} regions, {self.regions} are in use"
                )
            successor.deadline = trio.current_time() + _PAUSE  # others wait to change memory
            await self.slots.share(successor)
            # Shielded, since it ends in time: the rings are not to be left without a backend.
            with trio.CancelScope(shield=True), self.lane.held():
                former = self._connection
                await self._switch(successor, check)
                self._agree(agreement)
                moved()
                former.close()

    async def _switch(
        self, successor: VhostUserConnection, check: Callable[[], Awaitable[object]]
    ) -> None:
        """Let the successor serve the rings, on which nothing is put meanwhile."""
        former = self._connection
        deadline = trio.current_time() + _PAUSE
        with trio.move_on_at(deadline) as patience:
            await self.lane.idle()
        if patience.cancelled_caught:
            raise BackendTimeout(f"the backend did not end all that it has within {_PAUSE:g} s")
        former.deadline = successor.deadline = deadline
        with self._lost_by_an_error():
            await self._stop_rings()
        try:
            await move_state(former, successor)
            with trio.move_on_at(deadline) as patience:
                await check()
            if patience.cancelled_caught:
                raise BackendTimeout(f"what it serves was not looked at within {_PAUSE:g} s")
        except BackendError:
            former.deadline = trio.current_time() + _PAUSE
            with self._lost_by_an_error():
                await self._start_rings(former)
            former.deadline = math.inf
            raise
        # From here on its end is the session's, be it right behind what it says last.
        self._connection = successor
        successor.deadline = trio.current_time() + _PAUSE
        with self._lost_by_an_error():  # which of the two has the rings now is not known
            await self._start_rings(successor)
        if self._reason is not None:
            raise self._reason.again()
        self.slots.move(successor)
        successor.deadline = math.inf

    @contextlib.contextmanager
    def _lost_by_an_error(self) -> Iterator[None]:
        try:
            yield
        except BackendError as error:
            self.lose(error)
            raise

    async def _mount(self) -> None:
        request = fuse.init(_INIT_FLAGS, max_readahead=PAYLOAD_SIZE)
        try:
            self.init = await self.lane.call(request, fuse.decode_init)
        except FileError as error:
            raise BackendBroken(f"the backend refused INIT: {error}") from error
        if self.max_read < _LEAST_READ:
            raise BackendBroken(f"the backend takes READs of {self.max_read} bytes only")
        _LOG.debug("FUSE 7.%d, READs of %d bytes", self.init.minor, self.max_read)

    async def _unmount(self) -> None:
        """Let requests in flight end and stop the rings; a lost backend needs neither.

        DESTROY is not sent: the Rust backend does not answer it, and either one ends with its
        connection.
        """
        if self._reason is not None:
            return
        deadline = trio.current_time() + self._options.drain
        with contextlib.suppress(VuserdError), trio.move_on_at(deadline):
            async with self.slots.turn:
                self._connection.deadline = deadline
                await self.lane.drained()
                await self._stop_rings()

    def _close(self) -> None:
        self.lane.close()
        self._layout.close()


@asynccontextmanager
async def open_session(
    stream: trio.SocketStream, options: SessionOptions, observer: Observer | None = None
) -> AsyncIterator[Session]:
    """Run a session on a fresh connection to a backend for the block's time.

    ``observer`` is the lane's from the first request on.

    Raises:
        BackendError: the backend does not answer, offers too little, or breaks the protocol; or
            this machine has no memory to share, or no fence to order accesses to it.

    """
    try:
        session = Session(stream, options)
    except NoFenceError as error:
        close_stream(stream)
        raise BackendDown(str(error)) from error
    except OSError as error:
        close_stream(stream)
        raise BackendDown(f"no memory to share with the backend: {os_reason(error)}") from error
    session.lane.observer = observer
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(session._run)  # noqa: SLF001 - of this module
            # The nursery would wrap exceptions in a group; the caller wants them bare.
            try:
                await session._start()  # noqa: SLF001
                await session._mount()  # noqa: SLF001
            except Exception as error:
                failure = error
            else:
                try:
                    yield session
                except Exception as error:
                    failure = error
                with trio.CancelScope(shield=True):
                    await session._unmount()  # noqa: SLF001
            finally:
                session.lose(BackendDown("the session with the backend is over"))
            nursery.cancel_scope.cancel()
    finally:
        session._close()  # noqa: SLF001
    try:
        if isinstance(failure, MalformedError):
            raise BackendBroken(f"the backend broke the protocol: {failure}") from failure
        if failure is not None:
            raise failure
    finally:
        failure = None  # break the cycle exception -> traceback -> frame
