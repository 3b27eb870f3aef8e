"""What is the synchronous client's own: interruptions, and whose a client is."""

import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from types import FrameType
from typing import Any, cast

import pytest

from tests.fake.rpc_server import IMAGE, FakeDaemon, FaultError, Node, directory
from vuserd.client import Client, calls
from vuserd.client.errors import ConnectionLost, NotTaken
from vuserd.client.records import Entry
from vuserd.wire.codec import Request

MAIN = threading.main_thread().ident
CODE = os.path.dirname(sys.modules[Client.__module__].__file__ or "")


@pytest.fixture
def client(fake_daemon: FakeDaemon) -> Iterator[Client]:
    with Client.connect(fake_daemon.address) as connected:
        yield connected


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def press_ctrl_c() -> None:
    """Interrupt the main thread, in its system call: before that, Python would notice it later."""
    assert MAIN is not None
    while state() != "S":
        time.sleep(0.001)
    time.sleep(0.01)
    signal.pthread_kill(MAIN, signal.SIGINT)


def state() -> str:
    """Return the state of the main thread, by proc(5)."""
    with open(f"/proc/self/task/{os.getpid()}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


@pytest.fixture
def ctrl_c(fake_daemon: FakeDaemon) -> Iterator[Callable[[str], threading.Event]]:
    """Interrupt a method's call, whatever SIGINT did; its answer comes when the event is set."""
    answered = threading.Event()

    def interrupt(method: str) -> threading.Event:
        def press(request: Request) -> None:
            if request.method == method and not answered.is_set():
                press_ctrl_c()
                assert answered.wait(10)

        fake_daemon.before = press
        return answered

    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield interrupt
    answered.set()


class TestInterrupted:
    """By Ctrl-C: that ends the call, and the client goes on over the same connection."""

    @pytest.mark.parametrize("method", ["stat", "read", "fetch", "open", "attach"])
    def test_while_it_waits(
        self,
        client: Client,
        fake_daemon: FakeDaemon,
        ctrl_c: Callable[[str], threading.Event],
        method: str,
    ) -> None:
        client.exports()
        before = descriptors()
        answered = ctrl_c(method)
        asked: dict[str, Callable[[], Any]] = {
            "stat": lambda: client.stat("kernels", "image"),
            "read": lambda: client.read("kernels", "image", 0, 300_000),
            "fetch": lambda: client.fetch("kernels", "image"),
            "open": lambda: client.stream("kernels", "image", lambda _: None),
            "attach": lambda: client.attach(size=4096),
        }
        with pytest.raises(KeyboardInterrupt):
            asked[method]()
        answered.set()
        assert client.read("kernels", "image", 0, 300_001) == IMAGE  # behind the late answer
        client.exports()
        client.exports()  # behind the answer of what undoes it
        assert (fake_daemon.connections, fake_daemon.open, fake_daemon.memories) == (1, {}, {})
        assert descriptors() == before

    def test_in_the_middle_of_a_payload(
        self, client: Client, fake_daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The rest of it is dropped, and what was attached is there still."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        goes_on = threading.Event()
        send = FakeDaemon._send

        def send_half(
            self: FakeDaemon, connection: socket.socket, frame: bytes, *more: Any
        ) -> None:
            if len(frame) < 100_000:
                send(self, connection, frame, *more)
                return
            connection.sendall(frame[:77_777])
            press_ctrl_c()
            assert goes_on.wait(10)
            connection.sendall(frame[77_777:])

        with client.attach(size=4096) as memory:
            monkeypatch.setattr(FakeDaemon, "_send", send_half)
            with pytest.raises(KeyboardInterrupt):
                client.read("kernels", "image", 0, 300_000)
            goes_on.set()
            assert client.stat("kernels", "image").size == len(IMAGE)
            assert memory.load("kernels", "odd", 0) == 3
        assert fake_daemon.connections == 1

    def test_between_two_calls(self, client: Client, fake_daemon: FakeDaemon) -> None:
        """What is cleaned up then is not waited for: the daemon may be silent."""
        goes_on = threading.Event()
        begin = client._talk.begin

        def be_silent(_: Request) -> None:
            assert goes_on.wait(10)

        def interrupted(call: Any, *more: Any) -> Any:
            if call.method == "read":
                fake_daemon.before = be_silent
                raise KeyboardInterrupt
            return begin(call, *more)

        vars(client._talk)["begin"] = interrupted
        with pytest.raises(KeyboardInterrupt):
            client.stream("kernels", "image", lambda _: None)
        del vars(client._talk)["begin"]
        assert len(fake_daemon.open) == 1
        goes_on.set()
        client.exports()
        assert fake_daemon.open == {}

    @pytest.mark.parametrize("offset", range(2))
    def test_anywhere(self, client: Client, fake_daemon: FakeDaemon, offset: int) -> None:
        """Before each instruction of the clients' code; at worst, the client connects again."""
        client.exports()
        gc.collect()  # what tests before this one left
        before = descriptors() - fake_daemon.connections  # which keeps its end of each
        nth = interrupted = offset
        while interrupted == nth:
            nth += 20
            interrupted = interrupt_before(nth, lambda: client.read("kernels", "image", 0, 10))
            assert client.read("kernels", "image", 20, 7) == IMAGE[20:27]
            with client.fetch("kernels", "odd") as image:
                assert bytes(image.buffer()) == b"odd"
            assert descriptors() - fake_daemon.connections == before
        assert nth > 500
        assert fake_daemon.connections < nth / 10

    def test_one_that_cannot_connect_again(self, fake_daemon: FakeDaemon) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(fake_daemon.address)
        with Client(sock) as client:
            ticket = client.begin(calls.exports())
            client._talk.link.core.changing = True
            with pytest.raises(ConnectionLost, match="interrupted") as caught:
                client.finish(ticket)
            assert not isinstance(caught.value, NotTaken)
            with pytest.raises(NotTaken, match="interrupted"):
                client.exports()


def interrupt_before(nth: int, do: Callable[[], object]) -> int:
    """Do something, with KeyboardInterrupt before an instruction; return which one that was."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(CODE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            count += 1
            if count == nth:
                raise KeyboardInterrupt
        return trace

    former = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # or 3.12's settrace() leaves them out the first time
    sys.settrace(trace)
    try:
        do()
    except KeyboardInterrupt:
        return nth
    finally:
        sys.settrace(former)
    return count


class TestOwner:
    def test_a_second_thread(self, client: Client) -> None:
        told: list[str] = []

        def use() -> None:
            with pytest.raises(RuntimeError) as caught:
                client.exports()
            told.append(str(caught.value))

        thread = threading.Thread(target=use, name="rig-2")
        thread.start()
        thread.join()
        words = (
            "this client is thread 'MainThread''s, and thread 'rig-2' has called it: give each"
            " thread a client of its own, or share a vuserd.client.ClientPool"
        )
        assert told == [words]
        assert client.exports()

    def test_the_thread_has_ended(self, fake_daemon: FakeDaemon) -> None:
        made: list[Client] = []
        thread = threading.Thread(target=lambda: made.append(Client.connect(fake_daemon.address)))
        thread.start()
        thread.join()
        # Others have the number that it had, by now.
        ended = threading.Event()
        others = [threading.Thread(target=ended.wait) for _ in range(10)]
        for other in others:
            other.start()
        try:
            with made.pop() as client:
                assert client.exports()
        finally:
            ended.set()
            for other in others:
                other.join()

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_the_child_of_a_fork(self, client: Client, fake_daemon: FakeDaemon) -> None:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                client.exports()
            except RuntimeError as error:
                os.write(writing, str(error).encode())
            client.close()
            os._exit(0)
        os.close(writing)
        with open(reading) as pipe:
            told = pipe.read()
        os.waitpid(child, 0)
        assert told == (
            f"this client is process {os.getpid()}'s, and its fork, process {child}, has called it:"
            " connect a client of its own there"
        )
        assert client.exports()
        assert fake_daemon.connections == 1

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_what_the_child_of_a_fork_cleans_up(
        self, client: Client, fake_daemon: FakeDaemon
    ) -> None:
        """The child sends nothing on the connection: what it has of it is the parent's."""
        ticket = client.begin(calls.open_file("kernels", "image"))
        client.exports()  # its answer comes after the other one
        assert ticket.done
        child = os.fork()
        if not child:
            client.abandon(ticket)
            client.close()
            os._exit(0)
        os.waitpid(child, 0)
        opened = client.finish(ticket)
        client.exports()
        assert [file for _, file in fake_daemon.open] == [opened.file]
        client.call(calls.close_file(opened.file))
        assert fake_daemon.connections == 1


class TestInBetween:
    """What Python's cycle collector ends: in the midst of another call, or in another thread."""

    @pytest.fixture
    def listing(self, client: Client, fake_daemon: FakeDaemon) -> Generator[Entry, None, None]:
        """Return a listing whose next page is on its way."""
        fake_daemon.root.children[b"many"] = directory(**{f"f{i}": Node() for i in range(1500)})
        listing = cast("Generator[Entry, None, None]", client.iterdir("kernels", "many"))
        next(listing)
        return listing

    @pytest.mark.parametrize(
        ("part", "name"),
        [
            ("outgoing", "append"),
            ("outgoing", "next_piece"),
            ("outgoing", "sent"),
            ("_decoder", "feed"),
        ],
    )
    def test_a_listing(
        self,
        client: Client,
        fake_daemon: FakeDaemon,
        listing: Generator[Entry, None, None],
        part: str,
        name: str,
    ) -> None:
        core = client._talk.link.core
        owner = getattr(core, part)
        do = getattr(owner, name)

        def do_and_collect(*arguments: Any) -> Any:
            done = do(*arguments)
            listing.close()
            return done

        vars(owner)[name] = do_and_collect
        assert client.exports()
        del vars(owner)[name]
        assert client.exports()
        assert [request.method for request in fake_daemon.requests].count("exports") == 2
        assert fake_daemon.connections == 1
        assert not core.is_awaited

    @pytest.mark.parametrize("then", ["abandon", "send", "hear"])
    def test_what_an_interruption_has_left_half_done(self, client: Client, then: str) -> None:
        """It is no call that is under way: the connection is given up at once."""
        link = client._talk.link
        ticket = client.begin(calls.exports())
        link.core.changing = True
        {"abandon": lambda: client.abandon(ticket), "send": link.send, "hear": link.hear}[then]()
        assert link.core.is_over
        assert client.exports()

    def test_another_thread(
        self, client: Client, fake_daemon: FakeDaemon, listing: Generator[Entry, None, None]
    ) -> None:
        fake_daemon.root.children[b"large"] = Node(content=b"large")
        vars(fake_daemon)["do_fetch"] = too_large
        file = client.open("kernels", "large")

        def collect(request: Request) -> None:
            if request.method == "exports":
                for end in (listing.close, file.close):
                    thread = threading.Thread(target=end)
                    thread.start()
                    thread.join()

        fake_daemon.before = collect
        assert client.exports()
        assert client.exports()  # behind what was postponed
        assert fake_daemon.open == {}
        assert not client._talk.link.core.is_awaited
        assert fake_daemon.connections == 1


def too_large(*_: object) -> object:
    raise FaultError("TOO_LARGE", "too large for an image")
