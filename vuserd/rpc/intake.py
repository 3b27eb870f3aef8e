"""Requests of one client on their way in: its bytes become messages, within what those may take."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Final

import trio

from vuserd.config.model import ClientLimits
from vuserd.rpc.accounts import Allowance
from vuserd.users.foreign_descriptors import ForeignDescriptors
from vuserd.wire.codec import (
    NEED_DATA,
    FramingError,
    Limits,
    Message,
    MessageDecoder,
    NeedData,
    split_request,
)

#: Descriptors that may wait for the request that they came with.
_MOST_DESCRIPTORS: Final = 16
#: Bytes of a request that is not read yet and that no account has to know.
_UNCOUNTED: Final = 4096


class Intake:
    """What a client has sent and is no request yet.

    For each piece that comes: :meth:`feed`, take the messages, :meth:`settle`.

    A piece that begins with a plain request, the usual case, is unpacked as it is. What follows
    takes the long way, through a decoder that knows how much a request may have before it has one.

    Args:
        limits: of the client.
        allowance: counts the bytes of unfinished requests.
        foreign: closes descriptors that no request takes.

    """

    def __init__(
        self, limits: ClientLimits, allowance: Allowance, foreign: ForeignDescriptors
    ) -> None:
        self._decoder = MessageDecoder(Limits(limits.frame, limits.depth))
        #: Requests that the decoder has not seen, and whether it has seen what follows.
        self._plain = b""
        self._is_long_way = False
        #: How many values the messages had that took the long way.
        self.values = 0
        #: When the request that has begun has to be whole, by trio's clock; inf if none has.
        self.finish_by = math.inf
        self._stall = limits.stall
        self._allowance = allowance
        self._foreign = foreign
        self._unread = 0
        self._taken = 0
        #: Descriptors whose request has not come yet, in order.
        self._descriptors: deque[int] = deque()

    def feed(self, received: bytes, descriptors: Sequence[int]) -> None:
        """Take the next piece of the stream, and the descriptors beside it.

        Raises:
            FramingError: there are more descriptors than requests can want.
            CallError: BUSY: the user has too many bytes of unfinished requests.

        """
        if descriptors:
            self._descriptors.extend(descriptors)
            if len(self._descriptors) > _MOST_DESCRIPTORS:
                raise FramingError("TOO_LARGE", "too many descriptors came with a request")
        if self._unread:
            self._decoder.feed(received)
            self._is_long_way = True
        else:
            self._plain = received
        if self._unread + len(received) > _UNCOUNTED:
            self._allowance.count_unread(self._unread + len(received))

    def next_message(self) -> Message | NeedData:
        """Return the next message, or NEED_DATA while it is not whole.

        Raises:
            FramingError: what comes next is no message, or over a limit.

        """
        if self._plain:
            found = split_request(self._plain)
            if found is not None:
                request, self._plain = found
                self._taken += 1
                return request
            self._decoder.feed(self._plain)
            self._plain, self._is_long_way = b"", True
        if not self._is_long_way:
            return NEED_DATA
        message = self._decoder.next_message()
        if message is NEED_DATA:
            self._is_long_way = False
            self._unread = self._decoder.buffered
        else:
            self._taken += 1
            self.values = self._decoder.values
        return message

    def settle(self) -> None:
        """Count what is left once all messages are taken, and set its deadline.

        Raises:
            CallError: BUSY, as :meth:`feed`.

        """
        taken, self._taken = self._taken, 0
        if self._allowance.unread:
            self._allowance.count_unread(self._unread)
        if not self._unread:
            self.finish_by = math.inf
            self.drop_descriptors()  # they came with requests that take none
        elif taken or self.finish_by == math.inf:  # another request has begun
            self.finish_by = trio.current_time() + self._stall

    def claim_descriptor(self) -> int | None:
        """Return the next descriptor, for a request that takes one; it is the caller's."""
        return self._descriptors.popleft() if self._descriptors else None

    def drop_descriptors(self) -> None:
        """Close the descriptors that no request took."""
        while self._descriptors:
            self._foreign.close(self._descriptors.popleft())
