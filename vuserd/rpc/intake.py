"""Requests of one client on their way in: its bytes become messages, within what those may take."""

import math
from collections import deque
from collections.abc import Iterable
from typing import Final

import trio

from vuserd.config.model import ClientLimits
from vuserd.rpc.accounts import Allowance
from vuserd.users.foreign_descriptors import ForeignDescriptors
from vuserd.wire.codec import FramingError, Limits, MessageDecoder

#: Descriptors that may wait for the request that they came with.
_MOST_DESCRIPTORS: Final = 16
#: Bytes of a request that is not read yet and that no account has to know.
_UNCOUNTED: Final = 4096


class Intake:
    """What a client has sent and is no request yet.

    For each piece that comes: :meth:`feed`, take the messages of ``decoder``, :meth:`settle`.

    Args:
        limits: of the client.
        allowance: counts the bytes of unfinished requests.
        foreign: closes descriptors that no request takes.

    """

    def __init__(
        self, limits: ClientLimits, allowance: Allowance, foreign: ForeignDescriptors
    ) -> None:
        self.decoder = MessageDecoder(Limits(limits.frame, limits.depth))
        #: When the request that has begun has to be whole, by trio's clock; inf if none has.
        self.finish_by = math.inf
        self._stall = limits.stall
        self._allowance = allowance
        self._foreign = foreign
        self._unread = 0
        #: Descriptors whose request has not come yet, in order.
        self._descriptors: deque[int] = deque()

    def feed(self, received: bytes, descriptors: Iterable[int]) -> None:
        """Take the next piece of the stream, and the descriptors beside it.

        Raises:
            FramingError: there are more descriptors than requests can want.
            CallError: BUSY: the user has too many bytes of unfinished requests.

        """
        self._descriptors.extend(descriptors)
        if len(self._descriptors) > _MOST_DESCRIPTORS:
            raise FramingError("TOO_LARGE", "too many descriptors came with a request")
        self.decoder.feed(received)
        if self._unread + len(received) > _UNCOUNTED:
            self._allowance.count_unread(self._unread + len(received))

    def settle(self, messages: int) -> None:
        """Count what is left once so many messages were taken, and set its deadline.

        Raises:
            CallError: BUSY, as :meth:`feed`.

        """
        self._unread = self.decoder.buffered
        if self._allowance.unread:
            self._allowance.count_unread(self._unread)
        if not self._unread:
            self.finish_by = math.inf
            self.drop_descriptors()  # they came with requests that take none
        elif messages or self.finish_by == math.inf:  # another request has begun
            self.finish_by = trio.current_time() + self._stall

    def claim_descriptor(self) -> int | None:
        """Return the next descriptor, for a request that takes one; it is the caller's."""
        return self._descriptors.popleft() if self._descriptors else None

    def drop_descriptors(self) -> None:
        """Close the descriptors that no request took."""
        while self._descriptors:
            self._foreign.close(self._descriptors.popleft())
