"""The daemon's replies, cut from the stream by msgpack itself.

A server walks each frame first, because it must not make objects of what may be an attack; a client
that did so in Python would spend more time on a long listing than the daemon does.
"""

from typing import Any, Final

import msgpack

from vuserd.rpc.codec import (
    BIN_HEAD_MAX,
    NEED_DATA,
    BinHead,
    FramingError,
    Message,
    NeedData,
    parse_bin_response_head,
    to_message,
)

#: The most bytes of one reply that is no payload.
_LONGEST: Final = 64 << 20
_READ_SIZE: Final = 4096


class ReplyDecoder:
    """Does what :class:`~vuserd.rpc.codec.MessageDecoder` does, for replies of a daemon."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        # All of the buffer is in it, or it is None; what it has given out is its tell().
        self._unpacker: Any = None
        self._told = 0
        self._failure: FramingError | None = None

    @property
    def buffered(self) -> int:
        """How many bytes wait inside."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the stream."""
        self._buffer += data
        if self._unpacker is not None:
            self._give(data)

    def next_message(self) -> Message | NeedData:
        """Give the next message, or NEED_DATA where no whole one is there.

        Raises:
            FramingError: now and from here on: it is not MessagePack, or too long.

        """
        if self._failure is not None:
            raise self._failure
        if not self._buffer:
            return NEED_DATA
        if self._unpacker is None:
            self._unpacker = msgpack.Unpacker(
                read_size=_READ_SIZE,
                max_buffer_size=_LONGEST,
                raw=False,
                strict_map_key=True,
                unicode_errors="surrogateescape",
            )
            self._told = 0
            self._give(self._buffer)
        try:
            value = self._unpacker.unpack()
        except msgpack.OutOfData:
            return NEED_DATA
        except ValueError as error:
            raise self._failed(f"not MessagePack: {error or type(error).__name__}") from None
        told = self._unpacker.tell()
        del self._buffer[: told - self._told]
        self._told = told
        return to_message(value)

    def peek_bin_response_head(self) -> BinHead | NeedData | None:
        """Tell whether the next message is a response that carries a bin."""
        return parse_bin_response_head(self._buffer[:BIN_HEAD_MAX])

    def take(self, size: int) -> bytes:
        """Remove ``size`` bytes, or as many as there are; what follows them begins a message."""
        with memoryview(self._buffer) as view:
            taken = bytes(view[:size])
        del self._buffer[:size]
        self._unpacker = None
        return taken

    def _give(self, data: bytes | bytearray | memoryview) -> None:
        try:
            self._unpacker.feed(data)
        except msgpack.BufferFull:
            self._failed("a reply is too long")

    def _failed(self, reason: str) -> FramingError:
        self._failure = FramingError("BAD_REQUEST", reason)
        self._buffer.clear()
        self._unpacker = None
        return self._failure
