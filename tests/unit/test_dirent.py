"""Directory entries: bytes worked out by hand from struct fuse_dirent and fuse_direntplus."""

import sys
from typing import Protocol

import pytest

from protocol import MalformedError
from protocol.dirent import DIRENT_SIZE, LONGEST_RECORD, DirectoryEntry, decode_directory
from protocol.fuse import Attributes, Entry, NodeId
from tests.listings import decode_by_columns

pytestmark = pytest.mark.skipif(
    sys.byteorder != "little", reason="the expected bytes are those of a little-endian machine"
)

# ino | off | namelen | type (DT_DIR 4, DT_REG 8) | name, up to a multiple of 8
DOT = bytes.fromhex("1000000000000000 0100000000000000 01000000 04000000 2e00000000000000")
DOT_DOT = bytes.fromhex("0200000000000000 0200000000000000 02000000 04000000 2e2e000000000000")
IMAGE = bytes.fromhex("0b00000000000000 0300000000000000 05000000 08000000 496d616765000000")
EIGHT = bytes.fromhex("0c00000000000000 0700000000000000 08000000 04000000") + b"12345678"

# nodeid 0x0a0b | generation | two times of validity | their nanoseconds
# ino 11 | size 5 | blocks | atime, mtime, ctime | nanoseconds | mode 0100644 | nlink ... flags
ENTRY = bytes.fromhex(
    "0b0a000000000000 0000000000000000"
    "0000000000000000 0000000000000000 00000000 00000000"
    "0b00000000000000 0500000000000000 0800000000000000"
    "0100000000000000 0200000000000000 0300000000000000 04000000 05000000 06000000"
    "a4810000 01000000 00000000 00000000 00000000 00100000 00000000"
)
NO_ENTRY = bytes(128)

IMAGE_ATTRIBUTES = Attributes(
    ino=11,
    size=5,
    blocks=8,
    atime=1,
    mtime=2,
    ctime=3,
    atime_nsec=4,
    mtime_nsec=5,
    ctime_nsec=6,
    mode=0o100644,
    nlink=1,
    uid=0,
    gid=0,
    rdev=0,
    blksize=4096,
    flags=0,
)


class Decode(Protocol):
    def __call__(self, buffer: bytes, *, plus: bool) -> tuple[list[DirectoryEntry], int | None]:
        """Decode as :func:`protocol.dirent.decode_directory` does."""


@pytest.fixture(params=[decode_directory, decode_by_columns], ids=["plain", "columns"])
def decode(request: pytest.FixtureRequest) -> Decode:
    """Return each of the decoders, which have the same rules."""
    chosen: Decode = request.param
    return chosen


def record(name: bytes, offset: int, padding: int) -> bytes:
    """Lay out one record of READDIR: ino 1, type DT_REG."""
    return b"".join(
        (
            bytes.fromhex("0100000000000000"),
            offset.to_bytes(8, "little"),
            len(name).to_bytes(4, "little"),
            bytes.fromhex("08000000"),
            name,
            bytes(padding),
        )
    )


class TestPublishedNumbers:
    def test_entry_without_its_name_has_24_bytes(self) -> None:
        assert DIRENT_SIZE == 24

    def test_longest_record_is_an_entry_and_a_name_of_4095_padded(self) -> None:
        assert LONGEST_RECORD == 128 + 24 + 4096 == 4248


class TestReaddir:
    def test_end_of_the_directory_is_an_empty_reply(self, decode: Decode) -> None:
        assert decode(b"", plus=False) == ([], None)
        assert decode(b"", plus=True) == ([], None)

    def test_entries_without_dot_and_dot_dot_and_where_to_go_on(self, decode: Decode) -> None:
        entries, following = decode(DOT + DOT_DOT + IMAGE + EIGHT, plus=False)
        assert entries == [
            DirectoryEntry(b"Image", 11, 3, 8, None),
            DirectoryEntry(b"12345678", 12, 7, 4, None),
        ]
        assert following == 7

    def test_reply_of_dot_and_dot_dot_only_still_goes_on(self, decode: Decode) -> None:
        assert decode(DOT + DOT_DOT, plus=False) == ([], 2)

    def test_offsets_are_opaque_and_may_go_down(self, decode: Decode) -> None:
        record_down = record(b"a", 2**64 - 1, 7) + record(b"b", 0, 7)
        entries, following = decode(record_down, plus=False)
        assert [entry.offset for entry in entries] == [2**64 - 1, 0]
        assert following == 0

    @pytest.mark.parametrize(
        "reply",
        [
            pytest.param(IMAGE + record(b"b", 0, 7), id="an offset that stands"),
            pytest.param(record(b".", 0, 7), id="only a dot that leads nowhere"),
        ],
    )
    def test_directory_that_goes_on_where_it_began_is_the_readers_to_end(
        self, decode: Decode, reply: bytes
    ) -> None:
        assert decode(reply, plus=False)[1] == 0

    def test_same_name_twice_is_two_entries(self, decode: Decode) -> None:
        entries, _ = decode(IMAGE + IMAGE, plus=False)
        assert [entry.name for entry in entries] == [b"Image", b"Image"]

    @pytest.mark.parametrize(
        ("length", "padding"),
        [(1, 7), (7, 1), (8, 0), (9, 7), (255, 1), (256, 0), (300, 4), (4095, 1)],
    )
    def test_name_is_padded_to_a_multiple_of_8(
        self, decode: Decode, length: int, padding: int
    ) -> None:
        reply = record(b"x" * length, 1, padding) + record(b"y", 2, 7)
        entries, _ = decode(reply, plus=False)
        assert [entry.name for entry in entries] == [b"x" * length, b"y"]

    def test_numbers_have_no_sign(self, decode: Decode) -> None:
        # ino | off | namelen 1 | type
        head = bytes.fromhex("ffffffffffffffff ffffffffffffffff 01000000 ffffffff")
        entries, following = decode(head + b"a" + bytes(7), plus=False)
        assert entries == [DirectoryEntry(b"a", 2**64 - 1, 2**64 - 1, 2**32 - 1, None)]
        assert following == 2**64 - 1

    def test_name_is_bytes_of_any_kind(self, decode: Decode) -> None:
        entries, _ = decode(record(b"\xff...\n", 1, 3), plus=False)
        assert entries[0].name == b"\xff...\n"


class TestReaddirplus:
    def test_entry_has_its_node(self, decode: Decode) -> None:
        entries, following = decode(NO_ENTRY + DOT + NO_ENTRY + DOT_DOT + ENTRY + IMAGE, plus=True)
        node = Entry(NodeId(0x0A0B), IMAGE_ATTRIBUTES)
        assert entries == [DirectoryEntry(b"Image", 11, 3, 8, node)]
        assert following == 3

    def test_entry_whose_lookup_failed_has_no_node(self, decode: Decode) -> None:
        entries, _ = decode(NO_ENTRY + IMAGE, plus=True)
        assert entries == [DirectoryEntry(b"Image", 11, 3, 8, None)]

    def test_entry_may_be_the_root(self, decode: Decode) -> None:
        root = bytes.fromhex("0100000000000000") + ENTRY[8:]
        entries, _ = decode(root + IMAGE, plus=True)
        assert [entry.entry for entry in entries] == [Entry(NodeId(1), IMAGE_ATTRIBUTES)]

    def test_entry_may_be_of_no_type(self, decode: Decode) -> None:
        odd = ENTRY[:100] + bytes(4) + ENTRY[104:]
        entries, _ = decode(odd + IMAGE, plus=True)
        assert [entry.entry for entry in entries] == [
            Entry(NodeId(0x0A0B), IMAGE_ATTRIBUTES._replace(mode=0))
        ]


class TestMalformedDirectories:
    @pytest.mark.parametrize(
        ("reply", "complaint"),
        [
            pytest.param(IMAGE[:1], "1 bytes left", id="one byte"),
            pytest.param(IMAGE[:23], "23 bytes left", id="less than a record's head"),
            pytest.param(IMAGE + bytes(8), "^8 bytes left", id="a tail too short for a record"),
            pytest.param(
                record(b"123456789", 1, 7) + bytes(8), "^8 bytes left", id="the same after 40 bytes"
            ),
            pytest.param(IMAGE[:24], "leaves its buffer", id="a head without its name"),
            pytest.param(IMAGE[:29], "leaves its buffer", id="a name without its padding"),
            pytest.param(IMAGE[:31], "leaves its buffer", id="a byte of padding missing"),
            pytest.param(record(b"", 1, 0), "a name of 0 bytes", id="an empty name"),
            pytest.param(record(b"x" * 4096, 1, 0), "a name of 4096 bytes", id="a name of 4096"),
            pytest.param(
                IMAGE[:16] + bytes.fromhex("ffffffff 08000000") + IMAGE[24:],
                "a name of 4294967295 bytes",
                id="a length of all ones",
            ),
            pytest.param(record(b"a/b", 1, 5), "no directory can hold", id="a slash"),
            pytest.param(record(b"/", 1, 7), "no directory can hold", id="nothing but a slash"),
            pytest.param(record(b"a\0b", 1, 5), "no directory can hold", id="a NUL"),
        ],
    )
    def test_reply_to_readdir_is_refused(
        self, decode: Decode, reply: bytes, complaint: str
    ) -> None:
        with pytest.raises(MalformedError, match=complaint):
            decode(reply, plus=False)

    @pytest.mark.parametrize(
        ("reply", "complaint"),
        [
            pytest.param(IMAGE, "32 bytes left", id="a record without its entry"),
            pytest.param((ENTRY + IMAGE)[:151], "151 bytes left", id="less than both heads"),
            pytest.param((ENTRY + IMAGE)[:159], "leaves its buffer", id="a byte missing"),
            pytest.param(ENTRY + DOT, r"a node for '\.'", id="a node for dot"),
            pytest.param(ENTRY + DOT_DOT, r"a node for '\.\.'", id="a node for dot dot"),
        ],
    )
    def test_reply_to_readdirplus_is_refused(
        self, decode: Decode, reply: bytes, complaint: str
    ) -> None:
        with pytest.raises(MalformedError, match=complaint):
            decode(reply, plus=True)
