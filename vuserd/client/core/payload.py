"""Bytes of a file that an answer consists of, on their way to where the caller wants them."""

from typing import Any

from vuserd.client.core.ticket import Ticket
from vuserd.client.errors import BadReply


class Payload:
    """A payload on its way: into the caller's buffer, or nowhere once it is given up."""

    __slots__ = ("arrived", "length", "ticket")

    def __init__(self, ticket: Ticket[Any] | None, length: int) -> None:
        self.ticket = ticket
        self.length = length
        self.arrived = 0

    def view(self, scratch: memoryview) -> memoryview:
        """Return the memory for the rest of it, or for a part of that in ``scratch``."""
        missing = self.length - self.arrived
        buffer = self.ticket.buffer if self.ticket is not None else None
        if buffer is None:
            return scratch[:missing]
        return buffer[self.arrived : self.length]


def fill(ticket: Ticket[Any], buffer: memoryview, result: object) -> None:
    """Settle a call for a payload that came the long way, in a frame of another encoder's."""
    if not isinstance(result, bytes) or len(result) > len(buffer):
        ticket.fail(BadReply("the daemon's answer is not the bytes that were asked for"))
        return
    buffer[: len(result)] = result
    ticket.succeed(len(result))
