"""Whatever a backend writes as a FUSE reply is a value or MalformedError."""

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import MalformedError, fuse
from protocol.fuse import Attributes, Credentials, FileHandle, Forget, NodeId, Request

VERSION = bytes.fromhex("07000000 26000000")  # 7.38

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
nodes = u64.map(NodeId)
forgettable = st.integers(2, 2**64 - 1).map(NodeId)
handles = u64.map(FileHandle)
names = (
    (st.binary(min_size=1, max_size=255) | st.binary(min_size=4080, max_size=4095))
    .map(lambda name: name.translate(bytes.maketrans(b"/\0", b"-0")))
    .filter(lambda name: name not in (b".", b".."))
)
forgets = st.builds(Forget, forgettable, st.integers(1, 2**64 - 1))

requests = st.one_of(
    st.builds(fuse.lookup, nodes, names),
    st.builds(fuse.batch_forget, st.lists(forgets, max_size=20)),
    st.builds(fuse.getattr, nodes, st.none() | handles),
    st.builds(fuse.readlink, nodes),
    st.builds(fuse.open, nodes, u32),
    st.builds(fuse.opendir, nodes),
    st.builds(fuse.read, nodes, handles, u64, u32),
    st.builds(fuse.readdir, nodes, handles, u64, u32),
    st.builds(fuse.readdirplus, nodes, handles, u64, u32),
    st.builds(fuse.release, nodes, handles),
    st.builds(fuse.releasedir, nodes, handles),
    st.builds(fuse.lseek, nodes, handles, u64, st.sampled_from(fuse.Whence)),
    st.builds(fuse.statfs, nodes),
    st.builds(fuse.interrupt, u64),
    st.builds(fuse.init, u64.map(fuse.InitFlag), u32),
)


def bytes_about(size: int) -> st.SearchStrategy[bytes]:
    """Any bytes at all, half of them of the size that belongs."""
    return st.binary(max_size=2 * size + 2) | st.binary(min_size=size, max_size=size)


def returns_or_refuses(decode: Callable[[bytes], object], body: bytes) -> object:
    """Decode; None if MalformedError came out. Any other exception fails the test."""
    try:
        return decode(body)
    except MalformedError:
        return None


def attributes_in(body: bytes) -> Attributes:
    """Take struct fuse_attr apart field by field: whatever is there is passed on."""
    fields = [int.from_bytes(body[at : at + 8], "little") for at in range(0, 24, 8)]
    fields += [int.from_bytes(body[at : at + 8], "little", signed=True) for at in range(24, 48, 8)]
    fields += [int.from_bytes(body[at : at + 4], "little") for at in range(48, 88, 4)]
    return Attributes._make(fields)


class TestReplyHeader:
    @given(bytes_about(16), u64, u32)
    @settings(deadline=None)
    def test_any_header_is_an_errno_or_refused(self, header: bytes, unique: int, used: int) -> None:
        errno = returns_or_refuses(
            lambda header: fuse.decode_reply_header(header, unique, used), header
        )
        assert errno is None or errno in range(4096)

    @given(u64, st.integers(16, 2**32 - 1), st.integers(-(2**31), 2**31 - 1))
    @settings(deadline=None)
    def test_header_is_accepted_when_all_of_it_is_right(
        self, unique: int, used: int, error: int
    ) -> None:
        header = b"".join(
            (
                used.to_bytes(4, "little"),
                error.to_bytes(4, "little", signed=True),
                unique.to_bytes(8, "little"),
            )
        )
        errno = returns_or_refuses(
            lambda header: fuse.decode_reply_header(header, unique, used), header
        )
        right = error == 0 or (-4096 < error < 0 and used == 16)
        assert errno == (-error if right else None)

    @given(u64, st.sampled_from([0, 1, 2, -1, 1 << 32, 1 << 63]))
    @settings(deadline=None)
    def test_reply_to_another_request_is_never_taken(self, unique: int, change: int) -> None:
        other = (unique ^ change) % 2**64
        header = bytes.fromhex("10000000 00000000") + other.to_bytes(8, "little")
        errno = returns_or_refuses(
            lambda header: fuse.decode_reply_header(header, unique, 16), header
        )
        assert (errno == 0) is (other == unique)


class TestBodies:
    @given(bytes_about(64) | st.binary(min_size=56, max_size=56).map(VERSION.__add__))
    @settings(deadline=None)
    def test_any_reply_to_init_is_a_value_or_refused(self, body: bytes) -> None:
        reply = returns_or_refuses(fuse.decode_init, body)
        if isinstance(reply, fuse.InitReply):
            assert reply.minor >= 27
            assert 0 <= reply.max_pages < 2**16

    @given(bytes_about(128) | st.binary(min_size=120, max_size=120).map(bytes(8).__add__))
    @settings(deadline=None)
    def test_any_reply_to_lookup_of_its_size_is_an_entry_or_none(self, body: bytes) -> None:
        node = int.from_bytes(body[:8], "little")
        right = len(body) == 128 and node
        entry = fuse.Entry(NodeId(node), attributes_in(body[40:])) if right else None
        assert returns_or_refuses(fuse.decode_lookup, body) == entry

    @given(st.binary(max_size=300), st.integers(0, 200))
    @settings(deadline=None)
    def test_any_bytes_as_an_entry_are_a_value_or_refused(self, buffer: bytes, offset: int) -> None:
        returns_or_refuses(lambda buffer: fuse.decode_entry_at(buffer, offset), buffer)

    @given(bytes_about(104))
    @settings(deadline=None)
    def test_any_reply_to_getattr_of_its_size_is_attributes(self, body: bytes) -> None:
        right = attributes_in(body[16:]) if len(body) == 104 else None
        assert returns_or_refuses(fuse.decode_attributes, body) == right

    @given(st.binary(max_size=20) | st.binary(min_size=4090, max_size=4100))
    @settings(deadline=None, max_examples=50)
    def test_any_reply_to_readlink_is_a_target(self, body: bytes) -> None:
        assert fuse.decode_readlink(body) == body

    @given(bytes_about(8))
    @settings(deadline=None)
    def test_any_reply_to_lseek_is_an_offset_or_refused(self, body: bytes) -> None:
        offset = returns_or_refuses(fuse.decode_lseek, body)
        assert offset == (int.from_bytes(body, "little") if len(body) == 8 else None)

    @given(bytes_about(16))
    @settings(deadline=None)
    def test_any_reply_to_open_is_a_handle_or_refused(self, body: bytes) -> None:
        handle = returns_or_refuses(fuse.decode_open, body)
        assert handle == (int.from_bytes(body[:8], "little") if len(body) == 16 else None)

    @given(bytes_about(80))
    @settings(deadline=None)
    def test_any_reply_to_statfs_is_a_value_or_refused(self, body: bytes) -> None:
        assert (returns_or_refuses(fuse.decode_statfs, body) is None) is (len(body) != 80)


class TestRequests:
    @given(requests, u64, st.builds(Credentials, u32, u32, u32))
    @settings(deadline=None)
    def test_length_in_the_header_is_the_length_on_the_wire(
        self, request: Request, unique: int, who: Credentials
    ) -> None:
        wire = request.encode(unique, who)
        fields = (wire[0:4], wire[4:8], wire[8:16], wire[16:24], wire[24:28], wire[28:32])
        values = [int.from_bytes(field, "little") for field in fields]
        assert values == [len(wire), request.opcode, unique, request.node, who.uid, who.gid]
        assert int.from_bytes(wire[32:36], "little") == who.pid
        assert wire[36:40] == bytes(4)
        assert request.size == len(wire)

    @given(st.lists(forgets, max_size=50))
    @settings(deadline=None)
    def test_batch_forget_holds_what_was_put_in_and_fits_its_capacity(
        self, forgotten: list[Forget]
    ) -> None:
        request = fuse.batch_forget(forgotten)
        assert fuse.batch_forget_capacity(request.size) == len(forgotten)
        body = request.body
        assert int.from_bytes(body[:4], "little") == len(forgotten)
        found = [
            Forget(
                NodeId(int.from_bytes(body[at : at + 8], "little")),
                int.from_bytes(body[at + 8 : at + 16], "little"),
            )
            for at in range(8, len(body), 16)
        ]
        assert found == forgotten
