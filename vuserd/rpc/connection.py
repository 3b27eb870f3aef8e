"""One client: its requests become tasks, its replies go out as they are ready.

A client has a bounded number of requests and of payload bytes in the daemon, counted from the
moment a request is read until its reply has left; over them, nothing more is read from it. Its
user's connections together are bounded likewise.

When the daemon ends, it shuts its side down for receiving: what a client has sent until then is
answered, and what it sends afterwards fails at once, so it knows of each request which of the two
became of it.
"""

import contextlib
import logging
import math
import socket
import time
from collections.abc import Iterator
from typing import Any, Final

import trio

from vuserd.config.model import ClientLimits
from vuserd.delivery.memory_table import MemoryTable
from vuserd.errors import CallError, ErrorCode, VuserdError, os_reason
from vuserd.fs.heldfile import FileTable
from vuserd.fs.listings import ContinuationTable
from vuserd.rpc.access import Rights
from vuserd.rpc.accounts import Account, Allowance
from vuserd.rpc.answers import Asked
from vuserd.rpc.caller import Caller
from vuserd.rpc.counters import GONE, NO_METHOD, OK, ClientCounters, Counters
from vuserd.rpc.intake import Intake
from vuserd.rpc.methods import Methods
from vuserd.rpc.outbox import Outbox, Reply
from vuserd.rpc.signature import TIMEOUT
from vuserd.tasks.turns import SHARER
from vuserd.tracing.trace import TraceTable
from vuserd.users.asker import ASKER, Asker
from vuserd.users.foreign_descriptors import accept_descriptors_inline
from vuserd.wire.codec import (
    NEED_DATA,
    FramingError,
    InvalidMessage,
    Request,
    encode_notification,
    encode_response,
)

_LOG = logging.getLogger(__name__)

_RECEIVE_SIZE: Final = 64 << 10
#: Messages of one client, alone with the daemon, before whatever else there is has its turn.
_MOST_ALONE: Final = 64
#: Messages of one client in a turn of its user's; a request is a turn's worth.
_TURN: Final = 16
#: Values in messages, whatever these are, that are a turn's worth, too: a millisecond's work.
_DENSE: Final = 512
#: What the kernel may hold of replies that a client has not read yet; for the first connections
#: of a user: thousands of them gain nothing from it, and no limit counts that memory.
_SEND_BUFFER: Final = 2 << 20
_MOST_WIDE: Final = 64
_SO_SNDBUFFORCE: Final = 32
#: Exports that a client may trace at once.
_MOST_TRACES: Final = 8


def _notice(error: CallError | FramingError) -> Reply:
    """Return a notification about the connection itself, rather than one of its requests."""
    if isinstance(error, FramingError):
        error = CallError(ErrorCode(error.code), str(error))
    return Reply([encode_notification("error", [error.to_wire()])])


_NO_LIMIT: Final = contextlib.nullcontext()


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Let the block take so long at most.

    Raises:
        CallError: TIMEOUT.

    """
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise CallError(
            ErrorCode.TIMEOUT, f"the call was given {seconds:g} s, and takes longer"
        ) from None


def _widen(sock: socket.socket) -> None:
    """Let one send carry a whole payload buffer, which saves both sides wake-ups."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
    except OSError:  # only root may exceed net.core.wmem_max
        with contextlib.suppress(OSError):  # less will do
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
        limits: ClientLimits,
        counters: Counters,
        account: Account,
        rights: Rights,
    ) -> None:
        self.rights = rights
        self.since = time.time()
        self.counters = ClientCounters(counters)
        #: The name of the client's process, looked up for the first status.
        self._command: str | None = None
        self._socket = sock
        accept_descriptors_inline(sock)
        if account.connections <= _MOST_WIDE:
            _widen(sock)
        self._methods = methods
        self._limits = limits
        self._counters = counters
        self._account = account
        self._foreign = account.foreign
        self._allowance = Allowance(limits, account, counters)
        self._outbox = Outbox(sock, self._allowance)
        self._caller = Caller(
            rights,
            account,
            MemoryTable(limits.memories, limits.memory, account.foreign, account.holdings),
            ContinuationTable(limits.walks, account.holdings),
            ContinuationTable(limits.walks, account.holdings),
            ContinuationTable(limits.listings, account.holdings),
            FileTable(limits.files, account.holdings),
            TraceTable(_MOST_TRACES, account.holdings),
        )
        self._intake = Intake(limits, self._allowance, account.foreign)
        self._last_request_read = trio.Event()
        #: Why the daemon ends the connection.
        self._farewell: CallError | None = None

    def shut_down(self, reason: str) -> None:
        """Take no more requests, and end when those that were sent are answered."""
        if self._farewell is None:
            self._farewell = CallError(ErrorCode.SHUTTING_DOWN, reason)
            self._caller.hurry()
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RD)

    def describe(self) -> dict[str, Any]:
        """Return the client as ``status`` shows it."""
        peer = self.rights.peer
        if self._command is None:
            self._command = peer.command() or ""
        return {
            "pid": peer.pid,
            "uid": peer.uid,
            "command": self._command or None,
            "requests": self.counters.requests,
            "in_flight": self._allowance.requests.taken,
            "bytes_read": self.counters.bytes_read,
            "since": self.since,
        }

    async def run(self) -> None:
        """Serve the client until it goes away, loses its framing, or stops reading."""
        ASKER.set(Asker(self._account.uid, self._account.rig))
        SHARER.set(self._account)
        try:
            await self._account.take_turn()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_replies, nursery.cancel_scope)
                nursery.start_soon(self._read_requests, nursery)
                await self._last_request_read.wait()
                await self._allowance.requests.wait_unused()  # all replies have left
                if self._farewell is not None:
                    await self._allowance.begin_request()
                    self._outbox.send(_notice(self._farewell))
                nursery.cancel_scope.cancel()
        finally:
            self._foreign.close_socket(self._socket)
            self._outbox.close()
            self._allowance.close()
            self._intake.drop_descriptors()
            with trio.CancelScope(shield=True):  # no backend keeps memory longer than it may
                await self._caller.close()

    async def _read_requests(self, nursery: trio.Nursery) -> None:
        """Start a task for each request, until the client ends or may not go on."""
        try:
            while await self._receive():
                self._intake.settle(await self._start_requests(nursery))
        except (CallError, FramingError) as error:
            await self._allowance.begin_request()
            self._outbox.send(_notice(error))
        except OSError:
            nursery.cancel_scope.cancel()
            return
        else:
            if self._is_gone():
                nursery.cancel_scope.cancel()
                return
        self._last_request_read.set()  # it may still read what it asked for

    async def _receive(self) -> bool:
        """Wait for the client's next bytes and take them; return False at their end.

        Raises:
            CallError: TIMEOUT: a request is not finished in time; BUSY: the user has too many
                descriptors or unfinished requests in the daemon.
            FramingError: too many descriptors came.
            OSError: the connection is broken.

        """
        while True:
            try:
                if self._intake.finish_by == math.inf:
                    await self._account.wait_readable(self._socket)
                else:
                    with trio.fail_at(self._intake.finish_by):
                        await self._account.wait_readable(self._socket)
                if not self._account.is_only_user():
                    await self._account.take_turn()
                received, descriptors = self._foreign.receive(self._socket, _RECEIVE_SIZE)
            except BlockingIOError:
                continue
            except trio.TooSlowError:
                late = f"a request was not finished within {self._limits.stall:g} s"
                raise CallError(ErrorCode.TIMEOUT, late) from None
            if received:
                self._intake.feed(received, descriptors)
            return bool(received)

    async def _start_requests(self, nursery: trio.Nursery) -> int:
        """Start a task for each request that is whole, in turns; return the count of messages."""
        intake = self._intake
        number, looked_at = 0, intake.values
        while (message := intake.next_message()) is not NEED_DATA:
            number += 1
            is_dense = intake.values - looked_at >= _DENSE
            if is_dense:
                looked_at = intake.values
                async with self._account.decoding:  # one of the user's in each pass
                    pass
            elif number % _MOST_ALONE == 0:
                await trio.lowlevel.checkpoint()
            is_new_turn = is_dense or (number > 1 and isinstance(message, Request))
            if (is_new_turn or number % _TURN == 0) and not self._account.is_only_user():
                await self._account.take_turn()
            if isinstance(message, Request):
                await self._allowance.begin_request()
                self.counters.count_request()
                nursery.start_soon(self._answer, message, self._claimed(message))
            elif isinstance(message, InvalidMessage):
                await self._allowance.begin_request()
                self._refuse(message)
            # A notification wants no answer and none of the methods is of use without one.
        return number

    def _is_gone(self) -> bool:
        """Return whether the client has closed its socket, rather than only its sending side."""
        try:
            self._socket.send(b"", socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return False

    def _claimed(self, request: Request) -> int | None:
        """Return the descriptor that came with a request which takes one."""
        method = self._methods.table.get(request.method)
        takes_one = method is not None and method.descriptor
        return self._intake.claim_descriptor() if takes_one else None

    def _refuse(self, message: InvalidMessage) -> None:
        self._counters.errors += 1
        self._counters.count(NO_METHOD, ErrorCode.BAD_REQUEST, 0.0)
        refusal = CallError(ErrorCode.BAD_REQUEST, message.reason)
        if message.msgid is None:
            self._outbox.send(_notice(refusal))
        else:
            frame = encode_response(message.msgid, refusal.to_wire(), None)
            self._outbox.send(Reply([frame]))

    async def _answer(self, request: Request, descriptor: int | None) -> None:
        reserved = 0
        name, end, began = NO_METHOD, OK, time.perf_counter()
        try:
            method = self._methods.find(request.method)
            name = method.name
            if method.manages and not self.rights.manages:
                self._methods.refusals.note(self.rights.peer, method.name)
                raise CallError(
                    ErrorCode.DENIED, f"{method.name} is for root and the daemon's user"
                )
            arguments, options = method.bind(request.params)
            seconds = options.pop(TIMEOUT, None)
            wanted = min(method.weight(arguments, options), self._allowance.payload.total)
            with _NO_LIMIT if seconds is None else _limit(seconds):
                if wanted:
                    await self._allowance.payload.take(wanted)
                    reserved = wanted
                if method.descriptor:
                    if descriptor is None:
                        raise CallError(
                            ErrorCode.BAD_REQUEST,
                            f"{method.name} takes a descriptor, and none came",
                        )
                    options["descriptor"], descriptor = descriptor, None
                result = await method.handler(self._caller, *arguments, **options)
            reply = method.answer(result, Asked(request.msgid, reserved, self.counters))
        except VuserdError as error:
            end = error.code
            self._refuse_request(request, error.to_wire(), reserved)
        except Exception:
            _LOG.exception("fault in %s", request.method)
            fault = CallError(ErrorCode.INTERNAL, "a fault of the daemon's; its log says more")
            end = fault.code
            self._refuse_request(request, fault.to_wire(), reserved)
        except trio.Cancelled:
            end = GONE
            if self._farewell is not None:  # cut off: it took too long
                end = self._farewell.code
                self._refuse_request(request, self._farewell.to_wire(), reserved)
            raise
        else:
            self._outbox.send(reply)
        finally:
            self._counters.count(name, end, time.perf_counter() - began)
            if descriptor is not None:
                self._foreign.close(descriptor)

    def _refuse_request(self, request: Request, error: dict[str, Any], reserved: int) -> None:
        self._counters.errors += 1
        self._outbox.send(Reply([encode_response(request.msgid, error, None)], payload=reserved))

    async def _write_replies(self, cancel: trio.CancelScope) -> None:
        try:
            await self._outbox.run(self._limits.stall)
        except (OSError, trio.TooSlowError) as error:
            peer = self.rights.peer
            reason = os_reason(error) if isinstance(error, OSError) else "it does not read"
            _LOG.info("a client of uid %d (pid %d) was dropped: %s", peer.uid, peer.pid, reason)
            cancel.cancel()
