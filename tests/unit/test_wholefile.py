"""Whole files, with all clients: one version, from an open file that is closed on every path."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.fake import rpc_server
from tests.fake.rpc_server import IMAGE, FakeDaemon, FaultError, Node
from tests.loops import Loop
from tests.unit.faces import Connect, Taker
from vuserd.client import Client, calls
from vuserd.client.async_client import AsyncClient
from vuserd.client.errors import BadReply, ConnectionLost, NotTaken, RemoteError
from vuserd.client.files import sinks, transfer, wholefile
from vuserd.client.memory import SharedMemory
from vuserd.client.records import Stat
from vuserd.wire.codec import Request, encode_response

pytestmark = [pytest.mark.usefixtures("small_chunks", "_nothing_is_left"), pytest.mark.alike]


def memfds() -> list[str]:
    """Return the memory that was made to be lent, and is open or mapped here."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [target for target in found if "memfd:vuserd-client" in target]


@pytest.fixture
def _nothing_is_left(fake_daemon: FakeDaemon) -> Iterator[None]:
    """Check that the daemon has nothing open for a client that is done with its file."""
    yield
    assert fake_daemon.left == []


@pytest.fixture
def image(fake_daemon: FakeDaemon) -> Node:
    return fake_daemon.root.children[b"image"]


def asked(daemon: FakeDaemon, *methods: str) -> int:
    """Return how often these methods were called."""
    return sum(request.method in methods for request in daemon.requests)


class Once:
    """Does something before the answer to the nth call of some methods, one time."""

    def __init__(
        self, daemon: FakeDaemon, nth: int, *methods: str, do: Callable[[], object]
    ) -> None:
        self._left, self._methods, self._do = nth, methods, do
        daemon.before = self

    def __call__(self, request: Request) -> None:
        if request.method in self._methods:
            self._left -= 1
            if not self._left:
                self._do()


#: The methods that parts of a file come with.
PARTS = ("read", "load")


def download(taker: Taker, path: str = "image", **options: Any) -> tuple[Stat, bytes]:
    memfd = os.memfd_create("copy")
    try:
        os.write(memfd, b"older and longer " * 30_000)
        stat = taker.download(path, memfd, **options)
        return stat, os.pread(memfd, os.fstat(memfd).st_size, 0)
    finally:
        os.close(memfd)


def stream(taker: Taker, path: str = "image", **options: Any) -> tuple[Stat, bytes]:
    collected = bytearray()
    return taker.stream(path, collected.extend, **options), bytes(collected)


Way = Callable[..., tuple[Stat, bytes]]


@pytest.fixture(params=[download, stream])
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


class TestRequests:
    """What a file costs."""

    def test_settled(self, fake_daemon: FakeDaemon, taker: Taker, way: Way) -> None:
        assert way(taker)[1] == IMAGE
        methods = [request.method for request in fake_daemon.requests]
        ends = ["detach"] if transfer.LENT_LEAST == 1 else []
        begins = ["attach", "load"] if transfer.LENT_LEAST == 1 else []
        parts = [methods[-3]] if not ends else ["load"]
        assert methods[: 1 + len(begins)] == ["open", *begins]
        assert methods[-2 - len(ends) :] == [*ends, "stat", "close"]
        assert set(methods[1 + len(begins) : -2 - len(ends)]) == {*parts}

    def test_of_one_byte(
        self, fake_daemon: FakeDaemon, way: Way, taker: Taker, image: Node
    ) -> None:
        image.content = b"x"
        assert way(taker)[1] == b"x"
        expected = {"open": 1, "stat": 1, "close": 1}
        assert {method: asked(fake_daemon, method) for method in expected} == expected


class TestUntrueSizes:
    """A size that is not the length: procfs, sysfs, FUSE."""

    @pytest.mark.parametrize("settled", [True, False])
    @pytest.mark.parametrize("length", [0, 1, 10_000, 30_001])
    @pytest.mark.parametrize("size", [0, 1, 4096, 10_000, 29_999, 1 << 20])
    def test_it_is_taken_to_its_end(
        self,
        fake_daemon: FakeDaemon,
        taker: Taker,
        way: Way,
        image: Node,
        size: int,
        length: int,
        settled: bool,
    ) -> None:
        image.size, image.content = size, IMAGE[:length]
        fake_daemon.settled = settled
        told: list[tuple[int, int]] = []
        stat, content = way(taker, progress=lambda *there: told.append(there))
        assert content == IMAGE[:length]
        assert stat.size == length
        assert told[-1] == (length, length)
        assert asked(fake_daemon, "open") == 1

    @pytest.mark.parametrize("size", [1 << 45, (1 << 63) - 1])
    def test_a_size_that_no_file_here_can_have(
        self, way: Way, taker: Taker, image: Node, size: int
    ) -> None:
        image.size, image.content = size, b"short"
        stat, content = way(taker)
        assert (content, stat.size) == (b"short", 5)

    def test_few_large_reads(
        self, fake_daemon: FakeDaemon, taker: Taker, way: Way, image: Node
    ) -> None:
        image.size, image.content = 0, IMAGE[:50_000]
        assert way(taker)[1] == IMAGE[:50_000]
        assert asked(fake_daemon, *PARTS) <= 8

    def test_one_that_gives_all_to_one_read(
        self, fake_daemon: FakeDaemon, taker: Taker, way: Way, image: Node
    ) -> None:
        """As those below /proc/sys: what begins behind its first byte is empty."""
        image.size, image.content = 0, b"4096 131072\t6291456\n"
        read = fake_daemon.do_read

        def read_once(export: object, path: object, offset: int, *rest: Any) -> bytes:
            return read(export, path, offset, *rest) if offset == 0 else b""

        vars(fake_daemon)["do_read"] = read_once
        assert way(taker)[1] == image.content

    def test_one_that_changes_when_its_size_has_shown_to_be_untrue(
        self, fake_daemon: FakeDaemon, taker: Taker, way: Way, image: Node
    ) -> None:
        image.size, image.content = 400_000, IMAGE

        def change() -> None:
            image.mtime_ns += 1

        Once(fake_daemon, 1, "stat", do=change)
        if way is stream:
            with pytest.raises(RemoteError, match="CHANGED"):
                way(taker)
        else:
            assert way(taker)[1] == IMAGE
        assert asked(fake_daemon, "open") == (1 if way is stream else 2)

    def test_over_a_restart(
        self, fake_daemon: FakeDaemon, taker: Taker, way: Way, image: Node
    ) -> None:
        """What is behind the size comes once."""
        image.size = 0
        Once(fake_daemon, 5, "read", do=fake_daemon.end_connections)
        assert way(taker)[1] == IMAGE
        assert fake_daemon.connections == 2


class TestGrowing:
    """A log that is appended to, while it is taken."""

    def append(self, fake_daemon: FakeDaemon, image: Node, nth: int = 4) -> None:
        def grow() -> None:
            image.content += b"another line\n"
            image.mtime_ns += 1_000_000_000

        Once(fake_daemon, nth, *PARTS, do=grow)

    def test_a_stream_has_what_was_there(
        self, fake_daemon: FakeDaemon, taker: Taker, image: Node
    ) -> None:
        """However long nothing had been written before it was opened."""
        self.append(fake_daemon, image)
        stat, content = stream(taker)
        assert content == IMAGE + b"another line\n"  # as it was looked at again
        assert stat.size == len(content)
        assert stat.mtime_ns == image.mtime_ns
        assert asked(fake_daemon, "open") == 1

    def test_at_every_moment(self, fake_daemon: FakeDaemon, taker: Taker, image: Node) -> None:
        for length in (0, 1, 9_999, 10_000, 20_000, 24_576):
            image.content = IMAGE[:length]

            def grow(_: Request) -> None:
                image.content += b"another line\n"
                image.mtime_ns += 1_000_000_000

            fake_daemon.before = lambda _: None
            before = len(fake_daemon.requests)
            assert stream(taker)[1] == IMAGE[:length]
            requests = fake_daemon.requests[before:]
            opening = next(n for n, r in enumerate(requests) if r.method == "open")
            for nth in range(opening + 1, len(requests)):
                image.content = IMAGE[:length]
                left = [nth]

                def grow_at(request: Request, left: list[int] = left) -> None:
                    if not left[0]:
                        grow(request)
                    left[0] -= 1

                fake_daemon.before = grow_at
                assert stream(taker)[1] in (IMAGE[:length], image.content)

    def test_one_that_grows_all_the_time(
        self, fake_daemon: FakeDaemon, taker: Taker, image: Node
    ) -> None:
        opened: list[bytes] = []

        def grow(request: Request) -> None:
            if request.method == "open":
                opened.append(image.content)
            else:
                image.content += b"another line\n"
                image.mtime_ns += 1

        fake_daemon.before = grow
        for content in (stream(taker)[1], download(taker, grows=True)[1]):
            assert content.startswith(opened.pop(0))
            assert image.content.startswith(content)

    def test_a_download_that_asks_for_it(
        self, fake_daemon: FakeDaemon, taker: Taker, image: Node
    ) -> None:
        self.append(fake_daemon, image)
        stat, content = download(taker, grows=True)
        assert (content, stat.size) == (image.content, len(image.content))
        assert asked(fake_daemon, "open") == 1

    def test_a_download_that_does_not(
        self, fake_daemon: FakeDaemon, taker: Taker, image: Node
    ) -> None:
        """It is taken again, with the line that came."""
        self.append(fake_daemon, image)
        assert download(taker)[1] == IMAGE + b"another line\n"
        assert asked(fake_daemon, "open") == 2

    def test_a_download_that_does_not_of_one_that_goes_on_growing(
        self, fake_daemon: FakeDaemon, taker: Taker, image: Node
    ) -> None:
        def grow(_: Request) -> None:
            image.content += b"x"

        fake_daemon.before = grow
        with pytest.raises(RemoteError, match="CHANGED"):
            download(taker)
        assert asked(fake_daemon, "open") == wholefile.ATTEMPTS

    def test_a_stream_that_wants_all_or_nothing(
        self, fake_daemon: FakeDaemon, taker: Taker, image: Node
    ) -> None:
        self.append(fake_daemon, image)
        with pytest.raises(RemoteError, match="CHANGED"):
            stream(taker, grows=False)

    @pytest.mark.parametrize("change", ["begin", "middle", "last byte", "shorter", "other inode"])
    def test_one_that_is_rewritten_as_well(
        self, fake_daemon: FakeDaemon, taker: Taker, image: Node, change: str
    ) -> None:
        """Below what was there: a version that never was is not delivered."""

        def rewrite() -> None:
            content = bytearray(image.content + b"another line\n")
            at = {"begin": 0, "middle": 150_000}.get(change, len(IMAGE) - 1)
            if change != "other inode":
                content[at] ^= 1
            image.content = bytes(content)
            if change == "shorter":
                image.content = IMAGE[:-1]
            image.mtime_ns += 1

        if change == "other inode":
            looked = fake_daemon.do_stat

            def look(*arguments: Any) -> Any:
                return looked(*arguments) | {"ino": 99}

            vars(fake_daemon)["do_stat"] = look
        Once(fake_daemon, 1, "stat", do=rewrite)
        with pytest.raises(RemoteError, match="CHANGED"):
            stream(taker)

    def test_one_that_is_touched(self, fake_daemon: FakeDaemon, taker: Taker, image: Node) -> None:
        """Its bytes are the same, which a comparison tells."""

        def touch() -> None:
            image.mtime_ns += 1

        Once(fake_daemon, 4, *PARTS, do=touch)
        assert stream(taker)[1] == IMAGE
        assert asked(fake_daemon, "open") == 1

    def test_over_a_restart(self, fake_daemon: FakeDaemon, taker: Taker, image: Node) -> None:
        """It grew before it was opened anew: what was there is compared in the end."""

        def end() -> None:
            image.content += b"another line\n"
            image.mtime_ns += 1_000_000_000
            fake_daemon.end_connections()

        Once(fake_daemon, 9, *PARTS, do=end)
        stat, content = stream(taker)
        assert (content, stat.size) == (image.content, len(image.content))
        assert fake_daemon.connections == 2

    @pytest.mark.parametrize("below", [True, False])
    def test_rewritten_over_a_restart(
        self, fake_daemon: FakeDaemon, taker: Taker, image: Node, below: bool
    ) -> None:
        def end() -> None:
            image.content = IMAGE[::-1] + b"x" if below else IMAGE[:-1]
            image.mtime_ns += 1_000_000_000
            fake_daemon.end_connections()

        Once(fake_daemon, 9, *PARTS, do=end)
        with pytest.raises(RemoteError, match="CHANGED"):
            stream(taker)


class TestUnsettled:
    """Timestamps that would not show the next change: the bytes are compared."""

    @pytest.fixture(autouse=True)
    def _unsettled(self, fake_daemon: FakeDaemon) -> None:
        fake_daemon.settled = False

    def test_they_agree(self, fake_daemon: FakeDaemon, taker: Taker, way: Way) -> None:
        assert way(taker)[1] == IMAGE
        assert asked(fake_daemon, "open") == 1

    @pytest.mark.parametrize("at", [0, 150_000, 300_000])
    def test_they_differ_once(
        self, fake_daemon: FakeDaemon, taker: Taker, way: Way, image: Node, at: int
    ) -> None:
        def rewrite() -> None:
            content = bytearray(image.content)
            content[at] ^= 1
            image.content = bytes(content)

        Once(fake_daemon, 1, "stat", do=rewrite)
        if way is stream:
            with pytest.raises(RemoteError, match="CHANGED"):
                way(taker)
        else:
            assert way(taker)[1] == image.content

    def test_they_end_earlier(self, fake_daemon: FakeDaemon, taker: Taker, image: Node) -> None:
        """... between the last look and the comparison."""

        def cut() -> None:
            image.content = IMAGE[:-1]

        Once(fake_daemon, 39 if transfer.LENT_LEAST == 1 else 32, *PARTS, do=cut)
        with pytest.raises(RemoteError, match="CHANGED"):
            stream(taker)

    def test_an_empty_file(self, way: Way, taker: Taker, image: Node) -> None:
        image.content = b""
        assert way(taker)[1] == b""

    def test_settled_when_it_is_opened_anew(
        self, fake_daemon: FakeDaemon, taker: Taker, way: Way, image: Node
    ) -> None:
        """What was read before that may be of what had the same timestamps."""

        def end() -> None:
            image.content = IMAGE[::-1]
            fake_daemon.settled = True
            fake_daemon.end_connections()

        Once(fake_daemon, 9, *PARTS, do=end)
        if way is stream:
            with pytest.raises(RemoteError, match="CHANGED"):
                way(taker)
        else:
            assert way(taker)[1] == IMAGE[::-1]
        assert fake_daemon.connections == 2


class TestResumption:
    """A lost connection: the file is opened anew over the next one."""

    def end(self, fake_daemon: FakeDaemon, change: Callable[[], object] | None = None) -> None:
        def do() -> None:
            if change is not None:
                change()
            fake_daemon.end_connections()

        Once(fake_daemon, 9, *PARTS, do=do)

    def test_the_same_version(self, fake_daemon: FakeDaemon, taker: Taker, way: Way) -> None:
        self.end(fake_daemon)
        told: list[int] = []
        assert way(taker, progress=lambda there, _: told.append(there))[1] == IMAGE
        assert told == sorted(set(told))  # nothing twice
        assert (asked(fake_daemon, "open"), fake_daemon.connections) == (2, 2)

    @pytest.mark.parametrize("nth", [1, 2, 3, 5, 9])
    @pytest.mark.parametrize(
        "method", ["open", "attach", "load", "read", "detach", "stat", "close"]
    )
    def test_at_every_call(
        self, fake_daemon: FakeDaemon, taker: Taker, way: Way, method: str, nth: int
    ) -> None:
        Once(fake_daemon, nth, method, do=fake_daemon.end_connections)
        assert way(taker)[1] == IMAGE

    @pytest.mark.parametrize("change", ["content", "touched", "replaced"])
    def test_another_version(
        self, fake_daemon: FakeDaemon, taker: Taker, way: Way, image: Node, change: str
    ) -> None:
        def alter() -> None:
            if change == "content":
                image.content, image.mtime_ns = IMAGE[::-1], image.mtime_ns + 1
            elif change == "touched":
                image.ctime_ns += 1
            else:
                fake_daemon.root.children[b"image"] = Node(content=IMAGE[::-1])

        self.end(fake_daemon, alter)
        if way is stream and change != "touched":  # whose bytes compare
            with pytest.raises(RemoteError, match="CHANGED"):
                way(taker)
        else:
            assert way(taker)[1] == fake_daemon.root.children[b"image"].content

    @pytest.mark.parametrize("grows", [True, False])
    def test_attributes_do_not_tell_which_file_it_is(
        self, fake_daemon: FakeDaemon, taker: Taker, way: Way, grows: bool
    ) -> None:
        """As below a submount: equal in all of them, and another file."""
        before = fake_daemon.root.children[b"image"]
        other = Node(content=IMAGE[::-1], mtime_ns=before.mtime_ns, ctime_ns=before.ctime_ns)
        other.stat = lambda: Node.stat(other) | {"ino": before.stat()["ino"]}  # type: ignore[method-assign]
        fake_daemon.by_attributes = False

        def replace() -> None:
            fake_daemon.root.children[b"image"] = other

        self.end(fake_daemon, replace)
        if way is stream:
            with pytest.raises(RemoteError, match="CHANGED"):
                way(taker, grows=grows)
        else:
            assert way(taker, grows=grows)[1] == IMAGE[::-1]

    def test_a_download_begins_anew_where_they_do_not_tell(
        self, fake_daemon: FakeDaemon, taker: Taker
    ) -> None:
        fake_daemon.by_attributes = False
        self.end(fake_daemon)
        told: list[int] = []
        assert download(taker, progress=lambda there, _: told.append(there))[1] == IMAGE
        assert told != sorted(told)

    def test_a_stream_that_has_written_nothing_begins_anew(
        self, fake_daemon: FakeDaemon, taker: Taker
    ) -> None:
        fake_daemon.by_attributes = False
        Once(fake_daemon, 1, "open", do=fake_daemon.end_connections)
        assert stream(taker, grows=False)[1] == IMAGE

    def test_what_had_data_is_not_asked_for_twice(
        self, fake_daemon: FakeDaemon, taker: Taker, image: Node
    ) -> None:
        image.blocks, image.extents = 8, [(0, 100_000)]
        image.content = IMAGE[:100_000] + bytes(100_000)
        self.end(fake_daemon)
        assert download(taker)[1] == image.content
        assert asked(fake_daemon, "extents") == 1

    def test_not_wanted(self, fake_daemon: FakeDaemon, way: Way, connect: Connect) -> None:
        self.end(fake_daemon)
        with pytest.raises(NotTaken):
            way(Taker(connect, fake_daemon.address, reconnect=0))

    def test_a_daemon_that_is_killed(self, fake_daemon: FakeDaemon, taker: Taker, way: Way) -> None:
        """Whether the last call was taken is not known, and makes no difference to the file."""
        Once(fake_daemon, 9, *PARTS, do=fake_daemon.cut_connections)
        assert way(taker)[1] == IMAGE

    @pytest.mark.parametrize("method", ["open", "attach", "detach", "stat", "close"])
    def test_one_that_is_killed_at_another_call(
        self, fake_daemon: FakeDaemon, taker: Taker, way: Way, method: str
    ) -> None:
        Once(fake_daemon, 1, method, do=fake_daemon.cut_connections)
        assert way(taker)[1] == IMAGE

    @pytest.mark.parametrize("methods", [("open",), ("attach", "read"), PARTS, ("stat",)])
    def test_a_file_that_kills_each_daemon(
        self, fake_daemon: FakeDaemon, taker: Taker, way: Way, methods: tuple[str, ...]
    ) -> None:
        """The error names it, also where the call that did it is about the memory it comes to."""

        def kill(request: Request) -> None:
            if request.method in methods:
                fake_daemon.cut_connections()

        fake_daemon.before = kill
        with pytest.raises(ConnectionLost, match="closed the connection") as caught:
            way(taker)
        assert not isinstance(caught.value, NotTaken)
        assert (caught.value.filename, fake_daemon.connections) == ("kernels:image", 2)


class Shut:
    """A connection of the fake daemon's whose client has another one before this one is shut."""

    def __init__(self, sock: socket.socket, reconnect: Callable[[], object]) -> None:
        self._shutdown, self._reconnect = sock.shutdown, reconnect

    def shutdown(self, how: int) -> None:
        self._reconnect()
        self._shutdown(how)


@pytest.mark.parametrize("end", [FakeDaemon.end_connections, FakeDaemon.cut_connections])
def test_the_fake_daemon_ends_no_connection_that_is_made_meanwhile(
    fake_daemon: FakeDaemon, end: Callable[[FakeDaemon], None]
) -> None:
    with Client.connect(fake_daemon.address) as former, ExitStack() as clients:
        former.exports()

        def reconnect() -> None:
            client = clients.enter_context(Client.connect(fake_daemon.address, reconnect=0))
            client.exports()
            later.append(client)

        later: list[Client] = []
        connections: list[Any] = fake_daemon._connections
        [sock] = connections
        connections[0] = Shut(sock, reconnect)
        end(fake_daemon)
        connections[0] = sock
        assert later.pop().exports()


def test_the_fake_daemon_encodes_one_response_at_a_time(
    fake_daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon's packer is no two threads' at once: one that is not in C mixes their answers."""
    encoding: list[int] = []
    together: list[int] = []

    def encode(msgid: int, error: object, result: object) -> bytes:
        encoding.append(msgid)
        fake_daemon.wait_for_requests(2)
        time.sleep(0.05)  # in which the other one would begin
        together.append(len(encoding))
        encoding.pop()
        return encode_response(msgid, error, result)

    monkeypatch.setattr(rpc_server, "encode_response", encode)
    with Client.connect(fake_daemon.address) as one, Client.connect(fake_daemon.address) as other:
        tickets = [client.begin(calls.exports()) for client in (one, other)]
        assert one.finish(tickets[0]) == other.finish(tickets[1])
    assert together == [1, 1]


class TestOtherCalls:
    """What else the client does: a transfer is no hindrance to it over a restart."""

    def test_of_other_tasks(self, loop: Loop, fake_daemon: FakeDaemon) -> None:
        collected = [bytearray() for _ in range(5)]
        answers: list[int] = []
        answered = 0

        def end(_: Request) -> None:
            nonlocal answered
            answered += 1
            if answered in (40, 90):
                fake_daemon.end_connections()

        async def main() -> None:
            async def take(number: int) -> None:
                async def write(payload: memoryview) -> None:
                    await loop.sleep(0)
                    collected[number].extend(payload)

                await client.stream("kernels", "image", write)

            async def ask() -> None:
                while len(answers) < 30:
                    answers.append((await client.stat("kernels", "image")).size)

            async with loop.client.connect(fake_daemon.address) as client:
                await client.exports()
                fake_daemon.before = end
                async with loop.group() as group:
                    for number in range(5):
                        group.start(take, number)
                    group.start(ask)

        loop.run(main)
        assert collected == [IMAGE] * 5
        assert answers == [len(IMAGE)] * 30
        assert fake_daemon.connections == 3

    def test_of_the_writer(self, connect: Connect, fake_daemon: FakeDaemon) -> None:
        """Whose call is the first to find the successor, where the file is another number."""
        collected = bytearray()
        with connect(fake_daemon.address) as client:

            def write(payload: memoryview) -> None:
                collected.extend(payload)
                if len(collected) == 2 * len(payload):
                    fake_daemon.end_connections()
                    opened = client.call(calls.open_file("kernels", "boot/other"))
                    assert opened.file == 1
                    client.call(calls.close_file(opened.file))

            fake_daemon.root.children[b"boot"].children[b"other"] = Node(content=IMAGE[::-1])
            client.stream("kernels", "image", write)
        assert collected == IMAGE
        assert fake_daemon.connections == 2

    def test_more_files_than_a_client_may_have_open(
        self, loop: Loop, fake_daemon: FakeDaemon
    ) -> None:
        done: list[int] = []

        async def main() -> None:
            async def take() -> None:
                collected = bytearray()

                async def write(payload: memoryview) -> None:
                    await loop.sleep(0)
                    collected.extend(payload)

                await client.stream("kernels", "image", write)
                done.append(len(collected))

            async with loop.client.connect(fake_daemon.address) as client, loop.group() as group:
                for _ in range(100):
                    group.start(take)

        fake_daemon.root.children[b"image"].content = IMAGE[:20_000]
        loop.run(main)
        assert done == [20_000] * 100


@contextmanager
def collecting(codes: list[str]) -> Iterator[None]:
    """Collect the code of the daemon's error, where there is one."""
    try:
        yield
    except RemoteError as error:
        codes.append(error.code)


class Refusal(Exception):  # noqa: N818 - what a writer raises
    """Nothing of the client's."""


class TestNothingIsLeft:
    """The file is closed and memory detached, in the daemon, while the connection stays."""

    @pytest.fixture(autouse=True)
    def _connected(self, fake_daemon: FakeDaemon) -> Iterator[None]:
        before = memfds()
        yield
        assert fake_daemon.connections == 1
        assert len(memfds()) <= len(before)  # at once, and not when garbage is collected

    @pytest.mark.parametrize(
        "error",
        [
            Refusal(),
            KeyboardInterrupt(),
            StopIteration(),
            RemoteError("CHANGED", "of another file"),
            NotTaken("of another daemon"),
        ],
    )
    @pytest.mark.parametrize("nth", [1, 3, 31])
    def test_a_writer_that_raises(
        self, connect: Connect, fake_daemon: FakeDaemon, error: BaseException, nth: int
    ) -> None:
        written = 0

        def write(_: memoryview) -> None:
            nonlocal written
            written += 1
            if written == nth:
                raise error

        expected = RuntimeError if isinstance(error, StopIteration) else type(error)
        with connect(fake_daemon.address) as client:
            with pytest.raises(expected) as caught:
                client.stream("kernels", "image", write)
            assert error in (caught.value, caught.value.__cause__)
            assert written == nth
            self.require_nothing(fake_daemon, client)

    @pytest.mark.parametrize("error", [Refusal(), KeyboardInterrupt(), NotTaken("of another")])
    def test_progress_that_raises(
        self, connect: Connect, fake_daemon: FakeDaemon, error: BaseException
    ) -> None:
        def refuse(_: int, __: int) -> None:
            raise error

        with connect(fake_daemon.address) as client:
            with pytest.raises(type(error)):
                client.stream("kernels", "image", lambda _: None, progress=refuse)
            self.require_nothing(fake_daemon, client)

    def test_a_full_disk(
        self,
        connect: Connect,
        fake_daemon: FakeDaemon,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(sinks, "write_at", fail)
        with connect(fake_daemon.address) as client, open(tmp_path / "copy", "wb") as copy:
            with pytest.raises(OSError, match="No space"):
                client.download("kernels", "image", copy.fileno())
            self.require_nothing(fake_daemon, client)

    @pytest.mark.parametrize(
        "method", ["open", "attach", "load", "read", "detach", "stat", "close", "extents"]
    )
    @pytest.mark.parametrize("nth", [1, 2, 5])
    def test_an_error_of_the_daemons(
        self, connect: Connect, fake_daemon: FakeDaemon, image: Node, method: str, nth: int
    ) -> None:
        """Which may be the answer to whatever is asked."""
        image.blocks = 8
        left = [nth]
        ends = ("close", "detach")  # which are done all the same, and wanted by nobody
        answer = getattr(fake_daemon, f"do_{method}")

        def fail(*arguments: Any) -> Any:
            left[0] -= 1
            if method == "attach" and not left[0]:
                os.close(fake_daemon.take_descriptor())
            result = None if left[0] == 0 and method not in ends else answer(*arguments)
            if not left[0]:
                raise FaultError("EIO", "input/output error", errno=5)
            return result

        vars(fake_daemon)[f"do_{method}"] = fail
        failed: list[str] = []
        memfd = os.memfd_create("copy")
        try:
            with connect(fake_daemon.address) as client:
                with collecting(failed):
                    client.download("kernels", "image", memfd)
                assert failed == ["EIO"] * (left[0] <= 0 and method not in ends)
                self.require_nothing(fake_daemon, client)
        finally:
            os.close(memfd)

    def test_changed_for_ever(self, connect: Connect, fake_daemon: FakeDaemon, image: Node) -> None:
        def alter(_: Request) -> None:
            image.content = image.content[1:] + image.content[:1]
            image.mtime_ns += 1

        fake_daemon.before = alter
        with connect(fake_daemon.address) as client:
            with pytest.raises(RemoteError, match="CHANGED"):
                client.stream("kernels", "image", lambda _: None)
            self.require_nothing(fake_daemon, client)

    @pytest.mark.parametrize(
        "method", ["open", "attach", "load", "read", "detach", "stat", "close"]
    )
    @pytest.mark.parametrize("nth", [1, 3])
    def test_cancelled_while_it_waits(
        self, loop: Loop, fake_daemon: FakeDaemon, method: str, nth: int
    ) -> None:
        """For whichever answer: what that brings is given back when it comes."""

        async def ignore(_: memoryview) -> None:
            pass

        async def main() -> None:
            begun = 0

            async def cancelled(ticket: Any, *more: Any) -> Any:
                nonlocal begun
                if ticket.call is not None and ticket.call.method == method:
                    begun += 1
                    if begun == nth:
                        taking.cancel()
                return await finish(ticket, *more)

            async with loop.client.connect(fake_daemon.address) as client:
                finish = client._finish
                vars(client)["_finish"] = cancelled
                async with loop.group() as group:
                    taking = group.start(client.stream, "kernels", "image", ignore)
                assert taking.cancelled() == (begun >= nth)
                vars(client)["_finish"] = finish
                await self.require_nothing_of(fake_daemon, client, loop)

        loop.run(main)

    def test_cancelled_while_it_writes(self, loop: Loop, fake_daemon: FakeDaemon) -> None:
        async def main() -> None:
            async def write(_: memoryview) -> None:
                taking.cancel()
                await loop.forever()

            async with loop.client.connect(fake_daemon.address) as client:
                async with loop.group() as group:
                    taking = group.start(client.stream, "kernels", "image", write)
                assert taking.cancelled()
                await self.require_nothing_of(fake_daemon, client, loop)

        loop.run(main)

    @pytest.mark.parametrize("nth", range(1, 90, 3))
    def test_interrupted_between_two_steps(self, fake_daemon: FakeDaemon, nth: int) -> None:
        """By a signal that comes when no system call waits."""
        steps = 0
        with Client.connect(fake_daemon.address) as client:
            take, begin = client._outcome, client._talk.begin

            def interrupt() -> None:
                nonlocal steps
                steps += 1
                if steps == nth:
                    raise KeyboardInterrupt

            def interrupted_take(*arguments: Any) -> Any:
                interrupt()
                return take(*arguments)

            def interrupted_begin(*arguments: Any) -> Any:
                interrupt()
                return begin(*arguments)

            vars(client)["_outcome"] = interrupted_take
            vars(client._talk)["begin"] = interrupted_begin
            with pytest.raises(KeyboardInterrupt):
                client.stream("kernels", "image", lambda _: None)
            vars(client)["_outcome"] = take
            vars(client._talk)["begin"] = begin
            self.require_nothing(fake_daemon, client)

    def test_interrupted_when_an_answer_is_there(self, fake_daemon: FakeDaemon) -> None:
        """... and was not taken: what it opened is closed."""
        with Client.connect(fake_daemon.address) as client:
            finish = client.finish

            def interrupted(ticket: Any, **_: Any) -> Any:
                client._talk.link.wait(ticket)
                raise KeyboardInterrupt

            vars(client)["finish"] = interrupted
            with pytest.raises(KeyboardInterrupt):
                client.stream("kernels", "image", lambda _: None)
            vars(client)["finish"] = finish
            self.require_nothing(fake_daemon, client)

    def test_no_room_to_map_what_is_lent(
        self, connect: Connect, fake_daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The file comes in reads."""

        def fail(_: SharedMemory) -> None:
            raise OSError(12, "Cannot allocate memory")

        monkeypatch.setattr(SharedMemory, "mapping", fail)
        collected = bytearray()
        with connect(fake_daemon.address) as client:
            client.stream("kernels", "image", collected.extend)
            assert collected == IMAGE
            self.require_nothing(fake_daemon, client)

    def test_descriptors_are_lost_on_the_way(
        self, connect: Connect, fake_daemon: FakeDaemon
    ) -> None:
        """As over a socket that ssh forwards: the file comes in reads."""

        def refuse(*_: Any) -> Any:
            os.close(fake_daemon.take_descriptor())
            raise FaultError("BAD_REQUEST", "attach takes a descriptor, and none came")

        vars(fake_daemon)["do_attach"] = refuse
        collected = bytearray()
        with connect(fake_daemon.address) as client:
            client.stream("kernels", "image", collected.extend)
            assert collected == IMAGE
            self.require_nothing(fake_daemon, client)

    def require_nothing(self, fake_daemon: FakeDaemon, client: Client) -> None:
        """Make the daemon read all that was sent before, and check that it holds nothing."""
        client.exports()
        client.exports()  # behind what undoes a late answer
        assert (fake_daemon.open, fake_daemon.memories) == ({}, {})
        core = client._talk.link.core
        assert (core._pending, core.held) == ({}, set())

    async def require_nothing_of(
        self, fake_daemon: FakeDaemon, client: AsyncClient, loop: Loop
    ) -> None:
        for _ in range(100):  # what undoes a late answer is sent when that has come
            await client.exports()
            if not (fake_daemon.open or fake_daemon.memories):
                break
            await loop.sleep(0.01)
        assert (fake_daemon.open, fake_daemon.memories) == ({}, {})
        core = client._talk.link.core
        assert (core._pending, core.held) == ({}, set())


class TestChangedByTheDaemon:
    """A file that the daemon had to open anew, and that may be another one."""

    def test_a_download_begins_anew(self, fake_daemon: FakeDaemon, taker: Taker) -> None:
        self.refuse_once(fake_daemon, 6)
        assert download(taker)[1] == IMAGE
        assert asked(fake_daemon, "open") == 2

    def test_a_stream_that_has_written(self, fake_daemon: FakeDaemon, taker: Taker) -> None:
        self.refuse_once(fake_daemon, 6)
        with pytest.raises(RemoteError, match="CHANGED"):
            stream(taker)

    def test_a_stream_that_has_not(self, fake_daemon: FakeDaemon, taker: Taker) -> None:
        self.refuse_once(fake_daemon, 1)
        assert stream(taker)[1] == IMAGE

    def refuse_once(self, fake_daemon: FakeDaemon, nth: int) -> None:
        read, left = fake_daemon.do_read, [nth]

        def refuse(*arguments: Any) -> bytes:
            left[0] -= 1
            if not left[0]:
                raise FaultError("CHANGED", "the file had to be opened anew")
            return read(*arguments)

        vars(fake_daemon)["do_read"] = refuse


class TestDamagedAnswers:
    """What no daemon says of a file is BadReply, and the connection goes on."""

    GOOD = Node().stat() | {"file": 1, "settled": True, "by_attributes": True}

    @pytest.mark.parametrize(
        "answer",
        [
            None,
            [],
            {},
            {"file": 1, "settled": True, "by_attributes": True},
            {key: value for key, value in GOOD.items() if key != "file"},
            {key: value for key, value in GOOD.items() if key != "settled"},
            {key: value for key, value in GOOD.items() if key != "by_attributes"},
            GOOD | {"file": "1"},
            GOOD | {"file": None},
            GOOD | {"settled": 1},
            GOOD | {"settled": None},
            GOOD | {"by_attributes": "no"},
            GOOD | {"size": -1},
            GOOD | {"size": 1.5},
            GOOD | {"size": 1 << 63},
            GOOD | {"mtime_ns": "now"},
        ],
    )
    def test_open(self, fake_daemon: FakeDaemon, taker: Taker, way: Way, answer: object) -> None:
        fake_daemon.results["open"] = answer
        with pytest.raises(BadReply):
            way(taker)
        assert asked(fake_daemon, "read", "stat") == 0

    @pytest.mark.parametrize(
        "answer",
        [
            None,
            [],
            {},
            {"extents": None, "next": None},
            {"extents": [5], "next": None},
            {"extents": [[0]], "next": None},
            {"extents": [[0, 1, 2]], "next": None},
            {"extents": [[0, "1"]], "next": None},
            {"extents": [[-1, 5]], "next": None},
            {"extents": [[0, 0]], "next": None},
            {"extents": [[0, -5]], "next": None},
            {"extents": [[10, 5], [0, 5]], "next": None},
            {"extents": [[0, 5], [4, 5]], "next": None},
            {"extents": [[0, 300_002]], "next": None},
            {"extents": [[400_000, 5]], "next": None},
            {"extents": [[0, 5]], "next": 4},
            {"extents": [[0, 5]], "next": "5"},
            {"extents": [[0, 5]], "next": 5},
            {"extents": [], "next": 0},
        ],
    )
    def test_extents(
        self, fake_daemon: FakeDaemon, taker: Taker, image: Node, answer: object
    ) -> None:
        image.blocks = 1
        fake_daemon.results["extents"] = answer
        with pytest.raises(BadReply):
            download(taker)
        assert asked(fake_daemon, "extents") <= 2
        assert asked(fake_daemon, "close") == 1

    def test_extents_that_never_come(
        self, fake_daemon: FakeDaemon, taker: Taker, image: Node
    ) -> None:
        image.blocks = 1
        vars(fake_daemon)["do_extents"] = lambda *asked: {"extents": [], "next": asked[3] + 1}
        with pytest.raises(BadReply, match="lead nowhere"):
            download(taker)
        assert asked(fake_daemon, "extents") == 1

    @pytest.mark.parametrize("method", ["stat", "load", "attach"])
    @pytest.mark.parametrize("answer", [None, {}, "1", {"length": -1}])
    def test_others(
        self, fake_daemon: FakeDaemon, taker: Taker, way: Way, method: str, answer: object
    ) -> None:
        fake_daemon.results[method] = answer
        if method != "stat" and transfer.LENT_LEAST != 1:
            assert way(taker)[1] == IMAGE
            return
        with pytest.raises(BadReply):
            way(taker)
        assert asked(fake_daemon, "close") == 1
