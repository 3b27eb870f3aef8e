"""One client: what it sends becomes calls, and their replies go out when they are ready.

A client has a bounded number of requests and of payload bytes in the daemon, counted from the
moment a request is read until its reply has left; over them, nothing more is read from it. Its
user's connections together are bounded likewise.

The hub lets a connection go on. At first it reads: up to the client's end, a fault of it, or the
daemon's own end. Then it leaves: calls in progress are answered, or cancelled where nobody is there
to read that, and it is over when the last has ended.

When the daemon ends, it shuts its side down for receiving: what a client has sent until then is
answered, and what it sends afterwards fails at once, so it knows of each request which of the two
became of it.
"""

import contextlib
import fcntl
import math
import socket
import struct
import termios
import time
from collections.abc import Callable
from typing import Any, Final

from vuserd.config.model import ClientLimits
from vuserd.errors import CallError, ErrorCode
from vuserd.exports.together import Together
from vuserd.rpc.access import Rights
from vuserd.rpc.accounts import Account
from vuserd.rpc.calls import Calls
from vuserd.rpc.counters import Counters
from vuserd.rpc.intake import Intake
from vuserd.rpc.methods.table import Methods
from vuserd.rpc.send_buffers import fit_send_buffer
from vuserd.tasks.hub import Hub
from vuserd.tasks.workers import Workers
from vuserd.users.foreign_descriptors import accept_descriptors_inline
from vuserd.wire.codec import (
    NEED_DATA,
    FramingError,
    InvalidMessage,
    Message,
    NeedData,
    Request,
)

_RECEIVE_SIZE: Final = 64 << 10
_NOTHING: Final = bytes(struct.calcsize("=i"))
#: Received bytes that are a step, and values of messages: both are work, whatever they mean.
_STEP_BYTES: Final = 8 << 10
_STEP_VALUES: Final = 8
#: Steps that the end of a connection is.
_END: Final = 4


class Connection:
    """A client's connection: the hub reads from it, and it closes its socket when it is over.

    The socket is the standard library's, not blocking: trio's own would yield to other tasks on
    each call, which costs more than the call.

    Args:
        sock: of the client.
        methods: what it may call.
        limits: of it.
        counters: of all clients.
        account: of its user.
        rights: of the client.
        hub: lets it go on.
        workers: run its calls.
        together: begins those that need no worker.
        gone: is called when nothing is left of it.

    """

    def __init__(
        self,
        sock: socket.socket,
        methods: Methods,
        limits: ClientLimits,
        counters: Counters,
        account: Account,
        rights: Rights,
        hub: Hub,
        workers: Workers,
        together: Together,
        gone: Callable[["Connection"], None],
    ) -> None:
        self.rights = rights
        self.since = time.time()
        #: The name of the client's process, looked up for the first status.
        self._command: str | None = None
        self._socket = sock
        accept_descriptors_inline(sock)
        fit_send_buffer(sock, account.connections, limits.user_connections)
        self._methods = methods
        self._stall = limits.stall
        self._foreign = account.foreign
        self._calls = Calls(
            sock, methods, limits, counters, account, rights, workers, together, self._on_reply
        )
        self._allowance = self._calls.allowance
        self._intake = Intake(limits, self._allowance, account.foreign)
        self._hub = hub
        self._workers = workers
        self._gone = gone
        # For the hub.
        self.user = account
        self.sharer = self._calls.caller
        self.descriptor = sock.fileno()
        self.has_more = False
        self.is_queued = False
        self.is_readable = False
        self.has_stops = False
        #: Whether nothing is left of what was received.
        self._is_all_taken = True
        #: A message that waits until the limits have room for it.
        self._held: Request | InvalidMessage | None = None
        self._is_late = False
        self._is_leaving = False
        #: Whether the client was told why the daemon ends the connection.
        self._is_told = False
        self._is_over = False
        self._is_closed = False

    @property
    def finish_by(self) -> float:
        """When the request that has begun has to be whole, by trio's clock; inf if none has."""
        return self._intake.finish_by

    def shut_down(self, reason: str) -> None:
        """Take no more requests, and end when those that were sent are answered."""
        if self._calls.farewell is None:
            self._calls.farewell = CallError(ErrorCode.SHUTTING_DOWN, reason)
            self._calls.hurry()
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RD)

    def cut_off(self) -> None:
        """Answer its short calls in progress with why it ends: they take too long."""
        self._calls.cut_off()

    def describe(self) -> dict[str, Any]:
        """Return the client as ``status`` shows it."""
        peer = self.rights.peer
        if self._command is None:
            self._command = peer.command() or ""
        return {
            "pid": peer.pid,
            "uid": peer.uid,
            "command": self._command or None,
            "requests": self._calls.counters.requests,
            "in_flight": self._allowance.requests,
            "bytes_read": self._calls.counters.bytes_read,
            "since": self.since,
        }

    async def close(self) -> None:
        """Close the socket and release all that the client had; its calls have ended by now."""
        self._is_over = True
        if self._is_closed:
            return
        self._is_closed = True
        self._foreign.close_socket(self._socket)
        self.user.stop_waiting(self)
        self._intake.drop_descriptors()
        await self._calls.close()
        self._gone(self)

    # -- one step after the other, which the hub takes ---------------------------------------------

    def wake(self) -> None:
        """Go on soon: what the connection waits for may have come."""
        if not self._is_over:
            self._hub.wake(self)

    def time_out(self) -> None:
        """End the connection, unless the rest of the request has come meanwhile."""
        if self._is_all_taken:
            self._is_late = True
            self.wake()

    def go_on(self, most: int, request: int) -> int:
        """Read what the client has sent, or leave, as :class:`~vuserd.tasks.hub.Client` says."""
        self.has_more = False
        if self._is_leaving or self._calls.is_cancelled:
            return self._stop_reading()
        steps = 1
        try:
            if self._is_late:
                late = f"a request was not finished within {self._stall:g} s"
                raise CallError(ErrorCode.TIMEOUT, late)
            if self._is_all_taken:
                if not self.is_readable:
                    return steps
                received = self._receive()
                if not received:
                    return self._stop_reading()
                steps += received // _STEP_BYTES
            return max(steps, self._take_messages(steps - 1, most, request))
        except BlockingIOError:
            self.is_readable = self.has_more = self._has_unread()
            return steps
        except (CallError, FramingError) as error:
            self._calls.tell(error)
        except OSError:
            self._calls.cancel()
        return self._stop_reading()

    def _receive(self) -> int:
        """Receive what has come; return how many bytes, 0 at their end.

        Raises:
            BlockingIOError: nothing has come.
            CallError: BUSY: the user has too many descriptors or unfinished requests in the daemon.
            FramingError: too many descriptors came.
            OSError: the connection is broken.

        """
        self.is_readable = False
        received, descriptors = self._foreign.receive(self._socket, _RECEIVE_SIZE)
        # What has come is not reported again. A receive takes all of it, unless that is too much,
        # it stops at the end or at urgent data, or at descriptors, and then the user has some here.
        self.is_readable = (
            len(received) == _RECEIVE_SIZE or self.has_stops or self._foreign.held > 0
        )
        if received:
            self._is_all_taken = False
            self._intake.feed(received, descriptors)
        return len(received)

    def _take_messages(self, steps: int, most: int, request: int) -> int:
        """Take messages until ``most`` steps are done; return how many are.

        Raises:
            CallError: BUSY: the user has too many bytes of unfinished requests.
            FramingError: what follows is no message.

        """
        intake = self._intake
        while steps < most:
            message: Message | NeedData | None = self._held
            if message is None:
                values = intake.values
                message = intake.next_message()
                if message is NEED_DATA:
                    self._settle()
                    return steps
                steps += (intake.values - values) // _STEP_VALUES
            if type(message) is Request or type(message) is InvalidMessage:
                if not self._allowance.begin_request(self):
                    self._held = message  # a reply that leaves wakes the connection
                    if self._is_client_gone():
                        self._stop_reading()
                    return steps
                self._held = None
                self._begin(message)
                steps += request
            else:  # a notification: it wants no answer, and no method is of use without one
                steps += 1
        if self.has_stops and self._is_client_gone():
            self._stop_reading()  # all that it has left behind is for nobody
        else:
            self.has_more = True
        return steps

    def _settle(self) -> None:
        """Wait for more from the client: all that has come so far is taken.

        Raises:
            CallError: BUSY, as :meth:`_take_messages`.

        """
        self._is_all_taken = True
        self.has_more = self.is_readable
        had_begun = self._intake.finish_by
        self._intake.settle()
        if self._intake.finish_by != math.inf or had_begun != math.inf:
            self._hub.watch_time(self)

    def _begin(self, message: Request | InvalidMessage) -> None:
        """Start a call, or refuse what is none; it is counted already."""
        if isinstance(message, InvalidMessage):
            self._calls.refuse(message)
            return
        method = self._methods.table.get(message.method)
        takes_one = method is not None and method.descriptor
        self._calls.start(message, self._intake.claim_descriptor() if takes_one else None)

    def _stop_reading(self) -> int:
        """Read nothing more, and leave; return the steps."""
        self._is_leaving = True
        if self._held is not None:
            self._held = None
            self.user.stop_waiting(self)
        return self._leave()

    def _leave(self) -> int:
        """End when all replies have left, or all calls are cancelled; return the steps."""
        calls = self._calls
        if self._is_over:
            return 1
        if not calls.is_cancelled and self._is_client_gone():
            calls.cancel()
        if calls.is_cancelled:
            pass
        elif self._allowance.requests:
            return 1  # the next reply wakes the connection
        elif calls.farewell is not None and not self._is_told:
            self._is_told = self.has_more = True
            calls.tell(calls.farewell)
            return 1
        if not calls.are_over:
            return 1  # the last of them wakes the connection
        self._is_over = True
        self._hub.remove(self)
        self._workers.start(self.close, set())
        return _END

    def _on_reply(self) -> None:
        """Go on if that is what the connection waits for: a reply to leave, or a task to end."""
        if self._is_leaving or self._held is not None or self._calls.is_cancelled:
            self.wake()

    def _has_unread(self) -> bool:
        """Return whether bytes lie in the socket, after a receive that said there are none."""
        return fcntl.ioctl(self._socket, termios.FIONREAD, _NOTHING) != _NOTHING

    def _is_client_gone(self) -> bool:
        """Return whether the client has closed its socket, rather than only its sending side."""
        try:
            self._socket.send(b"", socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return False
