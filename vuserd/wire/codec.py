"""MessagePack-RPC, bytes in and values out: what both ends of the socket share.

A message is one MessagePack array (https://github.com/msgpack-rpc/msgpack-rpc/blob/master/spec.md)::

    request       [0, msgid, method, params]
    response      [1, msgid, error, result]
    notification  [2, method, params]

This module opens no socket and knows no method.  The peer can be wrong in two ways:

- :class:`FramingError`: where the next message begins is unknown, so the connection is lost.
- :class:`InvalidMessage`: MessagePack that is no RPC message; the next message follows it.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import msgpack

from vuserd.wire.framing import NEED_DATA, FrameCutter, FramingError, Limits, NeedData

__all__ = [
    "MSGID_MAX",
    "NEED_DATA",
    "FramingError",
    "InvalidMessage",
    "Limits",
    "Message",
    "MessageDecoder",
    "NeedData",
    "Notification",
    "Request",
    "Response",
    "decode_value",
    "encode_list_head",
    "encode_listing_response_head",
    "encode_names",
    "encode_notification",
    "encode_request",
    "encode_response",
    "encode_response_of",
    "encode_result",
    "name_bytes",
    "split_request",
    "to_message",
    "wire_name",
]

MSGID_MAX: Final = 2**32 - 1
REQUEST: Final = 0
RESPONSE: Final = 1
NOTIFICATION: Final = 2


# -- msgpack, which ships no types -----------------------------------------------------------------


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


#: Their buffers are made once, which costs more than most responses. They are one thread's.
_LISTS: Final[Any] = msgpack.Packer(use_bin_type=True)
_RESPONSES: Final[Any] = msgpack.Packer(use_bin_type=True, unicode_errors="backslashreplace")
#: Writes bytes as ``str``.
_STRINGS: Final[Any] = msgpack.Packer(use_bin_type=False)


def decode_value(frame: bytes | memoryview) -> Any:
    """Decode one whole MessagePack value; raise ValueError where msgpack refuses it."""
    return msgpack.unpackb(
        frame, raw=False, use_list=True, strict_map_key=True, unicode_errors="surrogateescape"
    )


# -- messages --------------------------------------------------------------------------------------


class Request(NamedTuple):
    """A call that wants an answer with the same ``msgid``."""

    msgid: int
    method: str
    params: list[Any]
    #: What stands behind its msgid, byte for byte; empty where it did not come the quick way.
    said: bytes = b""


class Response(NamedTuple):
    """The answer to request ``msgid``: ``error`` is nil, or it says why there is no ``result``."""

    msgid: int
    error: Any
    result: Any


class Notification(NamedTuple):
    """A call that wants no answer."""

    method: str
    params: list[Any]


class InvalidMessage(NamedTuple):
    """Well-formed MessagePack that is no RPC message.

    ``msgid`` is that of the request or response it was meant to be, None where that is unknown.
    """

    msgid: int | None
    reason: str


Message: TypeAlias = Request | Response | Notification | InvalidMessage


# -- names -----------------------------------------------------------------------------------------


def wire_name(name: bytes) -> str | bytes:
    """Return a file name as it goes over the wire: a ``str`` where it is UTF-8, else ``bytes``."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name


def name_bytes(value: object) -> bytes:
    """Return the bytes of a name that came over the wire as ``str`` or ``bin``.

    Raises TypeError for any other type, ValueError for a str that no bytes stand for (a surrogate
    that is no escape).
    """
    if isinstance(value, str):
        return value.encode(errors="surrogateescape")
    if isinstance(value, bytes):
        return value
    raise TypeError(f"a name is str or bin, not {type(value).__name__}")


# -- encoding --------------------------------------------------------------------------------------


def encode_request(msgid: int, method: str, params: list[Any]) -> bytes:
    """Encode ``[0, msgid, method, params]``."""
    return _pack([REQUEST, msgid, method, params])


def encode_notification(method: str, params: list[Any]) -> bytes:
    """Encode ``[2, method, params]``."""
    return _pack([NOTIFICATION, method, params])


def encode_response(msgid: int, error: object, result: object) -> bytes:
    """Encode ``[1, msgid, error, result]``.

    Text is for people: what UTF-8 cannot express (an escaped byte of a file name) is written as a
    backslash escape. Names that have to arrive unchanged go through :func:`wire_name`.
    """
    packed: bytes = _RESPONSES.pack((RESPONSE, msgid, error, result))
    return packed


def encode_result(result: object) -> bytes:
    """Encode a result as :func:`encode_response` does, for any number of responses."""
    packed: bytes = _RESPONSES.pack(result)
    return packed


def encode_response_of(msgid: int, result: bytes) -> bytes:
    """Encode ``[1, msgid, nil, result]``, of a result that is encoded already."""
    return b"".join((b"\x94\x01", _RESPONSES.pack(msgid), b"\xc0", result))


def encode_values(values: Iterable[object]) -> bytes:
    """Encode values one after the other, as contents of an array whose head comes before."""
    return _contents(_LISTS, [*values])


def _contents(packer: Any, values: list[Any]) -> bytes:
    packed: bytes = packer.pack(values)
    return packed[len(packer.pack_array_header(len(values))) :]


def encode_column(values: list[Any]) -> bytes:
    """Encode values of one type, as :func:`encode_values` does; faster if all are equal."""
    if values and values[0] == values[-1] and values.count(values[0]) == len(values):
        return _pack(values[0]) * len(values)
    return _contents(_LISTS, values)


def encode_names(names: list[bytes]) -> bytes:
    """Encode names as :func:`encode_values` does what :func:`wire_name` makes of each.

    Most often all of them are UTF-8, and are written as they are.
    """
    try:
        b"\0".join(names).decode()
    except UnicodeDecodeError:
        return encode_values(map(wire_name, names))
    return _contents(_STRINGS, names)


def encode_list_head(name: str, count: int) -> bytes:
    """Encode a map's key, and the head of its value: an array of ``count`` elements."""
    return b"".join((_LISTS.pack(name), _LISTS.pack_array_header(count)))


def encode_listing_response_head(
    msgid: int, others: Mapping[str, object], key: str, count: int, *, is_map: bool
) -> bytes:
    """Encode a successful response up to the contents of the last value of its map.

    That is an array of ``count`` elements, or a map of so many keys and their values, which the
    sender adds with :func:`encode_values`.
    """
    packer = msgpack.Packer(use_bin_type=True, autoreset=False)
    packer.pack_map_header(len(others) + 1)
    for name, value in others.items():
        packer.pack(name)
        packer.pack(value)
    packer.pack(key)
    if is_map:
        packer.pack_map_header(count)
    else:
        packer.pack_array_header(count)
    return b"".join((b"\x94\x01", _pack(msgid), b"\xc0", packer.bytes()))


# -- decoding --------------------------------------------------------------------------------------


#: Bytes that :func:`split_request` looks at: they cannot have more values than a message may.
PLAIN_MAX: Final = Limits().values
#: What a request begins with, and where its msgid ends, by the first byte of that if it is no
#: fixint (uint 8, 16 and 32 of the MessagePack specification).
_REQUEST_HEAD: Final = b"\x94\x00"
_FIXINTS: Final = 0x80
_MSGID_ENDS: Final = {0xCC: 4, 0xCD: 5, 0xCE: 7}
_SCALARS: Final = frozenset({str, bytes, int, float, bool, type(None)})


def split_request(stream: bytes) -> tuple[Request, bytes] | None:
    """Return the request that a stream begins with, and the bytes behind it, where that is quick.

    None: it begins with something else, or is not whole, or has more than scalars and flat maps for
    parameters; :class:`MessageDecoder` says which. Of all that this function returns, that class
    makes the same, but for ``said``, at some times the cost: the limits of :class:`Limits` hold for
    both, as long as a frame may have :data:`PLAIN_MAX` bytes and three levels.
    """
    if len(stream) > PLAIN_MAX:
        return None
    rest = b""
    try:
        value = decode_value(stream)
    except msgpack.ExtraData as more:
        value, rest = more.unpacked, more.extra
    except ValueError:
        return None
    if type(value) is not list or len(value) != 4:
        return None
    kind, msgid, method, params = value
    if type(kind) is not int or kind != REQUEST or not _is_msgid(msgid):
        return None
    if type(method) is not str or not method.isascii() or type(params) is not list:
        return None
    for param in params:
        if type(param) not in _SCALARS and (
            type(param) is not dict or not _SCALARS.issuperset(map(type, param.values()))
        ):
            return None
    said = b""
    if stream.startswith(_REQUEST_HEAD):
        first = stream[2]
        begin = 3 if first < _FIXINTS else _MSGID_ENDS.get(first, len(stream))
        said = stream[begin : len(stream) - len(rest)]
    return Request(msgid, method, params, said), rest


class MessageDecoder:
    """Cuts a stream of bytes into messages: :meth:`feed`, then :meth:`next_message` or iterate.

    It keeps the bytes that it has not yet returned as messages: less than one frame once it has
    returned NEED_DATA. After a :class:`FramingError` every further use raises that error again.
    """

    def __init__(self, limits: Limits = Limits()) -> None:  # noqa: B008 - it is immutable
        self._frames = FrameCutter(limits)

    @property
    def buffered(self) -> int:
        """How many bytes are kept; 0 at the end of a stream means that it ended cleanly."""
        return self._frames.buffered

    @property
    def values(self) -> int:
        """How many values the frames so far had: roughly the work that they took."""
        return self._frames.values

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add the next bytes of the stream."""
        self._frames.feed(data)

    def __iter__(self) -> Iterator[Message]:
        """Yield the messages that are complete; stop where more bytes are needed."""
        while (message := self.next_message()) is not NEED_DATA:
            yield message

    def next_message(self) -> Message | NeedData:
        """Return the next message, or NEED_DATA while its frame is incomplete."""
        frame = self._frames.next_frame()
        if frame is NEED_DATA:
            return NEED_DATA
        if frame.has_ext:
            return InvalidMessage(_salvage_msgid(frame.data), "extension types are not used here")
        try:
            value = decode_value(frame.data)
        except ValueError as error:
            return InvalidMessage(_salvage_msgid(frame.data), str(error))
        return to_message(value)


def _is_msgid(value: object) -> bool:
    return type(value) is int and 0 <= value <= MSGID_MAX  # a bool is an int, and no msgid


def to_message(value: object) -> Message:
    """Return a decoded value as a message."""
    if not isinstance(value, list) or not value:
        return InvalidMessage(None, "a message is an array")
    kind, size = value[0], len(value)
    if type(kind) is not int or kind not in (REQUEST, RESPONSE, NOTIFICATION):
        return InvalidMessage(None, "a message begins with 0, 1 or 2")
    if kind == NOTIFICATION:
        msgid = None
    else:
        msgid = value[1] if size > 1 else None
        if not _is_msgid(msgid):
            return InvalidMessage(None, f"a msgid is an integer from 0 to {MSGID_MAX}")
    expected = 3 if kind == NOTIFICATION else 4
    if size != expected:
        return InvalidMessage(msgid, f"this message has {expected} elements, not {size}")
    if kind == RESPONSE:
        return Response(*value[1:])
    method, params = _to_method(value[-2]), value[-1]
    if method is None:
        return InvalidMessage(msgid, "a method's name is a str in UTF-8")
    if not isinstance(params, list):
        return InvalidMessage(msgid, f"params are an array, not {type(params).__name__}")
    return Notification(method, params) if msgid is None else Request(msgid, method, params)


def _to_method(value: object) -> str | None:
    """Return a method's name, which older MessagePack writes as raw bytes."""
    try:
        return name_bytes(value).decode()
    except (TypeError, ValueError):
        return None


def _salvage_msgid(frame: bytes) -> int | None:
    """Return the msgid of a whole frame that cannot be decoded; None where it has none."""
    unpacker: Any = msgpack.Unpacker(max_buffer_size=len(frame))
    unpacker.feed(frame)
    try:
        size = unpacker.read_array_header()
        kind, msgid = unpacker.unpack(), unpacker.unpack()
    except (ValueError, msgpack.OutOfData):
        return None
    if size < 2 or type(kind) is not int or kind not in (REQUEST, RESPONSE):
        return None
    return msgid if _is_msgid(msgid) else None
