"""The head of a response that carries a bin, apart from its payload, which lies elsewhere."""

import struct
from typing import Final, NamedTuple

import msgpack

from vuserd.wire.framing import NEED_DATA, NeedData

# It has the bytes that msgpack itself would write:
#
#     94 01 | msgid: 00..7f, or cc u8, cd u16, ce u32 | c0 | c4 u8, c5 u16 or c6 u32: the length
#
# All numbers are big-endian.  6 bytes at least, 13 at most.
BIN_HEAD_MAX: Final = 13

_UNSIGNED: Final = {1: struct.Struct(">B"), 2: struct.Struct(">H"), 4: struct.Struct(">I")}
_UINT_WIDTHS: Final = {0xCC: 1, 0xCD: 2, 0xCE: 4}
_BIN_WIDTHS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4}


class BinHead(NamedTuple):
    """The head of a response whose result is a bin: all that stands before the payload."""

    msgid: int
    head_size: int  #: bytes before the payload
    length: int  #: bytes of payload


def encode_bin_response_head(msgid: int, length: int) -> bytes:
    """Encode a successful response up to its payload, a bin of ``length`` bytes.

    The sender adds the payload from wherever it lies.
    """
    if not 0 <= length <= 0xFFFF_FFFF:
        raise ValueError(f"a bin cannot have {length} bytes")
    if length <= 0xFF:
        bin_head = struct.pack(">BB", 0xC4, length)
    elif length <= 0xFFFF:
        bin_head = struct.pack(">BH", 0xC5, length)
    else:
        bin_head = struct.pack(">BI", 0xC6, length)
    return b"".join((b"\x94\x01", msgpack.packb(msgid), b"\xc0", bin_head))


def parse_bin_response_head(view: bytes | bytearray | memoryview) -> BinHead | NeedData | None:
    """Return the head of a frame that begins as a successful response with a bin.

    None: the frame is something else, or another encoder wrote it longer than needed, which
    ``MessageDecoder`` still understands. NEED_DATA: too few bytes to decide.
    """
    size = len(view)
    if bytes(view[:2]) != b"\x94\x01"[:size]:
        return None
    if size < 3:
        return NEED_DATA
    msgid, position = view[2], 3
    if msgid > 0x7F:
        width = _UINT_WIDTHS.get(msgid)
        if width is None:
            return None
        position += width
        if size < position:
            return NEED_DATA
        msgid = _UNSIGNED[width].unpack_from(view, 3)[0]
    if size == position:
        return NEED_DATA
    if view[position] != 0xC0:
        return None
    position += 1
    if size == position:
        return NEED_DATA
    width = _BIN_WIDTHS.get(view[position])
    if width is None:
        return None
    position += 1
    if size < position + width:
        return NEED_DATA
    length = _UNSIGNED[width].unpack_from(view, position)[0]
    return BinHead(msgid, position + width, length)
