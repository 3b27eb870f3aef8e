"""One connection to the daemon without its socket: calls in, bytes out; bytes in, answers out.

``begin`` returns a ticket for a call; a :class:`~vuserd.client.core.exchange.Link` sends and
receives, and the ticket has the result once it is ``done``.

A large payload is received where the caller wants it: at the beginning of a frame
``receive_buffer`` asks for no more than a response's head while payloads are due, and then for the
payload itself, in the caller's buffer.

Descriptors are numbers here.  One that comes is handed to the call that it belongs to; one that
belongs to none is closed and ends the connection, or a daemon could fill this process's table.

When a connection ends, the core knows which requests the daemon cannot have taken: those that were
not sent to their last byte and, where it left bytes unread (ECONNRESET, unix(7)), the one that ends
with the last byte sent. Their calls fail with NotTaken, and can be begun again elsewhere.
"""

import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from vuserd.client.calls import Call
from vuserd.client.core.descriptor_stream import Arrivals, Close, Outgoing
from vuserd.client.core.payload import Payload, fill
from vuserd.client.core.replies import ReplyDecoder
from vuserd.client.core.ticket import GIVEN_UP, Ticket
from vuserd.client.descriptors import let_go
from vuserd.client.errors import BadReply, ConnectionLost, NotTaken, RemoteError
from vuserd.errors import ErrorCode
from vuserd.wire.bin_head import BIN_HEAD_MAX, BinHead
from vuserd.wire.codec import (
    MSGID_MAX,
    NEED_DATA,
    FramingError,
    InvalidMessage,
    Message,
    Notification,
    Request,
    Response,
    encode_request,
)

T = TypeVar("T")

_SCRATCH_BYTES = 64 << 10
_BY_DAEMON = "the daemon closed the connection"


class ClientCore:
    """The calls in flight on one connection. It is over after :meth:`lost`, for good.

    After :meth:`closed_for_requests` it takes no more calls, and answers come to those it has.
    """

    def __init__(self, *, duplicate: Callable[[int], int] = os.dup, close: Close = let_go) -> None:
        #: What is to be sent next.
        self.outgoing = Outgoing(close)
        self._duplicate = duplicate
        self._close = close
        self._arrivals = Arrivals(close)
        self._received = 0  # bytes since the beginning
        self._decoder = ReplyDecoder()
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._pending: dict[int, Ticket[Any]] = {}
        self._payloads_due: set[int] = set()  # msgids whose success is a bin, awaited or not
        self._descriptors_due: set[int] = set()  # msgids whose success has a descriptor, likewise
        self._abandoned: dict[int, Call[Any] | None] = {}  # a call whose result is to be undone
        self._unclaimed: list[Ticket[Any]] = []  # results of abandoned calls, to be undone
        self._payload: Payload | None = None
        self._next_msgid = 1
        self._loss: str | None = None
        self._closed: str | None = None  # why no more requests are taken
        self._farewell: RemoteError | None = None
        #: True while the books are changed. Where an exception from elsewhere (of a signal handler:
        #: KeyboardInterrupt) leaves it so, they are wrong, and the connection ends.
        self.changing = False
        self._interrupted = False
        self.ended_by_daemon = False
        self.api_level: int | None = None
        #: What ends with the connection: attached memory, walks that go on.
        self.held: set[Hashable] = set()

    def begin(self, call: Call[T]) -> Ticket[T]:
        """Queue a call's request; where none is taken any more, the call has failed: NotTaken."""
        ticket = Ticket(self, 0, 0, call)
        self._begin(ticket, call)
        return ticket

    def begin_again(self, ticket: Ticket[Any]) -> None:
        """Queue the request of a call that another connection did not take."""
        call = ticket.refused
        assert call is not None
        self._begin(ticket, call)

    def _begin(self, ticket: Ticket[Any], call: Call[Any]) -> None:
        self.check_books()
        if call.ends:
            self.held.discard(call.needs)
        if not self.takes_requests:
            ticket.fail(NotTaken(self.reason))
            return
        msgid = self._new_msgid()
        request = encode_request(msgid, call.method, call.params)
        # Of its own: it may be sent when the caller has given up and closed the other.
        descriptor = None if call.sends is None else self._duplicate(call.sends)
        self.changing = True
        self.outgoing.append(request, descriptor)
        ticket.begun(self, msgid, self.outgoing.end, call)
        self._pending[msgid] = ticket
        if call.buffer is not None:
            self._payloads_due.add(msgid)
        if call.receives:
            self._descriptors_due.add(msgid)
        self.changing = False

    def check_books(self) -> None:
        """End the connection where an exception from elsewhere has left its books half written."""
        if self.changing:
            self.interrupted("an exchange with the daemon was interrupted")

    @property
    def takes_requests(self) -> bool:
        """False once it is over, or the daemon takes no more requests."""
        return self._loss is None and self._closed is None

    @property
    def reason(self) -> str:
        """Why it takes no more requests; empty while it does."""
        return self._loss or self._closed or ""

    @property
    def is_over(self) -> bool:
        """True once nothing more will come."""
        return self._loss is not None

    @property
    def is_awaited(self) -> bool:
        """True while a call awaits its answer."""
        return bool(self._pending)

    @property
    def can_be_replaced(self) -> bool:
        """True once it has ended, by the daemon with nothing against the client, or interrupted.

        And with nothing on it that another connection would not have.
        """
        return (
            (self.ended_by_daemon or self._interrupted)
            and not self.held
            and (self._farewell is None or self._farewell.code == ErrorCode.SHUTTING_DOWN)
        )

    def _new_msgid(self) -> int:
        while True:
            msgid = self._next_msgid
            self._next_msgid = (msgid + 1) & MSGID_MAX
            if msgid not in self._pending and msgid not in self._abandoned:
                return msgid

    def abandon(self, ticket: Ticket[Any]) -> None:
        """Forget a call whose caller went away; its answer will be dropped, the rest goes on.

        A result that is there already, and was not taken, is undone; one that comes will be.
        """
        self.check_books()
        if self._pending.get(ticket.msgid) is not ticket:
            self.held.discard(ticket.held)
            if ticket.refused is not None:
                ticket.fail(ConnectionLost(GIVEN_UP))
            self._undo(ticket)
            return
        self.changing = True
        del self._pending[ticket.msgid]
        if self._payload is not None and self._payload.ticket is ticket:
            self._payload.ticket = None
        else:
            call = ticket.call
            self._abandoned[ticket.msgid] = call if call is not None and call.undo else None
        ticket.fail(ConnectionLost(GIVEN_UP))
        self.changing = False

    def _undo(self, ticket: Ticket[Any]) -> None:
        call = ticket.undone()
        if call is not None and self.takes_requests:
            self.abandon(self.begin(call))

    def sent(self, count: int) -> None:
        """Remove ``count`` bytes from what is to be sent: the socket took them."""
        self.changing = True
        self.outgoing.sent(count)
        self.changing = False

    @property
    def in_payload(self) -> bool:
        """True while what :meth:`receive_buffer` asks for is part of one payload, to its end."""
        return self._payload is not None

    def receive_buffer(self) -> memoryview:
        """Return the memory to receive the next bytes into; it is never empty."""
        if self._payload is not None:
            return self._payload.view(self._scratch)
        if self._payloads_due and self._decoder.buffered < BIN_HEAD_MAX:
            return self._scratch[:BIN_HEAD_MAX]
        return self._scratch

    def received(self, count: int, descriptors: Sequence[int] = ()) -> list[Ticket[Any]]:
        """Take in ``count`` bytes of :meth:`receive_buffer`; return the calls now done.

        0 is the end of the stream. The descriptors that came with them are the core's from here on.
        """
        self.changing = True
        self._arrivals.add(self._received, self._received + count, descriptors)
        self._received += count
        if not count:
            self.changing = False
            return self.ended()
        done: list[Ticket[Any]] = []
        if self._payload is not None:
            self._advance(count, done)
        else:
            try:
                self._decoder.feed(self._scratch[:count])
                while self._next_frame(done):
                    pass
            except FramingError as error:
                done += self.lost(f"what the daemon sent is not its protocol: {error}")
        self._arrivals.pass_by(self._frame_begin)
        if self._arrivals.has_surplus:
            done += self.lost("the daemon sent a descriptor that belongs to no answer")
        self.changing = False
        while self._unclaimed:
            self._undo(self._unclaimed.pop(0))
        return done

    @property
    def _frame_begin(self) -> int:
        """Where in the stream the frame begins that comes next."""
        return self._received - self._decoder.buffered

    def closed_for_requests(self, *, unread: bool = False) -> list[Ticket[Any]]:
        """Stop sending requests, as the daemon takes none (EPIPE); return the calls that fail.

        It has the others, and their answers will come. ``unread`` is that of :meth:`ended`.
        """
        self.ended_by_daemon = True
        self._closed = _BY_DAEMON
        taken = self.outgoing.begin - unread
        refused = [ticket for ticket in self._pending.values() if ticket.end > taken]
        for ticket in refused:
            del self._pending[ticket.msgid]
            self._payloads_due.discard(ticket.msgid)
            self._descriptors_due.discard(ticket.msgid)
            ticket.fail(NotTaken(_BY_DAEMON))
        self.outgoing.clear()
        return refused

    def ended(self, *, unread: bool = False) -> list[Ticket[Any]]:
        """End the connection, as the daemon has; return the calls that fail, as :meth:`lost` does.

        Args:
            unread: the last byte that was sent is among those it did not read (ECONNRESET).

        """
        self.ended_by_daemon = True
        reason = _BY_DAEMON if self._farewell is None else f"{_BY_DAEMON}: {self._farewell}"
        return self._end(reason, self.outgoing.begin - unread)

    def lost(self, reason: str) -> list[Ticket[Any]]:
        """End the connection: every call in flight fails. Return those calls."""
        return self._end(reason, self.outgoing.begin)

    def interrupted(self, reason: str) -> list[Ticket[Any]]:
        """End the connection like :meth:`lost`, where it is not known how much was just sent."""
        self.changing, self._interrupted = False, True
        return self._end(reason, self.outgoing.end)

    def _end(self, reason: str, taken: int) -> list[Ticket[Any]]:
        """End the connection, of whose stream the daemon took no more than ``taken`` bytes."""
        if self._loss is None:
            self._loss = reason
        tickets = list(self._pending.values())
        self._pending.clear()
        self._abandoned.clear()
        self._payloads_due.clear()
        self._descriptors_due.clear()
        self._payload = None
        self._arrivals.clear()
        self.outgoing.clear()
        for ticket in tickets:
            kind = NotTaken if ticket.end > taken else ConnectionLost
            ticket.fail(kind(self._loss))
        return tickets

    def _next_frame(self, done: list[Ticket[Any]]) -> bool:
        """Take in one more frame, or the head of one; False where more bytes are needed."""
        if self._payloads_due:
            head = self._decoder.peek_bin_response_head()
            if head is NEED_DATA:
                return False
            if head is not None and head.msgid in self._payloads_due:
                return self._begin_payload(head, done)
        begin = self._frame_begin
        message = self._decoder.next_message()
        if message is NEED_DATA:
            return False
        self._dispatch(message, begin, done)
        return self._loss is None

    def _begin_payload(self, head: BinHead, done: list[Ticket[Any]]) -> bool:
        """Direct a payload to its buffer, beginning with what has come of it; True at its end."""
        self._payloads_due.discard(head.msgid)
        self._abandoned.pop(head.msgid, None)
        ticket = self._pending.get(head.msgid)
        if ticket is not None and ticket.buffer is not None and head.length > len(ticket.buffer):
            del self._pending[head.msgid]
            ticket.fail(BadReply("the daemon sent more bytes than were asked for"))
            done.append(ticket)
            ticket = None
        self._decoder.take(head.head_size)
        self._payload = payload = Payload(ticket, head.length)
        begun = self._decoder.take(payload.length)
        if ticket is not None and ticket.buffer is not None:
            ticket.buffer[: len(begun)] = begun
        self._advance(len(begun), done)
        return self._payload is None

    def _advance(self, count: int, done: list[Ticket[Any]]) -> None:
        assert self._payload is not None
        payload = self._payload
        payload.arrived += count
        if payload.arrived < payload.length:
            return
        self._payload = None
        if payload.ticket is not None:
            del self._pending[payload.ticket.msgid]
            payload.ticket.succeed(payload.length)
            if payload.ticket.held is not None:
                self.held.add(payload.ticket.held)
            done.append(payload.ticket)

    def _dispatch(self, message: Message, begin: int, done: list[Ticket[Any]]) -> None:
        """Settle the call that a message answers, which begins at ``begin`` in the stream."""
        match message:
            case Notification("error", [error, *_]):
                self._farewell = RemoteError.from_wire(error)
                return
            case Notification():
                return  # a later daemon may send others
            case Request():
                done += self.lost("the daemon sent a request")
                return
            case Response(msgid) | InvalidMessage(msgid):
                pass
        ticket = self._pending.pop(msgid, None) if msgid is not None else None
        if ticket is not None:
            done.append(ticket)
            self._settle(ticket, message, begin)
        elif msgid in self._abandoned:
            call = self._abandoned.pop(msgid)
            if call is not None:
                ticket = Ticket(self, msgid, 0, call)
                self._settle(ticket, message, begin)
                self.held.discard(ticket.held)
                self._unclaimed.append(ticket)
        else:
            done += self.lost("the daemon answered what it was not asked")
        if msgid is not None:
            self._payloads_due.discard(msgid)
            self._descriptors_due.discard(msgid)

    def _settle(self, ticket: Ticket[Any], message: Response | InvalidMessage, begin: int) -> None:
        if isinstance(message, InvalidMessage):
            ticket.fail(BadReply(f"the daemon's answer is not understood: {message.reason}"))
        elif message.error is not None:
            call = ticket.call
            assert call is not None
            ticket.fail(RemoteError.from_wire(message.error, call.filename, call.method))
        elif ticket.msgid in self._descriptors_due:
            self._settle_with_descriptor(ticket, message.result, begin)
        elif (buffer := ticket.buffer) is not None:
            fill(ticket, buffer, message.result)
        else:
            ticket.succeed(message.result)
            if ticket.held is not None:
                self.held.add(ticket.held)

    def _settle_with_descriptor(self, ticket: Ticket[Any], result: object, begin: int) -> None:
        descriptor = self._arrivals.claim(begin)
        if descriptor is None:
            ticket.fail(
                BadReply(
                    "the daemon's answer came without its descriptor: it sent none, or this process"
                    " has no room for one"
                )
            )
            return
        ticket.succeed((result, descriptor))
        if ticket.failed:
            self._close(descriptor)
