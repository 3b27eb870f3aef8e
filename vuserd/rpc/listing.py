"""Listings as the RPC sends them: packed in batches, so that a long one keeps nobody waiting."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import trio

from vuserd.rpc.caller import Caller
from vuserd.wire.codec import encode_array_response_head, encode_values

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
