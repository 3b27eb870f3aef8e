"""A call with too little time: it ends with TimedOut, and the client goes on."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.fake.rpc_server import IMAGE, FakeDaemon
from tests.unit.faces import Connect
from vuserd.client import Client, TimedOut, calls
from vuserd.wire.codec import Request

SHORT = 0.1


@pytest.fixture
def silence(fake_daemon: FakeDaemon) -> Iterator[Callable[[str], threading.Event]]:
    """Let the daemon answer a method when the event is set."""
    goes_on = threading.Event()

    def be_silent(method: str) -> threading.Event:
        def wait(request: Request) -> None:
            if request.method == method:
                assert goes_on.wait(10)

        fake_daemon.before = wait
        return goes_on

    yield be_silent
    goes_on.set()


ASKED: dict[str, Callable[[Client, Any], object]] = {
    "stat": lambda client, seconds: client.stat("kernels", "image", timeout=seconds),
    "read": lambda client, seconds: client.read("kernels", "image", 0, 9, timeout=seconds),
    "fetch": lambda client, seconds: client.fetch("kernels", "image", timeout=seconds),
    "readdir": lambda client, seconds: list(client.iterdir("kernels", "", timeout=seconds)),
    "walk": lambda client, seconds: list(client.iterwalk("kernels", "", timeout=seconds)),
    "open": lambda client, seconds: client.stream(
        "kernels", "image", bytearray().extend, timeout=seconds
    ),
    "attach": lambda client, seconds: client.attach(size=4096, timeout=seconds),
}


@pytest.mark.parametrize("method", ASKED)
def test_the_client_goes_on(
    client: Client,
    fake_daemon: FakeDaemon,
    silence: Callable[[str], threading.Event],
    method: str,
) -> None:
    list(client.iterdir("kernels", ""))  # what it asks once, before the call that is about time
    goes_on = silence(method)
    with pytest.raises(TimedOut, match=rf"{method}: the daemon did not answer within 0.1 s"):
        ASKED[method](client, SHORT)
    goes_on.set()
    assert client.read("kernels", "image", 5, 7) == IMAGE[5:12]
    client.exports()
    client.exports()  # behind what undoes the late answer
    assert (fake_daemon.connections, fake_daemon.open, fake_daemon.memories) == (1, {}, {})


def test_a_default_of_the_client(
    connect: Connect, fake_daemon: FakeDaemon, silence: Callable[[str], threading.Event]
) -> None:
    with connect(fake_daemon.address, timeout=SHORT) as client:
        goes_on = silence("stat")
        with pytest.raises(TimeoutError) as caught:
            client.stat("kernels", "image")
        assert (caught.value.filename, caught.value.errno) == ("kernels:image", None)
        threading.Timer(0.1, goes_on.set).start()
        assert client.stat("kernels", "image", timeout=10).type == "file"
        assert client.stat("kernels", "image", timeout=float("inf")).type == "file"


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_bad_one(
    client: Client, connect: Connect, fake_daemon: FakeDaemon, timeout: float
) -> None:
    with pytest.raises(ValueError, match="a timeout of"):
        client.exports(timeout=timeout)
    with pytest.raises(ValueError, match="a timeout of"):
        connect(fake_daemon.address, timeout=timeout)
    assert client.exports()


@pytest.mark.timeout(20)
def test_what_is_not_sent(client: Client, fake_daemon: FakeDaemon) -> None:
    """The daemon reads nothing, and the socket holds no more."""
    fake_daemon.reads.clear()
    for _ in range(2):
        with pytest.raises(TimedOut):
            client.stat("kernels", "x" * 900_000, timeout=SHORT)
    assert client._talk.link.core.outgoing
    fake_daemon.reads.set()
    assert client.exports()


def test_a_file_that_stops(
    client: Client, fake_daemon: FakeDaemon, silence: Callable[[str], threading.Event]
) -> None:
    """What it has to clean up takes no time of its own."""
    goes_on = silence("read")
    with pytest.raises(TimedOut):
        client.stream("kernels", "image", bytearray().extend, timeout=SHORT)
    goes_on.set()
    client.exports()
    client.exports()
    assert fake_daemon.open == {}


def test_one_that_is_waited_for_again(fake_daemon: FakeDaemon) -> None:
    fake_daemon.hold = 2
    with Client.connect(fake_daemon.address) as client:
        ticket = client.begin(calls.exports())
        with pytest.raises(TimedOut):
            client.finish(ticket, timeout=SHORT)
        client.exports()
        assert client.finish(ticket)


def test_one_of_weeks(client: Client, connect: Connect, fake_daemon: FakeDaemon) -> None:
    """No system call takes so long a time-out."""
    for seconds in (3e6, 1e300):
        assert client.exports(timeout=seconds)
        with connect(fake_daemon.address, timeout=seconds) as patient:
            assert patient.exports()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("error", [TimedOut, KeyboardInterrupt])
def test_memory_is_let_go_of_without_waiting(
    client: Client,
    fake_daemon: FakeDaemon,
    silence: Callable[[str], threading.Event],
    error: type[BaseException],
) -> None:
    """The daemon detaches it when the load ends that was given up."""
    goes_on = silence("load")
    memory = client.attach(size=4096)

    def use() -> None:
        with memory:
            with pytest.raises(TimedOut):
                memory.load("kernels", "image", 0, length=9, timeout=SHORT)
            raise error("as the load, or the user, would have it")

    with pytest.raises(error):
        use()
    assert not goes_on.is_set()
    memory.detach()  # which it is
    goes_on.set()
    client.exports()
    assert fake_daemon.memories == {}
    assert [request.method for request in fake_daemon.requests].count("detach") == 1
