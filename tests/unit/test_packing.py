"""Listings are packed in steps, between which others have their turn."""

from typing import Any, cast

import pytest

from vuserd.rpc.caller import Caller
from vuserd.rpc.results.answers import pack_listing
from vuserd.wire.codec import encode_response


class Turns:
    """A caller, as far as packing knows it."""

    def __init__(self, *, is_alone: bool = False) -> None:
        self.taken = 0
        self._is_alone = is_alone

    def is_alone(self) -> bool:
        return self._is_alone

    async def take_turn(self) -> None:
        self.taken += 1


@pytest.mark.parametrize(
    ("count", "is_alone", "fewest", "most"),
    [(0, False, 0, 0), (10, False, 0, 0), (10_000, False, 3, 20), (10_000, True, 1, 5)],
)
@pytest.mark.parametrize("columns", [False, True])
async def test_a_long_page_lets_others_have_their_turn(
    count: int, is_alone: bool, fewest: int, most: int, columns: bool
) -> None:
    names = [str(number) for number in range(count)]
    others: dict[str, list[Any]] = {"type": ["file"] * count, "ino": [*range(count)]}
    fields = {"name": names} | others
    given = {"name": [name.encode() for name in names]} | others
    turns = Turns(is_alone=is_alone)

    def part(begin: int, end: int) -> list[tuple[str, list[Any]]]:
        return [(name, values[begin:end]) for name, values in given.items()]

    listing = await pack_listing(cast("Caller", turns), count, part, columns=columns)
    maps = [dict(zip(fields, row, strict=True)) for row in zip(*fields.values(), strict=True)]
    result = {"next": None, "entries": fields if columns else maps}
    assert b"".join(listing.beside(next=None).pieces(7)) == encode_response(7, None, result)
    assert fewest <= turns.taken <= most


@pytest.mark.parametrize("special", [0, 9_999])
async def test_a_field_that_some_entries_alone_have(special: int) -> None:
    """As submounts: what has none of them is not to lack the column's values."""
    count = 10_000
    mounts = [place == special for place in range(count)]
    fields: dict[str, list[Any]] = {"name": [b"x"] * count, "submount": mounts}

    def part(begin: int, end: int) -> list[tuple[str, list[Any]]]:
        some = {name: values[begin:end] for name, values in fields.items()}
        return [(name, values) for name, values in some.items() if any(values)]

    listing = await pack_listing(cast("Caller", Turns()), count, part, columns=True)
    result = {"next": None, "entries": fields | {"name": ["x"] * count}}
    assert b"".join(listing.beside(next=None).pieces(7)) == encode_response(7, None, result)
