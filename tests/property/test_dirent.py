"""Directories survive the way through an independent encoder, and broken ones are refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import MalformedError
from protocol.dirent import LONGEST_RECORD, DirectoryEntry, decode_directory
from protocol.fuse import Attributes, Entry, NodeId
from tests.listings import decode_by_columns

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
names = (
    (st.binary(min_size=1, max_size=255) | st.binary(min_size=4080, max_size=4095))
    .map(lambda name: name.translate(bytes.maketrans(b"/\0", b"-0")))
    .filter(lambda name: name not in (b".", b".."))
)


def any_attributes(raw: bytes) -> Attributes:
    """Make attributes of 88 bytes: all of them are what a file system may say."""
    quads = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, 48, 8)]
    words = [int.from_bytes(raw[at : at + 4], "little") for at in range(48, 88, 4)]
    return Attributes._make((*quads[:3], *(time - 2**63 for time in quads[3:]), *words))


attributes = st.binary(min_size=88, max_size=88).map(any_attributes)
nodes = st.builds(Entry, st.integers(1, 2**64 - 1).map(NodeId), attributes)
dots = st.builds(
    DirectoryEntry, st.sampled_from([b".", b".."]), u64, u64, st.integers(0, 15), st.none()
)


def entries(*, plus: bool) -> st.SearchStrategy[list[DirectoryEntry]]:
    node = st.none() | nodes if plus else st.none()
    found = st.builds(DirectoryEntry, names, u64, u64, st.integers(0, 15), node)
    return st.lists(found | dots, max_size=5)


def encode(directory: list[DirectoryEntry], *, plus: bool) -> bytes:
    """Write a reply as the backend does, field by field of fuse_direntplus and fuse_dirent."""
    reply = bytearray()
    for entry in directory:
        if plus:
            reply += encode_entry(entry.entry)
        reply += entry.ino.to_bytes(8, "little")
        reply += entry.offset.to_bytes(8, "little")
        reply += len(entry.name).to_bytes(4, "little")
        reply += entry.type.to_bytes(4, "little")
        reply += entry.name
        while len(reply) % 8:
            reply.append(0)
    return bytes(reply)


def encode_entry(entry: Entry | None) -> bytes:
    if entry is None:
        return bytes(128)
    head = entry.node.to_bytes(8, "little") + bytes(32)
    sizes, times, words = entry.attributes[:3], entry.attributes[3:6], entry.attributes[6:]
    return b"".join(
        (
            head,
            *(size.to_bytes(8, "little") for size in sizes),
            *(time.to_bytes(8, "little", signed=True) for time in times),
            *(word.to_bytes(4, "little") for word in words),
        )
    )


def decode_or_refuse(reply: bytes, *, plus: bool) -> tuple[list[DirectoryEntry], int | None] | None:
    """Decode; None if MalformedError came out. Any other exception fails the test."""
    try:
        found = decode_directory(reply, plus=plus)
    except MalformedError:
        with pytest.raises(MalformedError):
            decode_by_columns(reply, plus=plus)
        return None
    assert decode_by_columns(reply, plus=plus) == found
    return found


def assert_sound(found: tuple[list[DirectoryEntry], int | None]) -> None:
    """Check what has to hold for whatever comes out of the decoder."""
    for entry in found[0]:
        assert 1 <= len(entry.name) <= 4095
        assert b"/" not in entry.name
        assert b"\0" not in entry.name
        assert entry.name not in (b".", b"..")
        assert entry.entry is None or entry.entry.node > 0


@given(st.data(), st.booleans())
@settings(deadline=None)
def test_correct_directory_is_decoded_without_dot_and_dot_dot(
    data: st.DataObject, plus: bool
) -> None:
    directory = data.draw(entries(plus=plus))
    decoded = decode_or_refuse(encode(directory, plus=plus), plus=plus)
    assert decoded is not None
    found, following = decoded
    assert found == [entry for entry in directory if entry.name not in (b".", b"..")]
    assert following == (directory[-1].offset if directory else None)


@given(names, nodes)
@settings(deadline=None)
def test_no_record_is_longer_than_the_longest(name: bytes, node: Entry) -> None:
    record = encode([DirectoryEntry(name, 1, 1, 8, node)], plus=True)
    assert len(record) <= LONGEST_RECORD
    assert (len(record) == LONGEST_RECORD) is (len(name) > 4088)


@given(st.binary(max_size=600), st.booleans())
@settings(deadline=None)
def test_any_bytes_are_a_directory_or_refused(reply: bytes, plus: bool) -> None:
    found = decode_or_refuse(reply, plus=plus)
    if found is not None:
        assert_sound(found)


@given(st.data(), st.booleans())
@settings(deadline=None, max_examples=200)
def test_damaged_directory_is_a_directory_or_refused(data: st.DataObject, plus: bool) -> None:
    reply = bytearray(encode(data.draw(entries(plus=plus).filter(bool)), plus=plus))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(reply)))
        match data.draw(st.sampled_from(["change", "cut", "take out", "put in"])):
            case "change":
                reply[place : place + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del reply[place:]
            case "take out":
                del reply[place : place + data.draw(st.integers(1, 40))]
            case _:
                reply[place:place] = data.draw(st.binary(min_size=1, max_size=40))
    found = decode_or_refuse(bytes(reply), plus=plus)
    if found is not None:
        assert_sound(found)


@given(st.data(), st.booleans())
@settings(deadline=None)
def test_directory_cut_within_a_record_is_refused(data: st.DataObject, plus: bool) -> None:
    directory = data.draw(entries(plus=plus).filter(bool))
    before = encode(directory[:-1], plus=plus)
    reply = encode(directory, plus=plus)
    cut = data.draw(st.integers(len(before) + 1, len(reply) - 1))
    assert decode_or_refuse(reply[:cut], plus=plus) is None
