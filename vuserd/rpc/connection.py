"""One client: its requests become tasks, its replies go out as they are ready.

A client has a bounded number of requests and of payload bytes in the daemon, counted from the
moment a request is read until its reply has left; over them, nothing more is read from it.
"""

import logging
import os
import socket
from collections import deque
from typing import Any, Final, NamedTuple

import trio

from vuserd.budget import Budget
from vuserd.delivery.attached import MemoryTable
from vuserd.delivery.images import Fetched
from vuserd.delivery.inline import FileContent
from vuserd.descriptors import ancillary_space, received_descriptors
from vuserd.errors import CallError, ErrorCode, FileError, VuserdError
from vuserd.fs.walks import WalkTable
from vuserd.rpc.caller import Caller
from vuserd.rpc.codec import (
    FramingError,
    InvalidMessage,
    Limits,
    MessageDecoder,
    Request,
    encode_bin_response_head,
    encode_notification,
    encode_response,
)
from vuserd.rpc.methods import READ_MAX, Methods, fetched_map
from vuserd.rpc.outbox import Outbox, Reply

_LOG = logging.getLogger(__name__)

_RECEIVE_SIZE: Final = 64 << 10
#: Messages of one client that are handled before others have their turn.
_TURN: Final = 64
#: What the kernel may hold of replies that a client has not read yet.
_SEND_BUFFER: Final = 2 << 20
_SO_SNDBUFFORCE: Final = 32
#: Descriptors that may wait for the request that they came with; the kernel passes 253 at most.
_MOST_DESCRIPTORS: Final = 16
#: A plain number: arithmetic on a flag of the standard library costs more than the receiving.
_TRUNCATED: Final = int(socket.MSG_CTRUNC)
_ANCILLARY_SPACE: Final = ancillary_space(_MOST_DESCRIPTORS)
#: Seconds for a backend to return what it was lent for a client that is gone.
_FAREWELL: Final = 30.0


class ConnectionLimits(NamedTuple):
    """What one client may use."""

    walks: int = 4  #: begun and not finished
    memories: int = 8  #: attached
    memory: int = 16 << 30  #: bytes of them

    requests: int = 64  #: in flight
    payload: int = 2 * READ_MAX  #: bytes in flight
    frame: int = 1 << 20  #: bytes of one request
    depth: int = 16  #: nesting of one request
    stall: float = 30.0  #: seconds without progress before a client that does not read is dropped


class Counters:
    """What all connections have done so far."""

    def __init__(self) -> None:
        self.connections = 0
        self.requests = 0
        self.errors = 0
        self.bytes_read = 0
        #: Requests in the daemon now.
        self.in_flight = 0


def _widen(sock: socket.socket) -> None:
    """Let one send carry a whole payload buffer: each send less is a wake-up of both sides less."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
    except PermissionError:  # only root may exceed net.core.wmem_max
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)


class Connection:
    """A client's connection; :meth:`run` serves it until it ends, and closes its socket.

    The socket is the standard library's, not blocking: trio's own would yield to other tasks on
    each call, which costs more than the call.
    """

    def __init__(
        self,
        sock: socket.socket,
        methods: Methods,
        limits: ConnectionLimits,
        counters: Counters,
    ) -> None:
        self._socket = sock
        _widen(sock)
        self._methods = methods
        self._limits = limits
        self._counters = counters
        self._requests = Budget(limits.requests)
        self._payload = Budget(limits.payload)
        self._outbox = Outbox(sock, self._gone, self._is_alone)
        self._caller = Caller(MemoryTable(limits.memories, limits.memory), WalkTable(limits.walks))
        #: Descriptors that came and whose request has not come yet, in order.
        self._descriptors: deque[int] = deque()
        self._last_request_read = trio.Event()
        self._shutting_down = False

    def shut_down(self) -> None:
        """Refuse new requests from here on, and end when those in progress are answered."""
        self._shutting_down = True
        self._last_request_read.set()

    async def run(self) -> None:
        """Serve the client until it goes away, loses its framing, or stops reading."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_replies, nursery.cancel_scope)
                nursery.start_soon(self._read_requests, nursery)
                await self._last_request_read.wait()
                # All of the budget is free when all replies have left.
                await self._requests.take(self._requests.total)
                nursery.cancel_scope.cancel()
        finally:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            self._outbox.close()
            self._drop_descriptors()
            with trio.move_on_after(_FAREWELL, shield=True):
                await self._caller.close()

    async def _read_requests(self, nursery: trio.Nursery) -> None:
        decoder = MessageDecoder(Limits(self._limits.frame, self._limits.depth))
        while True:
            try:
                await trio.lowlevel.wait_readable(self._socket)
                received, ancillary, flags, _ = self._socket.recvmsg(
                    _RECEIVE_SIZE, _ANCILLARY_SPACE, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                continue
            except OSError:
                nursery.cancel_scope.cancel()
                return
            if not received:
                # The client has shut its side, and still reads what it asked for.
                self._last_request_read.set()
                return
            self._descriptors.extend(received_descriptors(ancillary))
            try:
                if flags & _TRUNCATED or len(self._descriptors) > _MOST_DESCRIPTORS:
                    raise FramingError("TOO_LARGE", "too many descriptors came with a request")
                decoder.feed(received)
                for number, message in enumerate(decoder, 1):
                    if number % _TURN == 0:
                        await trio.lowlevel.checkpoint()
                    if isinstance(message, Request):
                        await self._take_turn()
                        self._counters.requests += 1
                        if self._shutting_down:
                            end = CallError(ErrorCode.SHUTTING_DOWN, "the daemon is about to end")
                            self._refuse_request(message, end.to_wire(), reserved=0)
                        else:
                            nursery.start_soon(self._answer, message, self._claimed(message))
                    elif isinstance(message, InvalidMessage):
                        await self._take_turn()
                        self._refuse(message)
                    # A notification wants no answer and none of the methods is of use without one.
                if not decoder.buffered:
                    self._drop_descriptors()  # they came with requests that take none
            except FramingError as error:
                await self._take_turn()
                refusal = CallError(ErrorCode(error.code), str(error))
                self._outbox.send(Reply([encode_notification("error", [refusal.to_wire()])]))
                self._last_request_read.set()
                return

    async def _take_turn(self) -> None:
        """Wait until the client may have one more request in the daemon; its reply ends that."""
        await self._requests.take(1)
        self._counters.in_flight += 1

    def _claimed(self, request: Request) -> int | None:
        """Return the descriptor that came with a request which takes one."""
        method = self._methods.table.get(request.method)
        if method is not None and method.descriptor and self._descriptors:
            return self._descriptors.popleft()
        return None

    def _drop_descriptors(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popleft())

    def _refuse(self, message: InvalidMessage) -> None:
        self._counters.errors += 1
        refusal = CallError(ErrorCode.BAD_REQUEST, message.reason).to_wire()
        if message.msgid is None:
            frame = encode_notification("error", [refusal])
        else:
            frame = encode_response(message.msgid, refusal, None)
        self._outbox.send(Reply([frame]))

    async def _answer(self, request: Request, descriptor: int | None) -> None:
        reserved = 0
        try:
            method = self._methods.find(request.method)
            arguments, options = method.bind(request.params)
            wanted = min(method.weight(arguments, options), self._payload.total)
            if wanted:
                await self._payload.take(wanted)
                reserved = wanted
            if method.descriptor:
                if descriptor is None:
                    raise CallError(
                        ErrorCode.BAD_REQUEST, f"{method.name} takes a descriptor, and none came"
                    )
                options["descriptor"], descriptor = descriptor, None
            result = await method.handler(self._caller, *arguments, **options)
        except VuserdError as error:
            self._refuse_request(request, error.to_wire(), reserved)
        except Exception:
            _LOG.exception("fault in %s", request.method)
            fault = CallError(ErrorCode.INTERNAL, "a fault of the daemon's; its log says more")
            self._refuse_request(request, fault.to_wire(), reserved)
        else:
            self._answer_with(request, result, reserved)
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _refuse_request(self, request: Request, error: dict[str, Any], reserved: int) -> None:
        self._counters.errors += 1
        self._outbox.send(Reply([encode_response(request.msgid, error, None)], payload=reserved))

    def _answer_with(self, request: Request, result: Any, reserved: int) -> None:
        if isinstance(result, FileContent):
            head = encode_bin_response_head(request.msgid, result.length)
            self._counters.bytes_read += result.length
            self._outbox.send(Reply([head, *result.views()], content=result, payload=reserved))
        elif isinstance(result, Fetched):
            self._answer_with_image(request, result)
        else:
            frame = encode_response(request.msgid, None, result)
            self._outbox.send(Reply([frame], payload=reserved))

    def _answer_with_image(self, request: Request, fetched: Fetched) -> None:
        try:
            descriptor = fetched.image.reopen()
        except OSError as error:
            fetched.image.give_back()
            refusal = FileError(error.errno or 0, f"no descriptor for the image: {error.strerror}")
            self._refuse_request(request, refusal.to_wire(), reserved=0)
            return
        head = encode_response(request.msgid, None, fetched_map(fetched))
        self._outbox.send(Reply([head], descriptor, fetched.image))

    def _gone(self, reply: Reply) -> None:
        """Take back what a reply used of the budgets."""
        self._payload.give_back(reply.payload)
        self._requests.give_back(1)
        self._counters.in_flight -= 1

    def _is_alone(self) -> bool:
        return self._counters.in_flight == self._requests.total - self._requests.available

    async def _write_replies(self, cancel: trio.CancelScope) -> None:
        try:
            await self._outbox.run(self._limits.stall)
        except (OSError, trio.TooSlowError) as error:
            _LOG.info("a client was dropped: %s", error or "it does not read")
            cancel.cancel()
