"""The vhost-user socket: one request after the other, each with its reply and a deadline."""

import math
import socket
from collections import deque
from collections.abc import Sequence
from typing import Final

import trio

from protocol import MalformedError
from protocol.vhost_user import (
    HEADER_SIZE,
    REPLIED,
    Request,
    decode_reply_header,
    decode_u64,
    encode_message,
)
from vuserd.errors import (
    BackendBroken,
    BackendDown,
    BackendError,
    BackendRefused,
    BackendTimeout,
    os_reason,
)
from vuserd.users.foreign_descriptors import ForeignDescriptors, accept_descriptors_inline
from vuserd.wire.descriptors import ancillary_with

#: Closes sockets in which descriptors of backends may lie unread: they are never received.
_UNRECEIVED: Final = ForeignDescriptors(1)


def close_stream(stream: trio.SocketStream) -> None:
    """Close a connection to a backend, whatever the backend has sent."""
    _UNRECEIVED.close_socket(stream.socket)


class _Awaited:
    """A request that is to be answered."""

    def __init__(self, request: Request) -> None:
        self.request = request
        #: The payload of its reply; None if the connection ended before.
        self.reply: bytes | None = None
        self.settled = trio.Event()


class VhostUserConnection:
    """The front-end's end of the socket.

    :meth:`run` is the only reader; it ends with an exception that says why the backend is lost.
    """

    def __init__(self, stream: trio.SocketStream, timeout: float) -> None:
        #: No reply is waited for beyond this time, even if its own deadline is later.
        self.deadline = math.inf
        self._stream = stream
        self._socket = stream.socket
        accept_descriptors_inline(self._socket)
        self._timeout = timeout
        self._scope = trio.CancelScope()
        self._turn = trio.Lock()
        #: What is still to be answered, in that order; the last one alone may be waited for.
        self._owed: deque[_Awaited] = deque()
        #: Why the connection has ended; None before.
        self._ended: BackendError | None = None

    async def run(self) -> None:
        """Read replies until the connection ends, and close it then.

        Raises:
            BackendDown: the connection was closed.
            BackendBroken: the backend sent a message that was not requested or is malformed.

        """
        with self._scope:
            try:
                await self._read_replies()
            except BackendError as error:
                self._ended = error.again()
                raise
            finally:
                closed = BackendDown("the connection to the backend was closed")
                self._ended = self._ended or closed
                for awaited in self._owed:
                    awaited.settled.set()
                close_stream(self._stream)

    def close(self) -> None:
        """Close the connection; waiters and later callers get BackendDown."""
        self._scope.cancel()

    async def _read_replies(self) -> None:
        while True:
            header = await self._receive(HEADER_SIZE)
            size = self._expect(header)
            reply = await self._receive(size)
            awaited = self._owed.popleft()
            awaited.reply = reply
            awaited.settled.set()

    def _expect(self, header: bytes) -> int:
        """Return the size of the payload of a reply, which is to the first request of all owed.

        Those before it are not owed any more: they were given up, and are never answered.
        """
        while self._owed:
            try:
                return decode_reply_header(header, self._owed[0].request)
            except MalformedError as error:
                if len(self._owed) == 1:
                    raise BackendBroken(str(error)) from error
                self._owed.popleft()
        raise BackendBroken("a vhost-user message that was not requested")

    async def ask(
        self, request: Request, payload: bytes = b"", descriptors: Sequence[int] = ()
    ) -> bytes:
        """Send a request that has a reply of its own; return the reply's payload.

        Raises:
            BackendTimeout: no reply within the deadline.
            BackendDown: the connection has ended.

        """
        if request not in REPLIED:
            raise ValueError(f"{request.name} has no reply of its own")
        async with self._turn:
            return await self._exchange(request, payload, descriptors, need_reply=False)

    async def tell(
        self, request: Request, payload: bytes = b"", descriptors: Sequence[int] = ()
    ) -> None:
        """Send a request, with descriptors beside it, and wait until the backend acknowledges it.

        Raises:
            BackendRefused: the backend refused it.
            BackendBroken: its reply is not an acknowledgement.
            BackendTimeout: no acknowledgement within the deadline.
            BackendDown: the connection has ended.
            ValueError: one of the descriptors is closed, which is not the backend's fault.

        """
        if any(descriptor < 0 for descriptor in descriptors):
            raise ValueError(f"{request.name} with a descriptor that is closed")
        async with self._turn:
            answer = await self._exchange(request, payload, descriptors, need_reply=True)
        try:
            status = decode_u64(answer)
        except MalformedError as error:
            raise BackendBroken(f"{request.name}: {error}") from error
        if status != 0:
            raise BackendRefused(f"the backend refused {request.name} (status {status})")

    async def announce(self, request: Request, payload: bytes = b"") -> None:
        """Send a request that has no acknowledgement, before REPLY_ACK is agreed on."""
        async with self._turn:
            await self._send(encode_message(request, payload), ())

    async def _exchange(
        self,
        request: Request,
        payload: bytes,
        descriptors: Sequence[int],
        *,
        need_reply: bool,
    ) -> bytes:
        if self._ended is not None:
            raise self._ended.again()
        begun = trio.current_time()
        deadline = min(self.deadline, begun + self._timeout)
        message = encode_message(request, payload, need_reply=need_reply)
        awaited = _Awaited(request)
        self._owed.append(awaited)
        try:
            # Shielded, and ended by the deadline: whether the backend has done what it was asked to
            # has to be known.
            with trio.fail_at(deadline, shield=True):
                await self._send(message, descriptors)
                await awaited.settled.wait()
        except trio.TooSlowError:
            raise BackendTimeout(
                f"the backend did not answer {request.name} within {round(deadline - begun, 3):g} s"
            ) from None
        if awaited.reply is None:
            assert self._ended is not None
            raise self._ended.again()
        return awaited.reply

    async def _send(self, message: bytes, descriptors: Sequence[int]) -> None:
        try:
            sent = await self._socket.sendmsg([message], ancillary_with(descriptors))
            # A stream socket may take a part; the descriptors go with the first byte.
            while sent < len(message):
                sent += await self._socket.send(message[sent:])
        except OSError as error:
            raise _lost(error) from error
        except trio.ClosedResourceError as error:
            raise BackendDown("the connection to the backend was closed") from error

    async def _receive(self, size: int) -> bytes:
        """Receive exactly ``size`` bytes.

        No reply has descriptors, and closing one may take for ever. So this looks for them first,
        and never receives them.
        """
        received = b""
        while len(received) < size:
            try:
                chunk, _, flags, _ = await self._socket.recvmsg(
                    size - len(received), 0, socket.MSG_PEEK
                )
                if flags & socket.MSG_CTRUNC:
                    asked = self._owed[-1].request if self._owed else Request.GET_FEATURES
                    raise BackendBroken(f"descriptors with the reply to {asked.name}")
                if not chunk:
                    raise BackendDown("the backend closed its socket")
                received += await self._socket.recv(len(chunk))
            except OSError as error:
                raise _lost(error) from error
        return received


def _lost(error: OSError) -> BackendDown:
    if isinstance(error, ConnectionError):
        return BackendDown("the backend closed its socket")
    return BackendDown(f"the connection to the backend was lost: {os_reason(error)}")
