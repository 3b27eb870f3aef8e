"""Procedures, written once for all clients: how to wait is the driver's business.

A procedure is a generator. What it yields is a step to take, and what it is sent, or thrown, is
what came of that; so it has no clock and no loop of its own, and waits for nothing itself.
"""

from collections.abc import Callable, Generator, Iterable
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from vuserd.client.core.ticket import Ticket

T = TypeVar("T")


class Finish(NamedTuple):
    """Wait for the result of a call, also over another connection where this one ended."""

    ticket: Ticket[Any]


class Wait(NamedTuple):
    """Wait until a call is done on its connection, for so many seconds at most."""

    ticket: Ticket[Any]
    seconds: float | None = None


class Sink(Protocol):
    """The taker of a file's bytes."""

    #: It may block. One that does not may return something to await.
    blocks: bool

    def write(self, payload: memoryview, offset: int, /) -> object:
        """Take bytes, and their offset in the file."""


class Write(NamedTuple):
    """Hand bytes of a file to the sink, with their offset in it."""

    sink: Sink
    payload: memoryview
    offset: int


class Pause(NamedTuple):
    """Wait for some seconds."""

    seconds: float


class Emit(NamedTuple, Generic[T]):
    """Hand these to the caller, one after the other."""

    values: Iterable[T]


class Do(NamedTuple):
    """Call what may block, of this machine's files; what it returns comes of it."""

    function: Callable[[], Any]


Step: TypeAlias = Finish | Wait | Write | Pause | Do
#: Returns a result.
Procedure: TypeAlias = Generator[Step, Any, T]
#: Hands the caller one thing after the other.
Stream: TypeAlias = Generator[Step | Emit[T], Any, None]
#: Called with the number of bytes of a file that are there, and the number there will be.
Progress: TypeAlias = Callable[[int, int], object]
_AnyStep = TypeVar("_AnyStep", covariant=True)


class Running(Generic[_AnyStep, T]):
    """A procedure on its way: it hears of all that comes of its steps, and cleans up."""

    result: T
    #: What ended the procedure from outside: no step is waited for any more, while it cleans up.
    cancelled: BaseException | None = None

    def __init__(self, procedure: Generator[_AnyStep, Any, T]) -> None:
        self._procedure = procedure
        self._outcome: Any = None
        self._error: BaseException | None = None

    def next_step(self) -> _AnyStep | None:
        """Return what to do next, None once there is a ``result``; or raise what it raises."""
        error, outcome = self._error, self._outcome
        self._error = self._outcome = None
        try:
            if error is not None:
                return self._procedure.throw(error)
            return self._procedure.send(outcome)
        except StopIteration as end:
            self.result = end.value
            return None
        finally:
            del error  # its own traceback refers to it

    def came(self, outcome: Any) -> None:
        """Take what came of the step."""
        self._outcome = outcome

    def failed(self, error: BaseException) -> None:
        """Take what the step raised."""
        self._error = error

    def close(self) -> None:
        """End the procedure where it is."""
        self._procedure.close()
