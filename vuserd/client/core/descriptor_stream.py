"""Which byte of a stream a descriptor travels with: those to send, and those that came.

On a unix socket a descriptor is received with the first byte that it was sent with (unix(7),
SCM_RIGHTS), and here that is the first byte of the message that names it.  Both classes count bytes
from the beginning of the connection; neither has a socket, and a descriptor is a number to them.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

#: Closes a descriptor.
Close: TypeAlias = Callable[[int], object]


class Outgoing:
    """Bytes to send. It owns the descriptors among them, until they are sent or it is cleared."""

    def __init__(self, close: Close) -> None:
        self._close = close
        self._bytes = bytearray()
        self._begin = 0  # the first of them in the stream
        self._beside: deque[tuple[int, int]] = deque()  # a byte in the stream, a descriptor

    def __len__(self) -> int:
        return len(self._bytes)

    @property
    def begin(self) -> int:
        """Where in the stream the first byte is that was not sent: how many were."""
        return self._begin

    @property
    def end(self) -> int:
        """Where in the stream the next message will begin."""
        return self._begin + len(self._bytes)

    def append(self, message: bytes, descriptor: int | None = None) -> None:
        """Queue a message, with a descriptor beside its first byte."""
        if descriptor is not None:
            self._beside.append((self._begin + len(self._bytes), descriptor))
        self._bytes += message

    def next_piece(self) -> tuple[bytes | bytearray, Sequence[int]]:
        """Return what one system call may send: bytes, and descriptors beside the first of them."""
        if not self._beside:
            return self._bytes, ()
        at, descriptor = self._beside[0]
        if at > self._begin:
            return self._bytes[: at - self._begin], ()
        end = self._beside[1][0] - self._begin if len(self._beside) > 1 else None
        return self._bytes[:end], (descriptor,)

    def sent(self, count: int) -> None:
        """Remove what was sent: ``count`` bytes of :meth:`next_piece`, and what was beside them."""
        if count and self._beside and self._beside[0][0] == self._begin:
            self._close(self._beside.popleft()[1])
        del self._bytes[:count]
        self._begin += count

    def clear(self) -> None:
        """Send nothing of it any more."""
        self._bytes.clear()
        while self._beside:
            self._close(self._beside.popleft()[1])


class _Arrival(NamedTuple):
    """A descriptor that came with the bytes from ``begin`` up to ``end``, which one is not told."""

    begin: int
    end: int
    descriptor: int


class Arrivals:
    """Descriptors that came, until the message that each belongs to claims it."""

    def __init__(self, close: Close) -> None:
        self._close = close
        self._waiting: deque[_Arrival] = deque()
        self._passed = False

    def add(self, begin: int, end: int, descriptors: Sequence[int]) -> None:
        """Take descriptors that one system call received with the bytes ``begin`` to ``end``."""
        self._waiting.extend(_Arrival(begin, end, descriptor) for descriptor in descriptors)

    def claim(self, position: int) -> int | None:
        """Return the descriptor of the message that begins at ``position``; None if none came.

        So the loss of one (a full descriptor table) does not shift those of other messages.
        """
        self.pass_by(position)
        if self._waiting and self._waiting[0].begin <= position:
            return self._waiting.popleft().descriptor
        return None

    def pass_by(self, position: int) -> None:
        """Close those that no message from ``position`` on can claim."""
        while self._waiting and self._waiting[0].end <= position:
            self._passed = True
            self._close(self._waiting.popleft().descriptor)

    @property
    def has_surplus(self) -> bool:
        """True once one was passed by, or more wait than the unfinished message can claim."""
        return self._passed or len(self._waiting) > 1

    def clear(self) -> None:
        """Close all of them."""
        while self._waiting:
            self._close(self._waiting.popleft().descriptor)
