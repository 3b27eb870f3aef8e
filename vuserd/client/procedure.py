"""Procedures of several calls, written once: either client drives them.

A procedure is a generator. What it yields is a step to take, and what it is sent, or thrown, is
what came of that; so it has no socket, no clock and no loop of its own.
"""

from collections.abc import Generator
from types import GeneratorType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from vuserd.client.calls import Call
from vuserd.client.ticket import Ticket

if TYPE_CHECKING:
    from vuserd.client.core import ClientCore

Result = TypeVar("Result")


class Ask(NamedTuple):
    """Do a call and wait for its result."""

    call: Call[Any]
    #: The connection that has what the call is about; None for any.
    core: "ClientCore | None" = None


class Begin(NamedTuple):
    """Send a call without waiting: the result is its ticket, for Finish or Abandon."""

    call: Call[Any]
    core: "ClientCore | None" = None  #: as in Ask


class Finish(NamedTuple):
    """Wait for a call that was begun."""

    ticket: Ticket[Any]


class Abandon(NamedTuple):
    """Forget a call that was begun."""

    ticket: Ticket[Any]


class Write(NamedTuple):
    """Hand bytes of a file to whoever wants them, and their offset in it."""

    payload: memoryview
    offset: int


class Pause(NamedTuple):
    """Wait for some seconds."""

    seconds: float


class GoesOn(NamedTuple):
    """Tell whether calls are taken, or may be by the daemon's successor."""


Step: TypeAlias = Ask | Begin | Finish | Abandon | Write | Pause | GoesOn
Procedure: TypeAlias = Generator[Step, Any, Result]


def has_ended(procedure: Procedure[Any]) -> bool:
    """Tell whether it has returned or raised."""
    assert isinstance(procedure, GeneratorType)
    return procedure.gi_frame is None
