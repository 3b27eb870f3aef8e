"""Results on their way to replies: each kind makes its own reply, and counts what it gives."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Self

import trio

from vuserd.delivery.attached import Loaded
from vuserd.delivery.images import Fetched
from vuserd.delivery.inline import FileContent
from vuserd.errors import CallError, ErrorCode, FileError, VuserdError
from vuserd.rpc.caller import Caller
from vuserd.rpc.counters import ClientCounters
from vuserd.rpc.outbox import Reply
from vuserd.rpc.results.maps import Field, entry_maps, fetched_map
from vuserd.wire.bin_head import encode_bin_response_head
from vuserd.wire.codec import (
    encode_column,
    encode_list_head,
    encode_listing_response_head,
    encode_names,
    encode_response,
    encode_response_of,
    encode_values,
)

#: Values that are made and packed before others have their turn: a third of a millisecond's work.
#: For a client that is alone they are four times as many. With how many fields they come is known
#: after the first few entries.
_VALUES: Final = 4096
_ALONE: Final = 4
_FEW: Final = 256


class Listing(NamedTuple):
    """A result map whose ``entries`` are packed already, and the others are not.

    They are ``length`` maps, or in ``columns`` a map of so many lists.
    """

    length: int
    packed: list[bytes]
    columns: bool
    others: Mapping[str, Any] = MappingProxyType({})

    def beside(self, **others: Any) -> Self:
        """Return it with what else is in the result."""
        return self._replace(others=others)

    def pieces(self, msgid: int) -> list[bytes | memoryview]:
        """Return the response in pieces."""
        others, count = self.others, self.length
        head = encode_listing_response_head(msgid, others, "entries", count, is_map=self.columns)
        return [head, *self.packed]


async def pack_listing(
    caller: Caller,
    count: int,
    fields: Callable[[int, int], Iterable[Field]],
    *,
    columns: bool,
) -> Listing:
    """Pack a listing's entries: in columns, or a map each.

    Args:
        caller: takes a turn for each part of them.
        count: how many entries there are.
        fields: returns those of the entries from one place to before another.
        columns: whether they are wanted in columns.

    """
    maps: list[bytes] = []
    lists: dict[str, dict[int, bytes]] = {}
    sizes: dict[int, int] = {}
    begin, end = 0, min(count, _FEW)
    while True:
        part = [*fields(begin, end)]
        sizes[begin] = end - begin
        if columns:
            for name, values in part:
                lists.setdefault(name, {})[begin] = _encoded(values)
        else:
            maps.append(encode_values(entry_maps(part)))
        if end == count:
            break
        most = _VALUES * _ALONE if caller.is_alone() else _VALUES
        begin, end = end, min(count, end + most // len(part))
        await _let_others(caller)
    if not columns:
        return Listing(count, maps, columns)
    packed: list[bytes] = []
    for name, parts in lists.items():
        packed.append(encode_list_head(name, count))
        for begin, size in sizes.items():
            # What one part alone has, such as submounts, none of another part's entries is.
            packed.append(parts.get(begin) or encode_column([False] * size))
    return Listing(len(lists), packed, columns)


def _encoded(values: list[Any]) -> bytes:
    """Encode the values of a field: bytes are names."""
    if values and isinstance(values[0], bytes):
        return encode_names(values)
    return encode_column(values)


async def _let_others(caller: Caller) -> None:
    await trio.lowlevel.checkpoint()
    await caller.take_turn()


class Asked(NamedTuple):
    """What a reply has to know of its request."""

    msgid: int
    #: Bytes of the client's payload budget that are taken for the reply.
    reserved: int
    counters: ClientCounters
    #: An error as it goes to the client.
    show_error: Callable[[VuserdError], object]


#: How a method's result becomes a reply. It takes over what the result holds.
Answer = Callable[[Any, Asked], Reply]


class Encoded(NamedTuple):
    """A value as MessagePack says it, which several calls may share."""

    value: bytes


def value(result: Any, asked: Asked) -> Reply:
    """Reply with a value that MessagePack can say, or that is encoded already."""
    if isinstance(result, Encoded):
        return Reply([encode_response_of(asked.msgid, result.value)], payload=asked.reserved)
    return Reply([encode_response(asked.msgid, None, result)], payload=asked.reserved)


def content(result: FileContent, asked: Asked) -> Reply:
    """Reply with bytes of a file, from the buffers that the backend wrote them to."""
    asked.counters.count_read(result.length)
    head = encode_bin_response_head(asked.msgid, result.length)
    return Reply([head, *result.views()], content=result, payload=asked.reserved)


class Tree(NamedTuple):
    """A page of a tree: its index, encoded, and the bytes that it names."""

    head: bytes
    content: FileContent


def tree(result: Tree, asked: Asked) -> Reply:
    """Reply with a page of a tree; the bytes come from where the backend wrote them."""
    content = result.content
    asked.counters.count_read(content.length)
    head = encode_bin_response_head(asked.msgid, len(result.head) + content.length)
    return Reply([head + result.head, *content.views()], content=content, payload=asked.reserved)


def listing(result: Listing, asked: Asked) -> Reply:
    """Reply with entries that are packed already."""
    return Reply(result.pieces(asked.msgid), payload=asked.reserved)


def loaded(result: Loaded, asked: Asked) -> Reply:
    """Reply with how many bytes stand in the client's memory now."""
    asked.counters.count_loaded(result.length)
    return value(result._asdict(), asked)


def image(result: Fetched, asked: Asked) -> Reply:
    """Reply with a descriptor of an image.

    Raises:
        FileError: there is no descriptor to be had.

    """
    try:
        head = encode_response(asked.msgid, None, fetched_map(result))
        descriptor = result.image.reopen()
    except BaseException as error:
        result.image.give_back()
        if isinstance(error, OSError):
            raise FileError(
                error.errno or 0, f"no descriptor for the image: {error.strerror}"
            ) from error
        raise
    asked.counters.count_image(result.image.size)
    refusal = CallError(
        ErrorCode.BUSY, "clients have not received as many descriptors as may be under way"
    )
    instead = encode_response(asked.msgid, asked.show_error(refusal), None)
    return Reply([head], descriptor, result.image, instead=instead)
