"""Columns of directory entries, and of their nodes' attributes."""

import struct

from protocol.dirent_columns import AttributeColumns, DirectoryColumns
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
        [30 + number for number in numbers],
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
        assert DirectoryColumns.empty() == ([], [], [], [], [], [])

    def test_others_come_behind(self) -> None:
        found = columns(b"a")
        found.extend(columns(b"b", b"c"))
        assert found.names == [b"a", b"b", b"c"]
        assert found.inos == [11, 11, 12]
        assert found.types == [21, 21, 22]
        assert found.offsets == [31, 31, 32]
        assert found.nodes == [41, 41, 42]
        assert [int(attributes) for attributes in found.attributes] == [1, 1, 2]

    def test_part_has_the_same_places_of_each(self) -> None:
        found = columns(b"a", b"b", b"c").part(1, 3)
        assert found.names == [b"b", b"c"]
        assert found.inos == [12, 13]
        assert found.types == [22, 23]
        assert found.offsets == [32, 33]
        assert found.nodes == [42, 43]
        assert [int(attributes) for attributes in found.attributes] == [2, 3]

    def test_chosen_ones_have_the_same_places_of_each(self) -> None:
        found = columns(b"a", b"b", b"c").chosen([True, False, True])
        assert found.names == [b"a", b"c"]
        assert found.inos == [11, 13]
        assert found.types == [21, 23]
        assert found.offsets == [31, 33]
        assert found.nodes == [41, 43]
        assert [int(attributes) for attributes in found.attributes] == [1, 3]

    def test_columns_without_nodes_stay_so(self) -> None:
        found = columns(b"a", b"b", plus=False)
        for made in (found.part(0, 1), found.chosen([True, False])):
            assert made == ([b"a"], [11], [21], [31], [], [])
