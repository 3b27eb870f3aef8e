"""All clients across restarts of the daemon: no call is lost, and none is done twice."""

import os
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from tests.fake.rpc_server import IMAGE, FakeDaemon, Node, directory
from tests.unit.faces import Connect
from vuserd.client import Client, calls, composite
from vuserd.client.core import reconnect
from vuserd.client.core.connection import ClientCore
from vuserd.client.core.reconnect import Approach, is_silent, queue_is_full
from vuserd.client.core.ticket import Ticket
from vuserd.client.errors import CannotConnect, ConnectionLost, NotTaken, RemoteError
from vuserd.client.files.transfer import Resumption
from vuserd.ctl import main
from vuserd.wire import address
from vuserd.wire.address import Candidate
from vuserd.wire.codec import Request, encode_notification, encode_response

#: More than a socket takes whose peer does not read.
_LONG: Final = "x" * 900_000

#: A request, as ``trace`` tells it.
TRACED: Final = {
    "unique": 4,
    "opcode": "STATFS",
    "node": 1,
    "path": "/",
    "arguments": {},
    "size": 40,
    "sent_ns": 1_600_000_000_000_000_000,
    "monotonic_ns": 5,
    "took_ns": 1500,
    "outcome": "OK",
    "length": 80,
}


@pytest.fixture
def client(connect: Connect, fake_daemon: FakeDaemon) -> Iterator[Client]:
    """Use a client that has made a call."""
    with connect(fake_daemon.address) as connected:
        assert connected.stat("kernels", "image")
        yield connected


def asked(daemon: FakeDaemon, method: str) -> int:
    return sum(request.method == method for request in daemon.requests)


def outcome(ticket: Ticket[Any]) -> str:
    try:
        ticket.result()
    except ConnectionLost as error:
        return type(error).__name__
    except RuntimeError:
        return "awaited"
    return "answered"


def test_a_client_that_was_stopped_for_all_of_its_patience(
    client: Client, fake_daemon: FakeDaemon
) -> None:
    """It looks for the daemon's successor once all the same."""
    now, stops = client._talk.now, iter(range(0, 10_000, 100))
    fake_daemon.end_connections()
    vars(client._talk)["now"] = lambda: now() + next(stops)
    assert client.exports()
    assert fake_daemon.connections == 2


class TestCore:
    """Which of its calls the daemon cannot have taken."""

    def begun(self, sent: int) -> tuple[ClientCore, list[Ticket[Any]]]:
        """Begin three calls of the same size, of whose bytes ``sent`` less than all were sent."""
        core = ClientCore()
        tickets: list[Ticket[Any]] = [core.begin(calls.rigs()) for _ in range(3)]
        core.outgoing.sent(len(core.outgoing) - sent)
        return core, tickets

    @pytest.mark.parametrize(
        ("unsent", "unread", "outcomes"),
        [
            (0, False, ["awaited"] * 3),
            (1, False, ["awaited", "awaited", "NotTaken"]),
            (12, False, ["awaited", "NotTaken", "NotTaken"]),
            (0, True, ["awaited", "awaited", "NotTaken"]),
            (1, True, ["awaited", "awaited", "NotTaken"]),
        ],
    )
    def test_closed_for_requests(self, unsent: int, unread: bool, outcomes: list[str]) -> None:
        core, tickets = self.begun(unsent)
        failed = core.closed_for_requests(unread=unread)
        assert [outcome(ticket) for ticket in tickets] == outcomes
        assert failed == [t for t, what in zip(tickets, outcomes, strict=True) if what != "awaited"]
        assert outcome(core.begin(calls.exports())) == "NotTaken"
        assert not core.outgoing
        reply = encode_response(tickets[0].msgid, None, [])
        core.receive_buffer()[: len(reply)] = reply
        assert core.received(len(reply)) == tickets[:1]
        core.received(0)
        assert outcome(tickets[1]) == outcomes[1].replace("awaited", "ConnectionLost")

    @pytest.mark.parametrize(
        ("unsent", "unread", "outcomes"),
        [
            (0, False, ["ConnectionLost"] * 3),
            (1, False, ["ConnectionLost", "ConnectionLost", "NotTaken"]),
            (0, True, ["ConnectionLost", "ConnectionLost", "NotTaken"]),
        ],
    )
    def test_ended(self, unsent: int, unread: bool, outcomes: list[str]) -> None:
        core, tickets = self.begun(unsent)
        core.ended(unread=unread)
        assert [outcome(ticket) for ticket in tickets] == outcomes
        assert core.can_be_replaced

    @pytest.mark.parametrize("unsent", [0, 1, 12])
    def test_interrupted(self, unsent: int) -> None:
        """Bytes may have been sent that the client could not account for."""
        core, tickets = self.begun(unsent)
        assert core.interrupted("interrupted") == tickets
        assert [outcome(ticket) for ticket in tickets] == ["ConnectionLost"] * 3
        assert outcome(core.begin(calls.exports())) == "NotTaken"
        assert not core.outgoing
        assert core.can_be_replaced

    def test_what_ends_with_it(self) -> None:
        core = ClientCore(duplicate=lambda descriptor: descriptor, close=lambda _: None)
        attach = core.begin(calls.attach(99, 4096))
        core.outgoing.sent(len(core.outgoing))
        reply = encode_response(attach.msgid, None, 5)
        core.receive_buffer()[: len(reply)] = reply
        core.received(len(reply))
        core.ended()
        assert not core.can_be_replaced
        core.begin(calls.detach(5))
        assert core.can_be_replaced

    @pytest.mark.parametrize(("code", "replaced"), [("SHUTTING_DOWN", True), ("BUSY", False)])
    def test_the_daemons_last_word(self, code: str, replaced: bool) -> None:
        core = ClientCore()
        word = encode_notification("error", [{"code": code, "message": "not now"}])
        core.receive_buffer()[: len(word)] = word
        core.received(len(word))
        core.received(0)
        assert core.can_be_replaced is replaced
        with pytest.raises(NotTaken, match=f"closed the connection: not now .{code}"):
            core.begin(calls.exports()).result()

    def test_one_that_was_lost_here_is_not_replaced(self) -> None:
        core = ClientCore()
        core.lost("the client was closed")
        assert not core.can_be_replaced

    def test_a_call_begun_again(self) -> None:
        first, second = ClientCore(), ClientCore()
        first.ended()
        buffer = bytearray(4)
        ticket = first.begin(calls.read_into("k", "f", 0, buffer))
        assert outcome(ticket) == "NotTaken"
        ticket = first.begin(calls.read_into("k", "f", 0, buffer))
        second.begin_again(ticket)
        reply = encode_response(ticket.msgid, None, b"1234")
        while reply:
            view = second.receive_buffer()
            count = min(len(view), len(reply))
            view[:count] = reply[:count]
            reply = reply[count:]
            second.received(count)
        assert ticket.result() == 4
        assert buffer == b"1234"

    def test_a_call_given_up(self) -> None:
        core = ClientCore()
        core.ended()
        buffer = bytearray(4)
        ticket = core.begin(calls.read_into("k", "f", 0, buffer))
        core.abandon(ticket)
        assert ticket.refused is None
        buffer.clear()  # no view of it is left


class TestRestart:
    def test_between_two_calls(self, client: Client, fake_daemon: FakeDaemon) -> None:
        for number in range(3):
            fake_daemon.end_connections()
            assert client.stat("kernels", "image").size == len(IMAGE)
            assert fake_daemon.connections == 2 + number
        assert asked(fake_daemon, "stat") == 4
        assert client._talk.former == []

    def test_what_was_taken_is_answered(self, client: Client, fake_daemon: FakeDaemon) -> None:
        fake_daemon.hold = 100
        taken = [client.begin(calls.read_into("kernels", "image", n, bytearray(9))) for n in (1, 2)]
        fake_daemon.wait_for_requests(3)
        fake_daemon.reads.clear()  # it does not see the end yet
        fake_daemon.end_connections()
        fake_daemon.hold = 1
        buffer = bytearray(7)
        refused = client.begin(calls.read_into("kernels", "image", 5, buffer))
        fake_daemon.reads.set()
        assert client.finish(refused) == 7
        assert buffer == IMAGE[5:12]
        assert [client.finish(ticket) for ticket in taken] == [9, 9]
        assert asked(fake_daemon, "read") == 3
        assert fake_daemon.connections == 2
        assert client._talk.former == []

    def test_half_a_request(self, client: Client, fake_daemon: FakeDaemon) -> None:
        fake_daemon.reads.clear()
        ticket = client.begin(calls.stat("kernels", _LONG))
        fake_daemon.end_connections()
        fake_daemon.reads.set()
        with pytest.raises(RemoteError, match="ENOENT"):
            client.finish(ticket)
        assert asked(fake_daemon, "stat") == 2
        assert fake_daemon.connections == 2

    def test_not_wanted(self, connect: Connect, fake_daemon: FakeDaemon) -> None:
        with connect(fake_daemon.address, reconnect=0) as client:
            client.exports()
            fake_daemon.end_connections()
            with pytest.raises(NotTaken, match="the daemon closed the connection"):
                client.exports()
        assert fake_daemon.connections == 1

    def test_over_a_socket_of_the_callers(self, fake_daemon: FakeDaemon) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(fake_daemon.address)
        with Client(sock) as client:
            client.exports()
            fake_daemon.end_connections()
            with pytest.raises(NotTaken):
                client.exports()

    def test_closed_here(self, client: Client, fake_daemon: FakeDaemon) -> None:
        client.close()
        with pytest.raises(NotTaken, match="the client was closed"):
            client.exports()
        assert fake_daemon.connections == 1

    def test_with_memory_attached(self, client: Client, fake_daemon: FakeDaemon) -> None:
        with client.attach(size=4096) as memory:
            fake_daemon.end_connections()
            with pytest.raises(NotTaken, match=r"memory was attached .* had no effect"):
                client.exports()
            with pytest.raises(NotTaken, match="memory was attached"):
                memory.load("kernels", "image", 0, length=10)
            assert fake_daemon.connections == 1
        assert len(client.exports()) == 2
        assert fake_daemon.connections == 2

    def test_detaching_is_not_sent_elsewhere(self, client: Client, fake_daemon: FakeDaemon) -> None:
        memory = client.attach(size=4096)
        fake_daemon.end_connections()
        with pytest.raises(NotTaken):
            memory.detach()
        assert (asked(fake_daemon, "detach"), fake_daemon.connections) == (0, 1)

    def test_in_a_walk(self, client: Client, fake_daemon: FakeDaemon) -> None:
        """A page that was asked for ahead is still answered; there are further ones."""
        fake_daemon.root.children = {name: Node() for name in (b"a", b"b", b"c", b"d")}
        walk = client.iterwalk("kernels", "")
        assert next(walk).path == "a"
        fake_daemon.end_connections()
        with pytest.raises(NotTaken, match="which walks and trees went on"):
            list(walk)
        assert [entry.path for entry in client.iterwalk("kernels", "")] == ["a", "b", "c", "d"]

    def test_in_a_walk_whose_caller_makes_other_calls(
        self, client: Client, fake_daemon: FakeDaemon
    ) -> None:
        """They go to the successor, and the connection that the walk was on is closed."""
        killed = threading.Event()

        def keep_the_second(request: Request) -> None:
            if request.method == "walk" and asked(fake_daemon, "walk") > 1:
                killed.wait()

        entries = [{"path": name, "type": "file", "ino": 1} for name in "abc"]
        fake_daemon.results["walk"] = {"entries": entries, "problems": [], "next": b"more"}
        fake_daemon.before = keep_the_second
        walk = client.iterwalk("kernels", "")
        assert next(walk).path == "a"
        fake_daemon.cut_connections()
        killed.set()
        assert client.stat("kernels", "image")
        time.sleep(composite._A_WHILE)  # it looks what has come when so much time is over
        with pytest.raises(ConnectionLost):
            list(walk)

    def test_with_a_walk_left_alone(self, client: Client, fake_daemon: FakeDaemon) -> None:
        fake_daemon.root.children = {name: Node() for name in (b"a", b"b", b"c", b"d")}
        walk = client.iterwalk("kernels", "")
        assert next(walk).path == "a"
        fake_daemon.end_connections()
        with suppress(NotTaken):  # the daemon may not have read what asks for the next page
            client.exports()
        assert isinstance(walk, Generator)
        walk.close()
        assert client.exports()

    def test_with_a_page_that_leads_on(self, client: Client, fake_daemon: FakeDaemon) -> None:
        assert client.walk("kernels", "boot").next is not None
        fake_daemon.end_connections()
        with pytest.raises(NotTaken, match="which walks and trees went on"):
            client.exports()

    def test_a_listing_goes_on(self, client: Client, fake_daemon: FakeDaemon) -> None:
        fake_daemon.root.children = {b"%04d" % n: Node() for n in range(3500)}
        names = []
        for entry in client.iterdir("kernels", ""):
            names.append(entry.name)
            if entry.name in ("0100", "1100"):
                fake_daemon.end_connections()
        assert names == [f"{n:04}" for n in range(3500)]

    def test_many_threads(self, connect: Connect, fake_daemon: FakeDaemon) -> None:
        """Every call is answered once, and taken once."""
        problems: list[BaseException] = []
        stopped = threading.Event()
        done = [0] * 4

        def work(number: int) -> None:
            try:
                with connect(fake_daemon.address) as client:
                    while not stopped.is_set():
                        first = done[number]
                        tickets = [
                            client.begin(calls.readlink("kernels", f"{number}/{first + n}"))
                            for n in range(5)
                        ]
                        for ticket in tickets:
                            with suppress(RemoteError):
                                client.finish(ticket)
                            done[number] += 1
            except BaseException as problem:
                problems.append(problem)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(done))]
        for thread in threads:
            thread.start()
        for _ in range(20):
            time.sleep(0.01)
            fake_daemon.end_connections()
        stopped.set()
        for thread in threads:
            thread.join()
        assert problems == []
        paths = [request.params[1] for request in fake_daemon.requests]
        assert len(paths) == len(set(paths))
        assert set(paths) == {f"{t}/{n}" for t, count in enumerate(done) for n in range(count)}


class TestSuccessor:
    """The search for the next daemon."""

    def test_one_that_comes_later(self, connect: Connect, tmp_path: Path) -> None:
        address = str(tmp_path / "s")
        with FakeDaemon(address, directory()):
            client = connect(address)
            client.exports()
        with client:
            os.unlink(address)
            later = FakeDaemon(address, directory(image=Node(content=b"new")))
            starting = threading.Timer(0.2, later.__enter__)
            starting.start()
            try:
                assert client.read("kernels", "image", 0, 3) == b"new"
            finally:
                starting.join()
                later.__exit__(None, None, None)

    def test_none(self, connect: Connect, tmp_path: Path) -> None:
        address = str(tmp_path / "s")
        with FakeDaemon(address, directory()):
            client = connect(address, reconnect=0.12)
            client.exports()
        with client, pytest.raises(NotTaken, match=r"within 0.12 s at .*/s: .*connection refused"):
            client.exports()

    def test_one_that_takes_nothing(self, connect: Connect, tmp_path: Path) -> None:
        with listening(tmp_path / "s", lambda _: None) as (address, accepted):
            with (
                connect(address, reconnect=0.2) as client,
                pytest.raises(NotTaken, match=r"no daemon took the call within 0.2 s"),
            ):
                client.exports()
            assert 2 <= len(accepted) <= 7  # with a pause in between

    def test_one_that_has_no_room(self, connect: Connect, tmp_path: Path) -> None:
        def refuse(connection: socket.socket) -> None:
            word = {"code": "BUSY", "message": "too many connections"}
            connection.send(encode_notification("error", [word]))

        with listening(tmp_path / "s", refuse) as (address, accepted):
            with (
                connect(address) as client,
                pytest.raises(NotTaken, match=r"too many connections .BUSY"),
            ):
                client.exports()
            assert len(accepted) == 1

    def test_one_who_is_not_the_daemon(
        self, fake_daemon: FakeDaemon, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(_: socket.socket, __: Candidate) -> None:
            raise PermissionError(1, "uid 7 listens there, who is not the daemon")

        monkeypatch.setattr(reconnect, "check_listener", refuse)
        fake_daemon.end_connections()
        with pytest.raises(NotTaken, match="uid 7 listens there"):
            client.exports()

    def test_what_was_not_read_is_sent_again(self, connect: Connect, tmp_path: Path) -> None:
        """The last request may have been the only one that was not read: the others are lost."""
        with listening(tmp_path / "s", lambda _: None, delay=0.05) as (address, _):
            client = connect(address, reconnect=0.01)
            with client:
                first, last = (client.begin(calls.exports()) for _ in range(2))
                with pytest.raises(ConnectionLost) as lost:
                    client.finish(first)
                assert not isinstance(lost.value, NotTaken)
                with pytest.raises(NotTaken):
                    client.finish(last)


@contextmanager
def listening(
    path: Path, greet: Callable[[socket.socket], None], delay: float = 0.0
) -> Iterator[tuple[str, list[int]]]:
    """Accept clients, greet them, and read nothing that they send."""
    accepted: list[int] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                accepted.append(1)
                time.sleep(delay)
                greet(connection)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield str(path), accepted
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.usefixtures("small_chunks")
class TestWholeFiles:
    """A transfer goes on where it was."""

    def end_once(self, fake_daemon: FakeDaemon, at: int = 8, times: int = 1) -> None:
        """End all connections before the answer of this number, and again after as many more."""
        answered = 0

        def end(_: Request) -> None:
            nonlocal answered
            answered += 1
            if answered in range(at, at * times + 1, at):
                fake_daemon.end_connections()

        fake_daemon.before = end

    @pytest.mark.parametrize("times", [1, 4])
    def test_download(
        self, connect: Connect, fake_daemon: FakeDaemon, tmp_path: Path, times: int
    ) -> None:
        self.end_once(fake_daemon, times=times)
        told: list[int] = []
        with connect(fake_daemon.address) as client, open(tmp_path / "f", "wb") as copy:
            client.download(
                "kernels", "image", copy.fileno(), progress=lambda there, _: told.append(there)
            )
        assert (tmp_path / "f").read_bytes() == IMAGE
        assert told == sorted(set(told))  # and nothing twice
        assert fake_daemon.connections == 1 + times

    def test_stream(self, connect: Connect, fake_daemon: FakeDaemon) -> None:
        self.end_once(fake_daemon, times=3)
        collected = bytearray()
        with connect(fake_daemon.address) as client:
            client.stream("kernels", "image", collected.extend)
        assert collected == IMAGE

    def test_with_memory_attached(self, connect: Connect, fake_daemon: FakeDaemon) -> None:
        """Nothing can go on there, and it does not look for a successor as long as it might."""
        self.end_once(fake_daemon)
        begun, patience = time.monotonic(), 4.0
        with (
            connect(fake_daemon.address, reconnect=patience) as client,
            client.attach(size=4096),
            pytest.raises(NotTaken, match="memory was attached"),
        ):
            client.stream("kernels", "image", bytearray().extend)
        assert time.monotonic() - begun < patience
        assert fake_daemon.connections == 1

    def test_not_wanted(self, connect: Connect, fake_daemon: FakeDaemon) -> None:
        self.end_once(fake_daemon)
        with (
            connect(fake_daemon.address, reconnect=0) as client,
            pytest.raises(NotTaken),
        ):
            client.stream("kernels", "image", bytearray().extend)


class TestResumption:
    def test_it_ends_where_nothing_gets_further(self) -> None:
        resumption = Resumption(10.0)
        assert resumption.after(0, 0.0)
        assert resumption.after(40, 9.0)
        assert resumption.after(40, 18.0)
        assert not resumption.after(40, 19.5)
        assert not Resumption(0.0).after(40, 0.0)


class TestVuserctl:
    def test_load_starts_over_once(
        self, fake_daemon: FakeDaemon, capfd: pytest.CaptureFixture[str]
    ) -> None:
        ends = [1]

        def end(request: Request) -> None:
            if request.method == "attach" and len(ends) > 0:
                ends.pop()
                fake_daemon.end_connections()

        fake_daemon.before = end
        memfd = os.memfd_create("rig", os.MFD_ALLOW_SEALING)
        arguments = ["--socket", fake_daemon.address, "load", "kernels:image"]
        arguments += ["--memory", str(memfd), "--address", "0"]
        try:
            os.ftruncate(memfd, 1 << 20)
            assert main.run(arguments) == 0
            assert os.pread(memfd, len(IMAGE), 0) == IMAGE
            assert "300001 bytes" in capfd.readouterr().out
            ends += [1, 1]
            assert main.run(arguments) == 1
            assert "this call had no effect" in capfd.readouterr().err
        finally:
            os.close(memfd)

    def test_a_trace_ends_with_its_connection(
        self, fake_daemon: FakeDaemon, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """For what happens before another one begins would be missing in it."""

        def end(_: Request) -> None:
            if asked(fake_daemon, "trace") == 2:
                fake_daemon.end_connections()
            if fake_daemon.connections > 1:
                fake_daemon.results["trace"] = {"events": [TRACED], "lost": 0}

        fake_daemon.results["trace"] = {"events": [], "lost": 0}
        fake_daemon.before = end
        arguments = ["--socket", fake_daemon.address, "trace", "kernels", "-n", "1"]
        assert main.run(arguments) == 1
        assert capfd.readouterr().err == "vuserctl: the daemon closed the connection\n"
        assert (asked(fake_daemon, "trace"), fake_daemon.connections) == (2, 1)


class TestCannotConnect:
    REFUSED: Final = ConnectionRefusedError(111, "Connection refused")
    MISSING: Final = FileNotFoundError(2, "No such file or directory")
    DENIED: Final = PermissionError(13, "Permission denied")

    def words(self, *attempts: tuple[str, OSError]) -> str:
        return str(CannotConnect(attempts))

    def test_the_rigs_socket_is_left_out_where_nobody_listens(self) -> None:
        words = self.words(("@vuserd", self.REFUSED), ("/run/s", self.MISSING))
        assert "(/run/s: no such file or directory). Is it running?" in words
        assert "@vuserd" not in words

    def test_the_rigs_socket_alone_and_with_another_reason(self) -> None:
        assert "(@vuserd: connection refused)" in self.words(("@vuserd", self.REFUSED))
        wrong = PermissionError(1, "uid 7 listens there")
        words = self.words(("@vuserd", wrong), ("/run/s", self.MISSING))
        assert "(@vuserd: uid 7 listens there; /run/s: no such" in words

    def test_a_daemon_that_is_silent(self) -> None:
        words = self.words(("/run/user/1/s", self.MISSING), ("/run/s", is_silent(4)))
        assert "/run/s: there was no answer within 4 s). The socket is there, but" in words
        assert "Is it running" not in words

    def test_where_it_runs_for_others(self) -> None:
        words = self.words(("/run/user/1/s", self.MISSING), ("/run/s", self.DENIED))
        assert "/run/s: permission denied). The daemon's configuration" in words
        assert "Is it running" not in words


class TestApproach:
    FIRST, LAST = (Candidate(name, is_guessed=True) for name in ("@vuserd", "/run/s"))

    def test_guesses_that_were_slow_come_again(self) -> None:
        approach = Approach([self.FIRST, self.LAST])
        tried = []
        for candidate, connecting, answering in approach:
            tried.append((candidate, connecting, answering))
            slow = candidate == self.FIRST
            error = is_silent(answering) if slow else FileNotFoundError(2, "No")
            approach.failed(candidate, error)
        assert tried == [(self.FIRST, 1, 1), (self.LAST, 1, 30), (self.FIRST, 10, 10)]
        words = "(@vuserd: there was no answer within 10 s; /run/s: no)"
        assert words in str(approach.error())

    def test_who_takes_the_connection_at_a_path_is_waited_for_once(self) -> None:
        """A queue that was full may be shorter by now; who is silent had all the time there is."""
        for error, turns in ((is_silent, [30]), (queue_is_full, [30, 30])):
            approach = Approach([self.LAST])
            tried = []
            for candidate, _, answering in approach:
                tried.append(answering)
                approach.failed(candidate, error(answering))
            assert tried == turns

    def test_a_name_has_patience_and_one_turn(self) -> None:
        named = Candidate("/s", is_guessed=False)
        for limit, allowed in ((0.0, 30.0), (0.5, 0.5)):
            approach = Approach([named], limit)
            turns = []
            for candidate, connecting, _ in approach:
                turns.append(connecting)
                approach.failed(candidate, queue_is_full(connecting))
            assert turns == [allowed]

    def test_the_user_s_own_is_waited_for_while_it_is_started(
        self,
        connect: Connect,
        fake_daemon: FakeDaemon,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Rather than what the user asks of it be asked of the system's daemon."""
        monkeypatch.setattr(reconnect, "_FOR_GUESSES", (0.05, 0.05))
        monkeypatch.setattr(address, "SYSTEM_SOCKET", str(tmp_path / "system"))
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        (tmp_path / "vuserd.sock").symlink_to(fake_daemon.address)
        fake_daemon.before = lambda _: time.sleep(0.3)
        with listening(tmp_path / "system", lambda _: None) as (_, others):
            with connect() as client:
                assert client.stat("kernels", "image").size == len(IMAGE)
            assert not others

    def test_what_is_no_daemon(
        self, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also at an address that was guessed, and whose listener is believed."""

        def greet(sock: socket.socket) -> None:
            sock.recv(1024)  # or the client could find it closed before it has said a word
            sock.sendall(b"SSH-2.0\r\n")

        with listening(tmp_path / "vuserd.sock", greet):
            monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
            with pytest.raises(CannotConnect, match="answered what it was not asked"):
                connect()
