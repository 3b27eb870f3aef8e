"""A vhost-user session as one block: negotiate, share memory, start rings, FUSE INIT; then stop."""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, Protocol

import trio

from memory.guest import GuestRegion, Shareable
from protocol import MalformedError, fuse
from protocol.vhost_user import (
    ProtocolFeature,
    Request,
    VringState,
    decode_u64,
    encode_memory_region,
    encode_u64,
    encode_vring_descriptor,
)
from protocol.virtio_fs import QUEUES
from protocol.virtio_ring import Feature
from vuserd.device.channel import FuseChannel
from vuserd.device.connection import VhostUserConnection
from vuserd.device.layout import PAYLOAD_SIZE, SharedLayout
from vuserd.device.observer import Observer
from vuserd.device.payloads import PayloadPool
from vuserd.errors import (
    BackendBroken,
    BackendDown,
    BackendError,
    BackendRefused,
    CallError,
    ErrorCode,
    FileError,
    LossCause,
    VuserdError,
    os_reason,
)

_LOG = logging.getLogger(__name__)

_FEATURES: Final = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES
_PROTOCOL_FEATURES: Final = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK
#: Taken where it is offered: memory of clients cannot be attached without it.
_MEMORY_SLOTS: Final = ProtocolFeature.CONFIGURE_MEM_SLOTS
_INIT_FLAGS: Final = (
    fuse.InitFlag.ASYNC_READ
    | fuse.InitFlag.DO_READDIRPLUS
    | fuse.InitFlag.PARALLEL_DIROPS
    | fuse.InitFlag.MAX_PAGES
    | fuse.InitFlag.SUBMOUNTS
)
#: 32 payload buffers then bring 8 MiB, the most that one call of the RPC may ask for.
_LEAST_READ: Final = 256 << 10


class SessionOptions(NamedTuple):
    """What a session may use."""

    timeout: float = 10.0  #: seconds for each reply, of vhost-user and of FUSE
    payloads: int = 32  #: payload buffers of 1 MiB; memory is used as they are
    drain: float = 2.0  #: seconds for requests in flight when the session ends


class SlotHolder(Protocol):
    """Who has a memory slot of the backend's for memory that may not be in use all the time."""

    async def leave(self) -> bool:
        """Give the slot back; False, at once, where it is in use."""


class Session:
    """A session whose rings run: ``channel`` for requests, ``payloads`` for what they bring."""

    def __init__(self, stream: trio.SocketStream, options: SessionOptions) -> None:
        self._options = options
        self._connection = VhostUserConnection(stream, options.timeout)
        self._layout = SharedLayout(options.payloads)
        try:
            self.channel = FuseChannel(self._layout, options.timeout, self.lose)
        except OSError:
            self._layout.close()
            raise
        self.payloads = PayloadPool(self._layout.payloads, options.timeout, self.lose)
        self.init = fuse.InitReply(0, fuse.InitFlag(0), 0, 0)
        #: Regions that the backend can map.
        self._slots = 1
        #: The one whose slot was used longest ago first.
        self._holders: dict[SlotHolder, None] = {}
        self._lost = trio.Event()
        #: Who waits for what the device was lent.
        self._lenders = trio.lowlevel.ParkingLot()
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
        """Whether the session is over: what the backend mapped or holds matters no more."""
        return self._reason is not None

    @property
    def regions(self) -> int:
        """Memory regions that the backend has mapped, the session's own among them."""
        return len(self._layout.memory)

    async def add_region(self, region: Shareable) -> GuestRegion:
        """Let the backend map one more region, which stays the caller's.

        Where all slots are taken, an idle one is taken from its holder.

        Raises:
            CallError: BUSY when the backend has no slot left for it.
            BackendError: the backend refused it, or is lost, be it while a slot was waited for.

        """
        while self.regions >= self._slots:
            await self._free_slot()
        placed = self._layout.memory.add(region)
        try:
            payload = encode_memory_region(placed.wire())
            await self._change_memory(Request.ADD_MEM_REG, payload, [region.fileno()])
        except BaseException:
            self._layout.memory.remove(placed)
            raise
        return placed

    def hold_slot(self, holder: SlotHolder) -> None:
        """Take note that a slot is used now: its holder is the last one to be asked for it."""
        self._holders.pop(holder, None)
        self._holders[holder] = None

    def end_hold(self, holder: SlotHolder) -> None:
        """Ask a holder no more: it gives its slot back."""
        self._holders.pop(holder, None)

    async def _free_slot(self) -> None:
        for holder in list(self._holders):
            if await holder.leave():
                return
        if self._reason is not None:  # the next backend has slots of its own
            raise self._reason.again()
        raise CallError(
            ErrorCode.BUSY,
            f"the backend has {self._slots} memory slots, and all are in use",
            limit=self._slots,
        )

    async def remove_region(self, placed: GuestRegion) -> None:
        """Have the backend unmap a region; no request that is in flight may touch it.

        Raises:
            BackendError: the backend refused, or is lost.

        """
        self._layout.memory.remove(placed)
        try:
            await self._change_memory(Request.REM_MEM_REG, encode_memory_region(placed.wire()))
        except BackendError as error:
            self.lose(error)  # it may still be mapped
            raise

    def returned(self) -> None:
        """Let those look again who wait for what the device was lent: it returned some of it."""
        self._lenders.unpark_all()

    async def wait_returned(self, keeps: Callable[[], object]) -> None:
        """Wait while the device ``keeps`` what it was lent; a lost backend returns nothing.

        It has the session's timeout for that. Over that it is lost: what it keeps is memory that it
        may write to at any time.
        """
        with trio.move_on_after(self.timeout):
            while keeps() and not self.lost:
                await self._lenders.park()
        if keeps():
            self.lose(BackendDown("the backend keeps a request", LossCause.SILENT))

    async def _change_memory(
        self, request: Request, payload: bytes, descriptors: Sequence[int] = ()
    ) -> None:
        try:
            await self._connection.tell(request, payload, descriptors)
        except BackendRefused:
            raise
        except BackendError as error:
            self.lose(error)  # known here before the task that watches the connection has its turn
            raise

    async def wait_lost(self) -> BackendError:
        """Wait until the backend is lost; return why."""
        await self._lost.wait()
        assert self._reason is not None
        return self._reason.again()

    def lose(self, reason: BackendError) -> None:
        """Declare the backend lost: everybody who waits for it is told."""
        if self._reason is None:
            self._reason = reason.again()
            self.channel.fail(reason)
            self.payloads.fail(reason)
            self._lenders.unpark_all()
            self._lost.set()

    async def _watch_connection(self) -> None:
        try:
            await self._connection.run()
        except BackendError as error:
            self.lose(error)

    async def _start(self) -> None:
        """Negotiate, share memory and start the rings, in the order that every backend takes."""
        ask, tell = self._connection.ask, self._connection.tell
        offered = Feature(decode_u64(await ask(Request.GET_FEATURES)))
        _require("virtio", _FEATURES, offered)
        # Only QEMU's own virtiofsd offers this bit. It keeps an INTERRUPT whose request has ended,
        # answers it with the next request, from memory that is freed by then, and crashes.
        self.channel.interrupts = Feature.NOTIFY_ON_EMPTY not in offered
        protocol_offered = ProtocolFeature(decode_u64(await ask(Request.GET_PROTOCOL_FEATURES)))
        _require("vhost-user", _PROTOCOL_FEATURES, protocol_offered)
        taken = _PROTOCOL_FEATURES | (protocol_offered & _MEMORY_SLOTS)
        await self._connection.announce(Request.SET_PROTOCOL_FEATURES, encode_u64(taken))
        queues = decode_u64(await ask(Request.GET_QUEUE_NUM))
        if queues < len(QUEUES):
            raise BackendBroken(f"the backend has {queues} queues, virtio-fs needs {len(QUEUES)}")
        if taken & _MEMORY_SLOTS:
            self._slots = decode_u64(await ask(Request.GET_MAX_MEM_SLOTS))
        await tell(Request.SET_OWNER)
        await tell(Request.SET_FEATURES, encode_u64(_FEATURES))
        await tell(Request.SET_MEM_TABLE, *self._layout.memory.table())
        for queue in QUEUES:
            await self._start_ring(queue)

    async def _start_ring(self, queue: int) -> None:
        tell = self._connection.tell
        notified = self.channel.queues[queue]
        index = encode_vring_descriptor(queue)
        await tell(Request.SET_VRING_NUM, VringState(queue, notified.ring.layout.num).encode())
        await tell(Request.SET_VRING_BASE, VringState(queue, 0).encode())
        await tell(Request.SET_VRING_ADDR, self._layout.ring_address(queue).encode())
        await tell(Request.SET_VRING_KICK, index, [notified.kick])
        await tell(Request.SET_VRING_CALL, index, [notified.call])
        await tell(Request.SET_VRING_ENABLE, VringState(queue, 1).encode())

    async def _mount(self) -> None:
        request = fuse.init(_INIT_FLAGS, max_readahead=PAYLOAD_SIZE)
        try:
            self.init = await self.channel.call(request, fuse.decode_init)
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
            await self.channel.drained()
            for queue in QUEUES:
                stop = VringState(queue, 0).encode()
                await self._connection.ask(Request.GET_VRING_BASE, stop, deadline)

    def _close(self) -> None:
        self.lose(BackendDown("the session with the backend is over"))
        self.channel.close()
        self._layout.close()


def _require(kind: str, needed: Feature | ProtocolFeature, offered: int) -> None:
    missing = type(needed)(needed & ~offered)
    if missing:
        names = ", ".join(flag.name or hex(flag) for flag in missing)
        raise BackendBroken(f"the backend lacks {kind} features: {names}")


@asynccontextmanager
async def open_session(
    stream: trio.SocketStream, options: SessionOptions, observer: Observer | None = None
) -> AsyncIterator[Session]:
    """Run a session on a fresh connection to a backend for the block's time.

    ``observer`` is the channel's from the first request on.

    Raises:
        BackendError: the backend does not answer, offers too little, or breaks the protocol.

    """
    try:
        session = Session(stream, options)
    except OSError as error:
        await stream.aclose()
        raise BackendDown(f"no memory to share with the backend: {os_reason(error)}") from error
    session.channel.observer = observer
    failure: Exception | None = None
    try:
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(session._watch_connection)  # noqa: SLF001 - Session is ours
            nursery.start_soon(session.channel.watch_deadlines)
            for index, queue in session.channel.queues.items():
                nursery.start_soon(queue.kick_batches)
                nursery.start_soon(session.channel.serve_queue, index)
            # The nursery would wrap exceptions in a group; who opened the session wants them bare.
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
            nursery.cancel_scope.cancel()
    finally:
        session._close()  # noqa: SLF001
    try:
        if isinstance(failure, MalformedError):
            raise BackendBroken(f"the backend broke the protocol: {failure}") from failure
        if failure is not None:
            raise failure
    finally:
        failure = None  # which else refers to itself, by its traceback and what is in there
