"""What is the synchronous client's own: time-outs, and interruptions."""

import socket
from collections.abc import Iterator

import pytest

from tests.fake.rpc_server import FakeDaemon
from vuserd.client import Client, calls
from vuserd.client.errors import ConnectionLost, NotTaken


@pytest.fixture
def client(fake_daemon: FakeDaemon) -> Iterator[Client]:
    with Client.connect(fake_daemon.address) as connected:
        yield connected


class TestInterrupted:
    def test_interrupted_in_the_middle(self, client: Client) -> None:
        class Interrupt(BaseException):
            pass

        def interrupt() -> memoryview:
            raise Interrupt

        ticket = client.begin(calls.exports())
        client._talk.link.core.receive_buffer = interrupt  # type: ignore[method-assign]
        with pytest.raises(Interrupt):
            client.finish(ticket)
        with pytest.raises(ConnectionLost, match="interrupted"):
            client.finish(ticket)

    def test_interrupted_when_bytes_were_sent(
        self, client: Client, fake_daemon: FakeDaemon
    ) -> None:
        """The daemon has a request that the client could not record: it is not refused."""

        def interrupt(_: int) -> None:
            raise KeyboardInterrupt

        core = client._talk.link.core
        vars(core.outgoing)["sent"] = interrupt
        ticket = core.begin(calls.exports())
        with pytest.raises(KeyboardInterrupt):
            client.finish(ticket)
        fake_daemon.wait_for_requests(1)
        with pytest.raises(ConnectionLost, match="interrupted") as caught:
            client.finish(ticket)
        assert not isinstance(caught.value, NotTaken)


class TestTimeOut:
    def test_time_out(self, fake_daemon: FakeDaemon) -> None:
        fake_daemon.hold = 2
        with (
            Client.connect(fake_daemon.address, timeout=0.01) as client,
            pytest.raises(ConnectionLost, match="does not answer"),
        ):
            client.exports()

    @pytest.mark.timeout(10)
    def test_time_out_of_what_is_not_sent(self, fake_daemon: FakeDaemon) -> None:
        """The daemon reads nothing, and the socket holds no more."""
        fake_daemon.reads.clear()
        with Client.connect(fake_daemon.address, timeout=0.01) as client:
            tickets = [client.begin(calls.stat("kernels", "x" * 900_000)) for _ in range(2)]
            assert client._talk.link.core.outgoing
            for ticket in tickets:
                with pytest.raises(ConnectionLost, match="does not answer"):
                    client.finish(ticket)
            with pytest.raises(NotTaken, match="does not answer"):
                client.exports()
        assert fake_daemon.connections == 1

    @pytest.mark.timeout(10)
    def test_time_out_over_a_socket_of_the_callers(self, fake_daemon: FakeDaemon) -> None:
        fake_daemon.reads.clear()
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(fake_daemon.address)
        with (
            Client(sock, 0.01) as client,
            pytest.raises(ConnectionLost, match="does not answer"),
        ):
            client.stat("kernels", "x" * 900_000)

    def test_a_time_out_ends_it_for_good(self, fake_daemon: FakeDaemon) -> None:
        fake_daemon.hold = 2
        with Client.connect(fake_daemon.address, timeout=0.01) as client:
            with pytest.raises(ConnectionLost) as caught:
                client.exports()
            assert not isinstance(caught.value, NotTaken)
            with pytest.raises(NotTaken, match="does not answer"):
                client.exports()
