"""The fuzz targets: each parser of outside bytes, as a function of bytes.

A target returns where the bytes were understood or refused as they should be. Anything but the one
exception that its parser declares comes out of it, and is a finding; so is an AssertionError of
what has to hold for whatever was understood.
"""

import contextlib
import errno
import functools
import mmap
import os
import socket
import stat
import tempfile
import tomllib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgpack
import trio

from memory.guest import GuestMemory
from memory.region import Region
from memory.virtqueue import Rooms, Virtqueue
from protocol import MalformedError, dirent, fuse, vhost_user
from protocol.dirent_columns import decode_directories, decode_directory_columns
from protocol.fuse import Entry, NodeId
from protocol.virtio_ring import RingLayout
from tests.fake.bare_daemon import Bare, bare_methods
from tests.listings import decode_by_columns
from vuserd.client.calls import Call
from vuserd.client.core.connection import ClientCore
from vuserd.client.core.replies import ReplyDecoder
from vuserd.client.core.ticket import Ticket
from vuserd.client.errors import BadReply, ClientError
from vuserd.client.files.tree_page import TreePage
from vuserd.client.listing.columns import directory_page, walk_page
from vuserd.config import arguments
from vuserd.config.files import read_config
from vuserd.config.lines import find_lines
from vuserd.delivery.images import ImageStore
from vuserd.device.connection import VhostUserConnection
from vuserd.device.procedure import Procedure
from vuserd.errors import (
    BackendError,
    CallError,
    ConfigurationError,
    ConfigurationErrors,
    FileError,
)
from vuserd.fs.nodes import Node, root_node
from vuserd.fs.paths import MAX_SYMLINKS, components, resolve
from vuserd.rpc.counters import Counters
from vuserd.wire.codec import (
    NEED_DATA,
    FramingError,
    InvalidMessage,
    Limits,
    Message,
    MessageDecoder,
    Notification,
    Request,
    Response,
    decode_value,
    encode_response,
    split_request,
)
from vuserd.wire.descriptors import ancillary_with, received_descriptors

T = TypeVar("T")


class Target(NamedTuple):
    """A parser behind a function of bytes, which is awaited where it gives something to await."""

    name: str
    run: Callable[[bytes], Awaitable[None] | None]


def _number(data: bytes, default: int = 0) -> int:
    return data[0] if data else default


# -- RPC -------------------------------------------------------------------------------------------


class _NoImages:
    """Methods that are bound here and not called never ask for an image."""


_BOUND: Final = bare_methods(_NoImages())


def rpc_frames(data: bytes) -> None:
    """Cut requests from a stream in pieces, and bind what is called to its method's parameters."""
    piece = _number(data) or 1
    frames = data[1:]
    for limits in (Limits(), Limits(frame_bytes=200, depth=4, values=30)):
        decoder = MessageDecoder(limits)
        with contextlib.suppress(FramingError):
            for begin in range(0, len(frames), piece):
                decoder.feed(frames[begin : begin + piece])
                for message in decoder:
                    _bind(message)
                assert decoder.buffered <= limits.frame_bytes
    _take_the_quick_way(frames)


def _take_the_quick_way(stream: bytes) -> None:
    """Hold each request that is unpacked at once against what the decoder makes of its bytes."""
    decoder = MessageDecoder()
    while (found := split_request(stream)) is not None:
        request, rest = found
        decoder.feed(stream[: len(stream) - len(rest)])
        plain = request._replace(said=b"")
        assert repr(decoder.next_message()) == repr(plain)  # repr: nan is not itself
        if request.said:
            said = decode_value(b"\x92" + request.said)
            assert repr(said) == repr([request.method, request.params])
        assert decoder.buffered == 0
        stream = rest


def _bind(message: Message) -> None:
    match message:
        case Request(msgid, method, params):
            error = {"code": "OK"}
            try:
                found = _BOUND.find(method)
                arguments, options = found.bind(params)
                assert len(arguments) == len(found.params)
                assert options.keys() == found.options.keys()
            except CallError as refusal:
                error = refusal.to_wire()
            msgpack.unpackb(encode_response(msgid, error, None))
        case InvalidMessage(_, reason):
            msgpack.unpackb(encode_response(0, reason, None))
        case _:
            assert isinstance(message, Response | Notification)


def _descriptors(kind: int, count: int, stack: contextlib.ExitStack) -> list[int]:
    if not count:
        return []
    if kind % 4 == 0:
        opened = os.memfd_create("fuzz", os.MFD_ALLOW_SEALING if kind % 8 else 0)
        os.ftruncate(opened, 1 << 16)
    elif kind % 4 == 1:
        opened, other = os.pipe()
        stack.callback(os.close, other)
    elif kind % 4 == 2:
        opened = os.open("/", os.O_PATH if kind % 8 == 2 else os.O_RDONLY)
    else:
        opened = os.eventfd(0)
    stack.callback(os.close, opened)
    return [opened] * count


def _open_here() -> int:
    return len(os.listdir("/proc/self/fd"))


async def _all_closed(before: object) -> None:
    """Wait until as many descriptors are open as before: some are closed in threads."""
    with trio.fail_after(10):
        while _open_here() != before:
            await trio.lowlevel.checkpoint()


async def rpc_connection(data: bytes) -> None:
    """Send a live connection bytes, with descriptors of all kinds beside some of them.

    Layout of the bytes: count of descriptors, their kind, where they go, the stream.
    """
    count, kind, place = (_number(data[at:]) for at in range(3))
    stream = data[3:]
    place = min(place, max(len(stream) - 1, 0))
    before = _open_here()
    counters = Counters()
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as stack, theirs:
        ours.setblocking(False)
        theirs.sendall(stream[:place])
        if stream:
            sent = _descriptors(kind, count % 40, stack)
            theirs.sendmsg([stream[place : place + 1]], ancillary_with(sent))
        theirs.sendall(stream[place + 1 :])
        theirs.shutdown(socket.SHUT_WR)
        received = bytearray()
        async with trio.open_nursery() as nursery:
            store = ImageStore(0, 1, nursery)
            served = Bare(ours, store, counters)
            nursery.start_soon(_receive_all, theirs, received)
            with trio.fail_after(10):
                await served.run()
    unpacker = msgpack.Unpacker(max_buffer_size=256 << 20, unicode_errors="surrogateescape")
    unpacker.feed(received)
    assert {message[0] for message in unpacker} <= {1, 2}
    assert counters.in_flight == 0
    await _all_closed(before)


async def _receive_all(sock: socket.socket, received: bytearray) -> None:
    sock.setblocking(False)
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            got = sock.recv(1 << 20)
        except ConnectionResetError:
            return
        if not got:
            return
        received += got


# -- the client ------------------------------------------------------------------------------------


def client_replies(data: bytes) -> None:
    """Cut replies from a stream, as a client does, and pass some of them by as payloads."""
    piece, taken = _number(data) or 1, _number(data[1:])
    stream = data[2:]
    decoder = ReplyDecoder()
    with contextlib.suppress(FramingError):
        for begin in range(0, len(stream), piece):
            decoder.feed(stream[begin : begin + piece])
            while True:
                head = decoder.peek_bin_response_head()
                if taken % 2 and head is not None and head is not NEED_DATA:
                    decoder.take(head.head_size + head.length)
                    continue
                if decoder.next_message() is NEED_DATA:
                    break
            assert decoder.buffered <= len(stream)


def tree_page(data: bytes) -> None:
    """Read a page of a tree: what is understood can be put below a directory, and nowhere else."""
    page = memoryview(data)
    with contextlib.suppress(BadReply):
        for entry in TreePage.from_wire(page).entries:
            components = os.fsencode(entry.path).split(b"/")
            is_top = entry.path == "" and entry.error is not None
            assert is_top or not {b"", b".", b".."} & set(components)
            assert b"\0" not in os.fsencode(entry.path)
            assert entry.stat is not None or entry.error is not None
            if entry.content is not None:
                assert entry.stat is not None
                assert entry.stat.type == "file"
                assert len(entry.content) == entry.stat.size <= len(data)
                assert entry.content.obj is data
            if entry.stat is not None:
                assert {type(each) for each in entry.stat} <= {str, int, bool, type(None)}
                assert entry.stat.size >= 0


def client_core(data: bytes) -> None:
    """Answer a client's calls with bytes and descriptors: each ends with a value or its error."""
    piece = _number(data) or 1
    stream = data[1:]
    closed: list[int] = []
    core = ClientCore(close=closed.append)
    payload = memoryview(bytearray(64))

    claimed: list[object] = []

    def kept(value: object) -> object:
        return value

    def claim(value: object) -> object:
        claimed.append(value)
        return value

    calls: list[Call[object]] = [
        Call("stat", [], kept),
        Call("read", [], kept, buffer=payload),
        Call("fetch", [], claim, receives=True),
        Call("exports", [], _strict),
    ]
    tickets = [core.begin(call) for call in calls]
    core.abandon(tickets[-1])
    descriptors = 0
    done: list[Ticket[Any]] = []
    while stream and not core.is_over:
        room = core.receive_buffer()
        got = stream[: min(piece, len(room))]
        assert got
        room[: len(got)] = got
        stream = stream[len(got) :]
        arrived = [1000 + descriptors] if descriptors < 3 else []
        descriptors += len(arrived)
        done += core.received(len(got), arrived)
    done += core.received(0)
    assert all(ticket.done for ticket in tickets)
    for ticket in tickets:
        with contextlib.suppress(ClientError):
            ticket.result()
    assert len(closed) == len(set(closed)) == descriptors - len(claimed)


def client_listings(data: bytes) -> None:
    """Make pages of what a daemon sent: sound records, or the client's error."""
    try:
        value = msgpack.unpackb(data, strict_map_key=True, unicode_errors="surrogateescape")
    except ValueError:
        return
    for make, is_path in ((directory_page, False), (walk_page, True)):
        with contextlib.suppress(BadReply):
            for entry in make(value).entries:
                assert set(map(type, entry[:3])) <= {str, int}
                assert entry.stat is None or type(entry.stat.size) is int
                if isinstance(value["entries"], dict):
                    components = entry[0].split("/")
                    assert is_path or len(components) == 1
                    assert not {"", ".", ".."}.intersection(components)
                    assert "\0" not in entry[0]


def _strict(value: object) -> object:
    if not isinstance(value, list):
        raise TypeError("a list is wanted")
    return value


# -- the backend -----------------------------------------------------------------------------------


def vhost_user_replies(data: bytes) -> None:
    """Decode headers and payloads of the vhost-user socket."""
    requests = list(vhost_user.Request)
    request = requests[_number(data) % len(requests)]
    body = data[1:]
    decoders: tuple[Callable[[bytes], object], ...] = (
        lambda body: vhost_user.decode_reply_header(body, request),
        vhost_user.decode_u64,
        vhost_user.VringState.decode,
        vhost_user.decode_device_state_reply,
    )
    for decode in decoders:
        with contextlib.suppress(MalformedError):
            decode(body)


async def vhost_user_connection(data: bytes) -> None:
    """Answer requests on a live socket with bytes, and descriptors beside one of them."""
    count, kind, place = (_number(data[at:]) for at in range(3))
    stream = data[3:]
    place = min(place, max(len(stream) - 1, 0))
    before = _open_here()
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as stack, theirs:
        theirs.sendall(stream[:place])
        if stream:
            sent = _descriptors(kind, count % 12, stack)
            theirs.sendmsg([stream[place : place + 1]], ancillary_with(sent))
        theirs.sendall(stream[place + 1 :])
        theirs.shutdown(socket.SHUT_WR)
        async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as opened:
            connection = VhostUserConnection(opened, timeout=10)
            async with trio.open_nursery() as nursery:

                async def read() -> None:
                    with contextlib.suppress(BackendError):
                        await connection.run()

                with contextlib.suppress(BackendError):
                    nursery.start_soon(read)
                    await connection.ask(vhost_user.Request.GET_FEATURES)
                    await connection.tell(vhost_user.Request.SET_OWNER)
                nursery.cancel_scope.cancel()
    await _all_closed(before)


def ancillary_descriptors(data: bytes) -> None:
    """Read descriptors out of control messages: whole ones only, of the one kind that has them."""
    messages: list[tuple[int, int, bytes]] = []
    wanted = 0
    while len(data) >= 3:
        level = socket.SOL_SOCKET if data[0] % 2 else data[0]
        kind = socket.SCM_RIGHTS if data[1] % 2 else data[1]
        content, data = data[3 : 3 + data[2]], data[3 + data[2] :]
        messages.append((level, kind, content))
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            wanted += len(content) // 4
    assert len(received_descriptors(messages)) == wanted


def used_ring(data: bytes) -> None:
    """Write a used ring, and reap it: each chain comes back once at most, with a length it has."""
    num = (4, 8, 16, 32)[_number(data) % 4]
    base = int.from_bytes(data[1:3], "little")
    data = data[3:]
    layout = RingLayout.for_size(num)
    rooms = Rooms(1024, 64, 32)
    region = Region(mmap.PAGESIZE)
    memory = region.view
    ring = Virtqueue(region.mapping, GuestMemory().add(region), 0, layout, rooms, base)
    added, back = 0, 0
    #: The slots that the device has, and how many bytes it may write there.
    capacities: dict[int, int] = {}
    with contextlib.suppress(MalformedError):
        while data:
            chains, written = _number(data) % 4, (_number(data) >> 2) % 64
            for _ in range(min(chains, ring.free)):
                length = added % 50
                slot = ring.add(b"x" * 40, 16, 8192, length)
                assert slot not in capacities
                capacities[slot] = 16 + length
                added += 1
            ring.publish()
            part, data = data[1 : 1 + written], data[1 + written :]
            if len(part) > 1:
                place = part[0] % (8 * num + 4)
                end = min(layout.used + place + len(part) - 1, layout.size)
                memory[layout.used + place : end] = part[1 : 1 + end - layout.used - place]
            for slot, length, reply in ring.reap(1 + written):
                assert 0 <= length <= capacities.pop(slot)
                assert len(reply) == min(length, 16)
                back += 1
    assert ring.outstanding == added - back == len(capacities)
    ring.abandon()
    assert ring.outstanding == 0
    ring.close()
    del memory
    region.close()


_FUSE_DECODERS: Final[tuple[Callable[[bytes], object], ...]] = (
    fuse.decode_init,
    fuse.decode_lookup,
    lambda body: fuse.decode_entry_at(body, 3),
    fuse.decode_attributes,
    fuse.decode_readlink,
    fuse.decode_open,
    fuse.decode_statfs,
    fuse.decode_lseek,
    lambda body: fuse.decode_reply_header(body, 2, 16),
    lambda body: fuse.decode_reply_header(body[:16], _first_u64(body), len(body)),
)


def _first_u64(body: bytes) -> int:
    return int.from_bytes(body[8:16], "little")


def fuse_replies(data: bytes) -> None:
    """Decode one reply by each of the decoders."""
    for decode in _FUSE_DECODERS:
        with contextlib.suppress(MalformedError):
            found = decode(data)
            if isinstance(found, Entry):
                assert found.node > 0


def dirents(data: bytes) -> None:
    """Decode a directory, with and without nodes."""
    for plus in (False, True):
        with contextlib.suppress(MalformedError):
            entries, following = dirent.decode_directory(data, plus=plus)
            assert (following is None) is (not data)
            for entry in entries:
                assert 1 <= len(entry.name) <= fuse.NAME_MAX
                assert not {b"/", b"\0"} & {
                    entry.name[at : at + 1] for at in range(len(entry.name))
                }
                assert entry.name not in (b".", b"..")


def dirent_columns(data: bytes) -> None:
    """Decode a directory into columns: they say what the plain decoder says, or refuse it, too."""
    for plus in (False, True):
        found = plain = None
        with contextlib.suppress(MalformedError):
            plain = dirent.decode_directory(data, plus=plus)
        with contextlib.suppress(MalformedError):
            found = decode_by_columns(data, plus=plus)
        assert found == plain
    _two_directories(data)


def _two_directories(reply: bytes) -> None:
    """Decode the same directory twice at once: it has twice what it has, or both are refused."""
    plain = found = None
    with contextlib.suppress(MalformedError):
        plain, _ = decode_directory_columns(reply, plus=True)
    with contextlib.suppress(MalformedError):
        found, [middle, _], _ = decode_directories([reply, reply])
        assert found.part(0, middle) == found.part(middle, 2 * middle)
        found = found.part(0, middle)
    assert found == plain


# -- paths -----------------------------------------------------------------------------------------

_MODES: Final = {0: stat.S_IFDIR, 1: stat.S_IFLNK, 2: stat.S_IFREG}


@functools.cache
def _attributes(kind: int, ino: int) -> fuse.Attributes:
    return root_node().attributes._replace(mode=_MODES[kind] | 0o755, ino=ino)


class _Tree:
    """A file system in which a name's first byte tells what it is, and which never ends."""

    def __init__(self, targets: Sequence[bytes]) -> None:
        self.root = root_node()
        self.symlinks = 0
        self._targets = targets
        self._parents: dict[int, int] = {self.root.id: 0}

    def knows(self, node: Node) -> bool:
        return node.id in self._parents

    def lookup(self, directory: Node, name: bytes) -> Procedure[Node]:
        yield from ()
        assert stat.S_ISDIR(directory.attributes.mode)
        assert self.knows(directory)
        assert 1 <= len(name) <= fuse.NAME_MAX
        assert b"/" not in name
        assert b"\0" not in name
        assert name not in (b".", b"..")
        if name[0] % 4 == 3:
            raise FileError(errno.ENOENT)
        node = NodeId(len(self._parents) + 1)
        self._parents[node] = directory.id
        return Node(Entry(node, _attributes(name[0] % 4, name[-1])))

    def readlink(self, node: Node) -> Procedure[bytes]:
        yield from ()
        self.symlinks += 1
        if not self._targets:
            raise FileError(errno.ENOENT)
        return self._targets[node.attributes.ino % len(self._targets)]


def _finished(procedure: Procedure[T]) -> T:
    """Carry out a procedure that asks for nothing."""
    try:
        next(procedure)
    except StopIteration as ended:
        value: T = ended.value
        return value
    raise AssertionError("it asks")


def paths(data: bytes) -> None:
    """Resolve a path with symlinks: the path up to the first newline, then a target a line."""
    path, *targets = data[1:].split(b"\n")
    tree = _Tree(targets)
    with contextlib.suppress(FileError):
        node = _finished(
            resolve(
                [tree.root],
                components(path),
                follow=bool(_number(data) % 2),
                lookup=tree.lookup,
                readlink=tree.readlink,
            )
        )
        assert tree.knows(node)
    assert tree.symlinks <= MAX_SYMLINKS


def configuration(data: bytes) -> None:
    """Read what a command line says of exports and sizes."""
    text = data.decode(errors="surrogateescape")
    for parse in (
        arguments.parse_export,
        arguments.parse_adopted,
        lambda text: arguments.parse_size("--image-cache", text),
    ):
        with contextlib.suppress(ConfigurationError):
            parse(text)


def configuration_file(data: bytes) -> None:
    """Read a configuration file, and find the lines of what tomllib finds in it."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(data)
        file.flush()
        with contextlib.suppress(ConfigurationErrors):
            read_config([file.name], "/run/vuserd.sock")
    with contextlib.suppress(ValueError, RecursionError):
        text = data.decode()
        document = tomllib.loads(text)
        lines = find_lines(text)
        assert all(1 <= (lines.line((key,)) or 0) <= text.count("\n") + 1 for key in document)


_FUNCTIONS: Final[tuple[Callable[[bytes], Awaitable[None] | None], ...]] = (
    rpc_frames,
    rpc_connection,
    client_replies,
    tree_page,
    client_core,
    client_listings,
    vhost_user_replies,
    vhost_user_connection,
    ancillary_descriptors,
    used_ring,
    fuse_replies,
    dirents,
    dirent_columns,
    paths,
    configuration,
    configuration_file,
)
TARGETS: Final[Mapping[str, Target]] = {
    function.__name__: Target(function.__name__, function) for function in _FUNCTIONS
}
