"""A queue of a session whose chains are laid once, as the daemon's: ring-only's."""

from collections.abc import Iterator
from typing import Generic, TypeVar

from vuserd.device.layout import SharedLayout

Token = TypeVar("Token")


class LaidSlots(Generic[Token]):
    """A queue of a session whose chains are laid once."""

    def __init__(self, layout: SharedLayout, queue: int) -> None:
        self._ring = layout.virtqueue(queue)
        self._tokens: dict[int, Token] = {}

    @property
    def free(self) -> int:
        """How many requests it takes."""
        return self._ring.free

    @property
    def outstanding(self) -> int:
        """Requests added and not yet reaped."""
        return self._ring.outstanding

    def add(self, message: bytes, reply: int, target: int, length: int, token: Token) -> None:
        """Add a request."""
        self._tokens[self._ring.add(message, reply, target, length)] = token

    def publish(self) -> bool:
        """Offer all requests added since the last call; return whether there are any."""
        return self._ring.publish()

    def reap(self) -> Iterator[tuple[Token, int, bytes]]:
        """Yield what was used: its token, the length written, and what of it is no target's."""
        for slot, used, reply in self._ring.reap():
            yield self._tokens.pop(slot), used, reply

    def close(self) -> None:
        """Release the ring's memory."""
        self._ring.close()
