"""Columns of directory entries, and of their nodes' attributes."""

import struct

import pytest

from protocol import MalformedError
from protocol.dirent_columns import (
    AttributeColumns,
    DirectoryColumns,
    decode_directories,
    decode_directory_columns,
    offset_after,
)
from protocol.fuse import Attributes, NodeId

#: Sixteen values that differ, those of times negative.
FIRST = Attributes(1, 2, 3, -4, -5, -6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)
SECOND = Attributes(*(100 * value for value in FIRST))
LARGEST = Attributes(*[2**64 - 1] * 3, *[2**63 - 1] * 3, *[2**32 - 1] * 10)


def encoded(attributes: Attributes) -> bytes:
    """Write struct fuse_attr."""
    return struct.pack("=QQQqqqIIIIIIIIII", *attributes)


def columns(*names: bytes, plus: bool = True) -> DirectoryColumns:
    """Make columns in which each value tells its column and its entry."""
    numbers = range(1, len(names) + 1)
    return DirectoryColumns(
        list(names),
        [10 + number for number in numbers],
        [20 + number for number in numbers],
        [NodeId(40 + number) for number in numbers] if plus else [],
        [b"%088d" % number for number in numbers] if plus else [],
    )


class TestAttributes:
    def test_each_field_of_all_in_order(self) -> None:
        found = AttributeColumns(map(encoded, (FIRST, SECOND, LARGEST)))
        for field in Attributes._fields:
            assert found.column(field) == [
                getattr(attributes, field) for attributes in (FIRST, SECOND, LARGEST)
            ]

    def test_fields_of_none(self) -> None:
        assert {*map(len, map(AttributeColumns([]).column, Attributes._fields))} == {0}

    def test_one_entrys_alone(self) -> None:
        found = columns(b"a", b"b")._replace(attributes=[encoded(FIRST), encoded(SECOND)])
        assert found.node_attributes(1) == SECOND


class TestColumns:
    def test_empty_ones_have_no_entries(self) -> None:
        assert DirectoryColumns.empty() == ([], [], [], [], [])

    def test_others_come_behind(self) -> None:
        found = columns(b"a")
        found.extend(columns(b"b", b"c"))
        assert found.names == [b"a", b"b", b"c"]
        assert found.inos == [11, 11, 12]
        assert found.types == [21, 21, 22]
        assert found.nodes == [41, 41, 42]
        assert [int(attributes) for attributes in found.attributes] == [1, 1, 2]

    def test_part_has_the_same_places_of_each(self) -> None:
        found = columns(b"a", b"b", b"c").part(1, 3)
        assert found.names == [b"b", b"c"]
        assert found.inos == [12, 13]
        assert found.types == [22, 23]
        assert found.nodes == [42, 43]
        assert [int(attributes) for attributes in found.attributes] == [2, 3]

    def test_chosen_ones_have_the_same_places_of_each(self) -> None:
        found = columns(b"a", b"b", b"c").chosen([True, False, True])
        assert found.names == [b"a", b"c"]
        assert found.inos == [11, 13]
        assert found.types == [21, 23]
        assert found.nodes == [41, 43]
        assert [int(attributes) for attributes in found.attributes] == [1, 3]

    def test_columns_without_nodes_stay_so(self) -> None:
        found = columns(b"a", b"b", plus=False)
        for made in (found.part(0, 1), found.chosen([True, False])):
            assert made == ([b"a"], [11], [21], [], [])

    @pytest.mark.parametrize("plus", [True, False])
    def test_entries_without_nodes_are_as_after_failed_lookups(self, *, plus: bool) -> None:
        found = columns(b"a", b"b", plus=plus).without_nodes()
        assert found[:3] == columns(b"a", b"b")[:3]
        assert found.nodes == [0, 0]
        assert found.attributes == [bytes(88), bytes(88)]


def reply(*names: bytes, first: int = 1) -> bytes:
    """Write a reply to READDIRPLUS, whose numbers count up from the first one."""
    return b"".join(
        struct.pack("=Q32x88sQQII", 40 + number, b"%088d" % number, number, number, len(name), 8)
        + name
        + bytes(-len(name) % 8)
        for number, name in enumerate(names, first)
    )


class TestOffsets:
    """Where a directory goes on after some entries of a reply; of each, tests/listings.py asks."""

    DOT, DOT_DOT = (bytes(128) + reply(name, first=7)[128:] for name in (b".", b".."))

    @pytest.mark.parametrize(("count", "offset"), [(1, 1), (2, 2), (3, 3)])
    def test_one_entrys_is_where_what_follows_it_begins(self, count: int, offset: int) -> None:
        three = reply(b"a", b"b" * 8, b"c" * 4095)
        assert offset_after(three, count, plus=True) == offset

    def test_dot_and_dot_dot_do_not_count(self) -> None:
        others = reply(b"...", b".12345678", b"b", first=2)
        mixed = self.DOT + reply(b"a") + self.DOT_DOT + others
        assert [offset_after(mixed, count, plus=True) for count in (1, 2, 3, 4)] == [1, 2, 3, 4]

    def test_what_is_behind_is_not_looked_at(self) -> None:
        assert offset_after(reply(b"a") + b"x", 1, plus=True) == 1


class TestDirectories:
    def test_all_at_once_have_what_each_has(self) -> None:
        replies = [reply(b"a", b"b"), reply(b"c", first=3), b"", reply(b"d" * 17, first=4)]
        entries, ends, offsets = decode_directories(replies)
        assert ends == [2, 3, 3, 4]
        assert offsets == [2, 3, 0, 4]
        begin = 0
        for one, end in zip(replies, ends, strict=True):
            assert decode_directory_columns(one, plus=True)[0] == entries.part(begin, end)
            begin = end

    def test_dot_and_dot_dot_are_of_no_directory(self) -> None:
        dots = b"".join(bytes(128) + reply(name)[128:] for name in (b".", b".."))
        entries, ends, offsets = decode_directories([dots, dots + reply(b"...", first=7)])
        assert entries.names == [b"..."]
        assert (ends, offsets) == ([0, 1], [1, 7])

    def test_none(self) -> None:
        assert decode_directories([]) == (DirectoryColumns.empty(), [], [])

    @pytest.mark.parametrize("name", [b"", b"a/b", b"a\0b", b"/", b"\0"])
    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_one_impossible_name_among_them(self, name: bytes, place: int) -> None:
        replies = [reply(b"a"), reply(b"b"), reply(b"c")]
        replies[place] = reply(name)
        with pytest.raises(MalformedError):
            decode_directories(replies)

    @pytest.mark.parametrize(
        ("broken", "complaint"),
        [
            pytest.param(reply(b"x" * 4096), "a name of 4096 bytes", id="a name too long"),
            pytest.param(reply(b"a", b"b") + bytes(8), "^8 bytes left", id="a tail too short"),
            pytest.param(reply(b"a") + bytes(40), "^40 bytes left", id="a longer tail"),
        ],
    )
    def test_refusal_says_what_is_wrong(self, broken: bytes, complaint: str) -> None:
        with pytest.raises(MalformedError, match=complaint):
            decode_directories([reply(b"a"), broken])

    def test_one_that_leaves_its_buffer_takes_nothing_of_the_next(self) -> None:
        with pytest.raises(MalformedError):
            decode_directories([reply(b"abcdefghi")[:-8], reply(b"a")])
