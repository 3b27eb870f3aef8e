"""Cut a stream into MessagePack values, within limits, before any of them is decoded.

The first byte of a MessagePack value tells its size, or how wide the length or count is that
follows it (https://github.com/msgpack/msgpack/blob/master/spec.md).  :class:`FrameCutter` walks
from head to head and so knows a frame's size, depth and number of values before it makes a single
object.  It does not know what a frame means, and looks at no payload.
"""

import struct
from enum import Enum
from typing import Final, NamedTuple, TypeAlias


class _NeedData(Enum):
    NEED_DATA = "NEED_DATA"


#: Stands for "the bytes so far do not decide it"; compare with ``is``.
NEED_DATA: Final = _NeedData.NEED_DATA
NeedData: TypeAlias = _NeedData


class FramingError(Exception):
    """The stream can no longer be cut into messages; ``code`` is BAD_REQUEST or TOO_LARGE."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class Limits(NamedTuple):
    """The limits of one frame. The defaults are those for requests, that is for a server."""

    frame_bytes: int = 1 << 20
    depth: int = 16  #: containers inside each other, the message's own array being the first
    #: MessagePack values in a frame: bounds the objects and the time that decoding takes.
    values: int = 1024


class Frame(NamedTuple):
    """One whole MessagePack value; ``has_ext`` says whether it has an extension type anywhere."""

    data: bytes
    has_ext: bool


def _fixed_sizes() -> tuple[int, ...]:
    """Return, for each first byte, the size of the value if that byte alone decides it, else 0."""
    sizes = [0] * 256
    sizes[0x00:0x80] = [1] * 0x80  # positive fixint
    sizes[0xE0:0x100] = [1] * 0x20  # negative fixint
    sizes[0xA0:0xC0] = range(1, 0x21)  # fixstr
    sizes[0xC0] = sizes[0xC2] = sizes[0xC3] = 1  # nil, false, true
    sizes[0xCA], sizes[0xCB] = 5, 9  # float 32, float 64
    sizes[0xCC:0xD0] = sizes[0xD0:0xD4] = [2, 3, 5, 9]  # uint 8 to 64, int 8 to 64
    return tuple(sizes)


_FIXED_SIZES: Final = _fixed_sizes()
#: First byte -> width of the length that follows it, bytes between that length and the payload.
_SIZED: Final = {
    0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0),  # bin
    0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0),  # str
    0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1),  # ext
}  # fmt: skip
#: First byte -> width of the count that follows it, values for each count.
_CONTAINERS: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
_FIXEXT_SIZES: Final = {0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18}
_UNSIGNED: Final = {1: struct.Struct(">B"), 2: struct.Struct(">H"), 4: struct.Struct(">I")}
_RESERVED: Final = 0xC1


class FrameCutter:
    """Cuts a stream of bytes into frames: :meth:`feed`, then :meth:`next_frame` until NEED_DATA.

    A frame over a limit is refused at the head that exceeds it, which may be long before its end
    has arrived.  After a :class:`FramingError` every further use raises that error again.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        #: How many values the frames so far had: roughly the work that they took.
        self.values = 0
        self._buffer = bytearray()  # begins where a frame begins
        #: Code and message of the failure. The error itself would keep its traceback alive, and
        #: with it the buffers of the caller.
        self._failure: tuple[str, str] | None = None
        self._begin_frame()

    def _begin_frame(self) -> None:
        self._position = 0  # of the first value not yet walked over
        self._missing = 1  # values still to come in the innermost open container
        self._outer: list[int] = []  # the same for the containers around it
        self._values = 1
        self._has_ext = False

    @property
    def buffered(self) -> int:
        """How many bytes are kept."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add the next bytes of the stream."""
        self._check_failure()
        self._buffer += data

    def next_frame(self) -> Frame | NeedData:
        """Return the next frame, or NEED_DATA while it is incomplete."""
        self._check_failure()
        try:
            complete = self._walk()
        except FramingError as error:
            self._failure = (error.code, str(error))
            self._buffer.clear()
            raise
        if not complete:
            return NEED_DATA
        has_ext = self._has_ext
        self.values += self._values
        return Frame(self.take(self._position), has_ext)

    def take(self, size: int) -> bytes:
        """Remove and return up to ``size`` bytes; what follows them must begin a frame."""
        with memoryview(self._buffer) as view:
            taken = bytes(view[:size])
        del self._buffer[:size]
        self._begin_frame()
        return taken

    def _check_failure(self) -> None:
        if self._failure is not None:
            raise FramingError(*self._failure)

    def _walk(self) -> bool:
        """Walk from head to head; return whether the frame is whole: it ends at ``_position``."""
        buffer, end = self._buffer, len(self._buffer)
        position, missing, outer = self._position, self._missing, self._outer
        while missing or outer:
            if not missing:
                missing = outer.pop()
                continue
            if position >= end:
                break
            head = buffer[position]
            if size := _FIXED_SIZES[head] or self._sized_value(head, position):
                position += size
                missing -= 1
                continue
            if 0x80 <= head <= 0x9F:  # fixmap, fixarray
                position += 1
                count = (head & 0x0F) * (2 if head < 0x90 else 1)
            else:
                width, each = _CONTAINERS.get(head, (0, 0))
                if not width or end - position <= width:
                    break
                count = _UNSIGNED[width].unpack_from(buffer, position + 1)[0] * each
                position += 1 + width
            outer.append(missing - 1)
            missing = count
            self._check_container(count)
            self._check_size(position + count)  # no value is shorter than a byte
        self._position, self._missing = position, missing
        self._check_size(position)
        return not missing and not outer and position <= end

    def _sized_value(self, head: int, position: int) -> int:
        """Return the size of a str, bin or ext; 0 for a container or an incomplete length."""
        if head == _RESERVED:
            raise FramingError("BAD_REQUEST", "not MessagePack: a value begins with 0xc1")
        if head in _FIXEXT_SIZES:
            self._has_ext = True
            return _FIXEXT_SIZES[head]
        width, extra = _SIZED.get(head, (0, 0))
        if not width or len(self._buffer) - position <= width:
            return 0
        if extra:
            self._has_ext = True
        length: int = _UNSIGNED[width].unpack_from(self._buffer, position + 1)[0]
        return 1 + width + extra + length

    def _check_container(self, count: int) -> None:
        self._values += count
        if self._values > self._limits.values:
            limit = f"{self._limits.values} values"
        elif len(self._outer) > self._limits.depth:
            limit = f"{self._limits.depth} levels"
        else:
            return
        raise FramingError("TOO_LARGE", f"a message may have {limit} at most")

    def _check_size(self, size: int) -> None:
        if size > self._limits.frame_bytes:
            limit = f"{self._limits.frame_bytes} bytes"
            raise FramingError("TOO_LARGE", f"a message may have {limit} at most")
