"""The calls of one client: each becomes a reply, which is sent when it is ready.

A short call, of a few requests to the backend, is an errand. All others, and a short one that turns
out to need more, run in the task of a worker.
"""

import contextlib
import functools
import socket
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Final

import trio

from vuserd.config.model import ClientLimits
from vuserd.device.procedure import NeedsTask
from vuserd.errors import CallError, ErrorCode, VuserdError, os_reason
from vuserd.exports.calls import NO_PAST, PAST, Lost, Past
from vuserd.exports.together import Joint, Together
from vuserd.rpc.access import Rights
from vuserd.rpc.accounts import Account, Allowance
from vuserd.rpc.caller import Caller
from vuserd.rpc.counters import GONE, NO_METHOD, OK, ClientCounters, Counters
from vuserd.rpc.methods.signature import TIMEOUT, Method, weightless
from vuserd.rpc.methods.table import Methods
from vuserd.rpc.outbox import Outbox, Reply
from vuserd.rpc.results.answers import Asked
from vuserd.tasks.turns import SHARER
from vuserd.tasks.workers import Worker, Workers
from vuserd.users.asker import ASKER, Asker
from vuserd.wire.codec import (
    FramingError,
    InvalidMessage,
    Request,
    encode_notification,
    encode_response,
)

_NO_LIMIT: Final = contextlib.nullcontext()


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Let the block take ``seconds`` at most.

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


def _nobody() -> None:
    """Do nothing: the connection is closed."""


class _ShortCall:
    """A call without a task."""

    __slots__ = ("_calls", "began", "method", "request", "reserved")

    def __init__(
        self, calls: "Calls", request: Request, method: Method, reserved: int, began: float
    ) -> None:
        self._calls = calls
        self.request = request
        self.method = method
        #: Bytes of the client's payload budget that are taken for the reply.
        self.reserved = reserved
        self.began = began

    def end(self, found: Any, failure: Exception | None) -> None:
        """Take what was found."""
        try:
            self._calls.end_short(self, found, failure)
        finally:
            del failure  # break the cycle exception -> traceback -> frame


class Calls:
    """The calls of one client, and what they need of the daemon.

    Args:
        sock: of the client.
        methods: what it may call.
        limits: of it.
        counters: of all clients.
        account: of its user.
        rights: of the client.
        workers: run the calls.
        together: begins those that need none.
        told: is called when replies of a task's have left, and when a task has ended.

    """

    def __init__(
        self,
        sock: socket.socket,
        methods: Methods,
        limits: ClientLimits,
        counters: Counters,
        account: Account,
        rights: Rights,
        workers: Workers,
        together: Together,
        told: Callable[[], None],
    ) -> None:
        self.counters = ClientCounters(counters)
        self.allowance = Allowance(limits, account, counters)
        #: Why the daemon ends the connection.
        self.farewell: CallError | None = None
        #: Whether the client is gone, so that nobody reads a reply.
        self.is_cancelled = False
        self._methods = methods
        self._rights = rights
        self._counters = counters
        self._account = account
        self._asker = Asker(account.uid, account.rig)
        #: Of whom calls that say the same have the same answer.
        self._alike = self._asker, rights.alike
        self._stall = limits.stall
        #: The client, as its calls see it.
        self.caller = Caller(rights, account, limits)
        self._outbox = Outbox(sock, self.allowance, self.caller)
        self._workers = workers
        self._together = together
        self._told = told
        #: Calls without a task, and what each waits for.
        self._short: dict[_ShortCall, Joint] = {}
        #: The workers that run calls or write replies.
        self._running: set[Worker] = set()
        self._is_writing = False

    @property
    def are_over(self) -> bool:
        """Whether no call is left, and no task."""
        return not self._running and not self._short

    def start(self, request: Request, descriptor: int | None) -> None:
        """Answer a request that is counted already; take over the descriptor that came with it."""
        self.counters.count_request()
        if descriptor is not None or not self._start_short(request):
            self._start_task(request, descriptor)

    def _start_task(self, request: Request, descriptor: int | None, past: Past = NO_PAST) -> None:
        """Answer a request in a task; ``past`` is what became of it without one."""
        answer = functools.partial(self._answer, request, descriptor, past)
        self._workers.start(answer, self._running)

    def _start_short(self, request: Request) -> bool:
        """Begin the call, or refuse it, if it is a short one; return whether it is."""
        method = self._methods.table.get(request.method)
        if method is None or method.short is None:
            return False
        began = time.perf_counter()
        key: Hashable = None
        if method.shares and request.said:
            key = self._alike, request.said
            joint = self._together.find(key)
            if joint is not None:
                self._wait_for(joint, _ShortCall(self, request, method, 0, began))
                return True
        payload = self.allowance.payload
        try:
            arguments, options = method.bind(request.params)
            if options.pop(TIMEOUT, None) is not None:
                return False
            wanted = 0
            if method.weight is not weightless:
                wanted = min(method.weight(arguments, options), payload.total)
            short = method.short(self.caller, *arguments, **options)
        except VuserdError as error:
            end = self._fail(request, method.name, error, 0)
            self._counters.count(method.name, end, time.perf_counter() - began)
            self._told()
            return True
        except Exception:  # a fault of the daemon's, which the task logs
            return False
        if short is None or (wanted and not payload.try_take(wanted)):
            return False
        call = _ShortCall(self, request, method, wanted, began)
        export, procedure = short
        joint = self._together.add(
            key or call, lambda done: export.errand(self._asker, procedure, done)
        )
        if joint is None:
            if wanted:
                payload.give_back(wanted)
            return False
        self._wait_for(joint, call)
        return True

    def _wait_for(self, joint: Joint, call: _ShortCall) -> None:
        joint.join(call)
        self._short[call] = joint

    def end_short(self, call: _ShortCall, found: Any, failure: Exception | None) -> None:
        """Answer a short call, or go on with it in a task."""
        del self._short[call]
        request, reserved, name = call.request, call.reserved, call.method.name
        if isinstance(failure, NeedsTask):
            if reserved:
                self.allowance.payload.give_back(reserved)
            self._start_task(request, None, failure.past if isinstance(failure, Lost) else NO_PAST)
            return
        end = OK
        try:
            if failure is not None:
                raise failure
            asked = Asked(request.msgid, reserved, self.counters, self.caller.show_error)
            self._send(call.method.answer(found, asked))
        except Exception as error:
            end = self._fail(request, name, error, reserved)
        finally:
            del failure  # break the cycle exception -> traceback -> frame
        self._counters.count(name, end, time.perf_counter() - call.began)
        self._told()

    def _drop_short(self) -> None:
        """End the short calls: nobody waits for them any more."""
        while self._short:
            call, joint = self._short.popitem()
            self._counters.count(call.method.name, GONE, time.perf_counter() - call.began)
            joint.leave(call)

    def cut_off(self) -> None:
        """End the short calls, as they take too long; the others are cancelled."""
        while self._short and self.farewell is not None:
            call, joint = self._short.popitem()
            joint.leave(call)
            end = self._fail(call.request, call.method.name, self.farewell, call.reserved)
            self._counters.count(call.method.name, end, time.perf_counter() - call.began)

    def refuse(self, message: InvalidMessage) -> None:
        """Answer what is no request, and is counted as one already."""
        self._counters.errors += 1
        self._counters.count(NO_METHOD, ErrorCode.BAD_REQUEST, 0.0)
        refusal = CallError(ErrorCode.BAD_REQUEST, message.reason)
        if message.msgid is None:
            self._notify(refusal)
        else:
            self._answer_error(message.msgid, refusal)

    def tell(self, error: CallError | FramingError) -> None:
        """Send a notification about the connection itself."""
        self.allowance.begin_notice()
        if isinstance(error, FramingError):
            error = CallError(ErrorCode(error.code), str(error))
        self._notify(error)

    def hurry(self) -> None:
        """End the calls that only wait for something to happen."""
        self.caller.hurry()

    def cancel(self) -> None:
        """Cancel all calls."""
        self.is_cancelled = True
        self._drop_short()
        for worker in self._running:
            worker.cancel()

    async def close(self) -> None:
        """Release all that the client had; its calls are over."""
        self._told = _nobody
        self._drop_short()
        self._outbox.close()
        self.allowance.close()
        self._act_for_user()
        with trio.CancelScope(shield=True):  # no backend keeps memory longer than it may
            await self.caller.close()

    def _act_for_user(self) -> None:
        """Make this task work on behalf of the client and its user from now on."""
        if ASKER.get() is not self._asker or SHARER.get() is not self.caller:
            ASKER.set(self._asker)
            SHARER.set(self.caller)

    async def _answer(self, request: Request, descriptor: int | None, past: Past) -> None:
        self._act_for_user()
        PAST.set(past)
        reserved = 0
        name, end, began = NO_METHOD, OK, time.perf_counter()
        try:
            method = self._methods.find(request.method)
            name = method.name
            if method.manages and not self._rights.manages:
                self._methods.refusals.note(self._rights.peer, method.name)
                raise CallError(
                    ErrorCode.DENIED, f"{method.name} is for root and the daemon's user"
                )
            arguments, options = method.bind(request.params)
            seconds = options.pop(TIMEOUT, None)
            wanted = method.weight(arguments, options)
            with _NO_LIMIT if seconds is None else _limit(seconds):
                if wanted:
                    wanted = min(wanted, self.allowance.payload.total)
                    await self.allowance.payload.take(wanted)
                    reserved = wanted
                if method.descriptor:
                    if descriptor is None:
                        raise CallError(
                            ErrorCode.BAD_REQUEST,
                            f"{method.name} takes a descriptor, and none came",
                        )
                    options["descriptor"], descriptor = descriptor, None
                result = await method.handler(self.caller, *arguments, **options)
            reply = method.answer(
                result, Asked(request.msgid, reserved, self.counters, self.caller.show_error)
            )
        except Exception as error:
            end = self._fail(request, name, error, reserved)
        except trio.Cancelled:
            end = GONE
            if self.farewell is not None:  # cut off: it took too long
                end = self._fail(request, name, self.farewell, reserved)
            raise
        else:
            self._send(reply)
        finally:
            self._counters.count(name, end, time.perf_counter() - began)
            if descriptor is not None:
                self._account.foreign.close(descriptor)
            self._told()

    def _fail(self, request: Request, name: str, error: Exception, reserved: int) -> str:
        """Answer with the error that is being handled; return the code that it counts as."""
        if not isinstance(error, VuserdError):
            self._methods.faults.note(self._rights.peer, name, with_traceback=True)
            error = CallError(ErrorCode.INTERNAL, "a fault of the daemon's; its log says more")
        self._counters.errors += 1
        self._answer_error(request.msgid, error, reserved)
        return error.code

    def _answer_error(self, msgid: int, error: VuserdError, reserved: int = 0) -> None:
        shown = self.caller.show_error(error)
        self._send(Reply([encode_response(msgid, shown, None)], payload=reserved))

    def _notify(self, error: CallError) -> None:
        """Send a notification about the connection itself, rather than one of its requests."""
        self._send(Reply([encode_notification("error", [self.caller.show_error(error)])]))

    def _send(self, reply: Reply) -> None:
        """Send a reply, or leave it to a task of its own where the client has to read first."""
        if not self._outbox.send(reply) and not self._is_writing and not self.is_cancelled:
            self._is_writing = True
            self._workers.start(self._write, self._running)

    async def _write(self) -> None:
        """Send the replies that wait for the client to read."""
        try:
            while await self._outbox.send_more(self._stall):
                self._told()
        except (OSError, trio.TooSlowError) as error:
            reason = os_reason(error) if isinstance(error, OSError) else "it does not read"
            self._methods.drops.note(self._rights.peer, reason)
            self.cancel()
        finally:
            self._is_writing = False
            self._told()
