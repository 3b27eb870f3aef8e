"""Results on their way to replies: each kind makes its own reply, and counts what it gives."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import trio

from vuserd.delivery.attached import Loaded
from vuserd.delivery.images import Fetched
from vuserd.delivery.inline import FileContent
from vuserd.errors import CallError, ErrorCode, FileError
from vuserd.rpc.caller import Caller
from vuserd.rpc.counters import ClientCounters
from vuserd.rpc.maps import fetched_map
from vuserd.rpc.outbox import Reply
from vuserd.wire.codec import (
    encode_array_response_head,
    encode_bin_response_head,
    encode_response,
    encode_values,
)

#: Entries that are packed before others have their turn: half a millisecond's work.
_BATCH: Final = 128

Entry = TypeVar("Entry")


class Listing(NamedTuple):
    """A result map whose ``entries`` are packed already, and the others are not."""

    length: int
    packed: list[bytes]
    others: Mapping[str, Any]

    def pieces(self, msgid: int) -> list[bytes | memoryview]:
        """Return the response in pieces."""
        head = encode_array_response_head(msgid, self.others, "entries", self.length)
        return [head, *self.packed]


async def pack_listing(
    caller: Caller,
    entries: Sequence[Entry],
    shown: Callable[[Entry], dict[str, Any]],
    **others: Any,
) -> Listing:
    """Pack what ``shown`` makes of each entry, to be sent beside ``others``."""
    packed = []
    for begin in range(0, len(entries), _BATCH):
        if begin:
            await trio.lowlevel.checkpoint()
            await caller.take_turn()
        packed.append(encode_values(map(shown, entries[begin : begin + _BATCH])))
    return Listing(len(entries), packed, others)


class Asked(NamedTuple):
    """What a reply has to know of its request."""

    msgid: int
    #: Bytes of the client's payload budget that are taken for the reply.
    reserved: int
    counters: ClientCounters


#: How a method's result becomes a reply. It takes over what the result holds.
Answer = Callable[[Any, Asked], Reply]


def value(result: Any, asked: Asked) -> Reply:
    """Reply with a value that MessagePack can say."""
    return Reply([encode_response(asked.msgid, None, result)], payload=asked.reserved)


def content(result: FileContent, asked: Asked) -> Reply:
    """Reply with bytes of a file, from the buffers that the backend wrote them to."""
    asked.counters.count_read(result.length)
    head = encode_bin_response_head(asked.msgid, result.length)
    return Reply([head, *result.views()], content=result, payload=asked.reserved)


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
    instead = encode_response(asked.msgid, refusal.to_wire(), None)
    return Reply([head], descriptor, result.image, instead=instead)
