"""A call from its beginning to its end, whichever connection carries it."""

from collections.abc import Hashable
from typing import Any, Final, Generic, Protocol, TypeVar

from vuserd.client.calls import Call
from vuserd.client.errors import BadReply, ClientError, ConnectionLost, NotTaken, TimedOut

T = TypeVar("T")

GIVEN_UP: Final = "the call was given up"


class Carrier(Protocol):
    """The connection that carries a call, as far as the call's other keepers know it."""

    ended_by_daemon: bool
    #: That of the daemon, once it was asked for it.
    api_level: int | None
    #: What ends with the connection: attached memory, walks that go on.
    held: set[Hashable]

    @property
    def reason(self) -> str:
        """Why it takes no more requests; empty while it does."""

    def begin(self, call: Call[T]) -> "Ticket[T]":
        """Queue a call's request."""

    def abandon(self, ticket: "Ticket[Any]") -> None:
        """Forget a call whose caller went away."""


class Ticket(Generic[T]):
    """A call that was begun; ``done`` once there is a :meth:`result`."""

    __slots__ = (
        "_call", "_error", "_refused", "_undo", "_value", "core", "done", "end", "held", "msgid",
    )  # fmt: skip

    def __init__(self, core: Carrier, msgid: int, end: int, call: Call[T]) -> None:
        self._refused: Call[T] | None = None
        self.begun(core, msgid, end, call)

    def begun(self, core: Carrier, msgid: int, end: int, call: Call[T]) -> None:
        """Await the answer to a request that ends at ``end`` in the stream."""
        self.core = core
        self.msgid = msgid
        self.end = end
        self.done = False
        #: What of the connection came with the result.
        self.held: Hashable = None
        self._call: Call[T] | None = call
        self._refused = None
        self._undo = call.undo
        self._value: Any = None
        self._error: Exception | None = None

    def result(self) -> T:
        """Return what the call returned, or raise the error it met."""
        if not self.done:
            raise RuntimeError("the call is not done")
        if self._error is not None:
            self._refused = None
            raise self._error
        self._undo = None  # the caller's business from here on
        value: T = self._value
        return value

    @property
    def call(self) -> Call[T] | None:
        """The call, while its answer is awaited."""
        return self._call

    @property
    def refused(self) -> Call[T] | None:
        """The call, where the daemon cannot have taken it and :meth:`result` was not asked for."""
        return self._refused

    @property
    def failed(self) -> bool:
        """True once :meth:`result` raises an error."""
        return self._error is not None

    def undone(self) -> Call[Any] | None:
        """Undo a result that was not taken; return the call that does so in the daemon, if any."""
        undo, value = self._undo, self._value
        if undo is None or not self.done or self.failed:
            return None
        self.fail(ConnectionLost(GIVEN_UP))
        return undo(value)

    @property
    def buffer(self) -> memoryview | None:
        """Where the payload goes, while it is awaited."""
        return self._call.buffer if self._call is not None else None

    def succeed(self, wire_result: object) -> None:
        """Settle it with the result that came over the wire."""
        assert self._call is not None
        try:
            value = self._call.decode(wire_result)
        except BadReply as error:
            self.fail(error)
        except Exception as error:  # whatever decode stumbles over came from outside
            self.fail(BadReply(f"the daemon's answer to {self._call.method}: {error!r}"))
        else:
            if self._call.holds is not None:
                self.held = self._call.holds(value)
            self._settle(value, None)

    def fail(self, error: Exception) -> None:
        """Settle it with an error, which names the call where it does not yet."""
        if isinstance(error, ClientError):
            self.name(error)
        self._refused = self._call if isinstance(error, NotTaken) else None
        self._settle(None, error)

    def name(self, error: ClientError) -> None:
        """Add to an error which call it is about."""
        call = self._call or self._refused
        if call is not None and error.asked is None:
            error.filename, error.asked = call.filename, call.method

    def timed_out(self, seconds: float) -> TimedOut:
        """Return the error for it, where it was not answered in ``seconds``."""
        error = TimedOut.after(seconds)
        self.name(error)
        return error

    def _settle(self, value: Any, error: Exception | None) -> None:
        self._value, self._error = value, error
        self._call = None  # lets the caller's buffer go
        self.done = True
