"""The daemon's replies, cut from the stream by msgpack itself.

A server walks each frame first, because it must not make objects of what may be an attack; a client
that did so in Python would spend more time on a long listing than the daemon does.  So it walks
those alone that are longer than a page: objects may take 60 times the bytes that ask for them.
"""

from typing import Any, Final

import msgpack

from vuserd.wire.bin_head import BIN_HEAD_MAX, BinHead, parse_bin_response_head
from vuserd.wire.codec import (
    NEED_DATA,
    FramingError,
    Limits,
    Message,
    MessageDecoder,
    NeedData,
    to_message,
)

#: The most bytes of one reply that is no payload.
_LONGEST: Final = 64 << 20
_READ_SIZE: Final = 4096
#: Bytes of one that is not walked before objects are made of it.
_NOT_WALKED: Final = 4 << 20
_MOST_VALUES: Final = 1 << 20
#: Older msgpack makes room for all of an array when it reads its length, at a thousand levels.
#: No page of a listing is longer than this; a reply with a longer array is walked.
_LONG_ARRAY: Final = 1 << 14
_LIMITS: Final = Limits(frame_bytes=_LONGEST, depth=64, values=_MOST_VALUES)


class ReplyDecoder:
    """Does what :class:`~vuserd.wire.codec.MessageDecoder` does, for replies of a daemon."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        # All of the buffer is in it, or it is None; what it has given out is its tell().
        self._unpacker: Any = None
        self._told = 0
        self._failure: FramingError | None = None
        # Has all of the buffer while a long reply is on its way.
        self._walker: MessageDecoder | None = None

    @property
    def buffered(self) -> int:
        """How many bytes wait inside."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the stream."""
        self._buffer += data
        if self._walker is not None:
            self._walker.feed(data)
        elif self._unpacker is not None:
            self._give(data)

    def next_message(self) -> Message | NeedData:
        """Return the next message, or NEED_DATA where no whole one is there.

        Raises:
            FramingError: now and from here on: it is not MessagePack, or too long.

        """
        if self._failure is not None:
            raise self._failure
        if not self._buffer:
            return NEED_DATA
        if self._walker is not None:
            return self._next_of_walker(self._walker)
        if self._unpacker is None:
            self._unpacker = msgpack.Unpacker(
                read_size=_READ_SIZE,
                max_buffer_size=_LONGEST,
                max_array_len=_LONG_ARRAY,
                raw=False,
                strict_map_key=True,
                unicode_errors="surrogateescape",
            )
            self._told = 0
            self._give(self._buffer)
        try:
            value = self._unpacker.unpack()
        except msgpack.OutOfData:
            return self._walk() if len(self._buffer) > _NOT_WALKED else NEED_DATA
        except (ValueError, MemoryError) as error:
            if "max_array_len" in str(error):
                return self._walk()
            raise self._failed(f"not MessagePack: {str(error) or type(error).__name__}") from None
        told = self._unpacker.tell()
        del self._buffer[: told - self._told]
        self._told = told
        return to_message(value)

    def _walk(self) -> Message | NeedData:
        """Begin the message anew, with the walker."""
        self._unpacker = None
        self._walker = MessageDecoder(_LIMITS)
        self._walker.feed(self._buffer)
        return self._next_of_walker(self._walker)

    def _next_of_walker(self, walker: MessageDecoder) -> Message | NeedData:
        try:
            message = walker.next_message()
        except FramingError as error:
            raise self._failed(str(error)) from None
        if message is not NEED_DATA:
            del self._buffer[: len(self._buffer) - walker.buffered]
            self._walker = None
        return message

    def peek_bin_response_head(self) -> BinHead | NeedData | None:
        """Return whether the next message is a response that carries a bin."""
        return parse_bin_response_head(self._buffer[:BIN_HEAD_MAX])

    def take(self, size: int) -> bytes:
        """Remove ``size`` bytes, or as many as there are; what follows them begins a message."""
        with memoryview(self._buffer) as view:
            taken = bytes(view[:size])
        del self._buffer[:size]
        self._unpacker = self._walker = None
        return taken

    def _give(self, data: bytes | bytearray | memoryview) -> None:
        try:
            self._unpacker.feed(data)
        except msgpack.BufferFull:
            self._failed("a reply is too long")

    def _failed(self, reason: str) -> FramingError:
        self._failure = FramingError("BAD_REQUEST", reason)
        self._buffer.clear()
        self._unpacker = self._walker = None
        return self._failure
