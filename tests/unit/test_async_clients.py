"""The trio and the asyncio client: many tasks over one connection, and what becomes of one."""

import asyncio
import gc
import inspect
import os
import pydoc
import re
import socket
import threading
from contextlib import aclosing, nullcontext
from pathlib import Path
from typing import BinaryIO

import pytest
import trio
from trio.testing import MockClock

from tests.fake.rpc_server import IMAGE, FakeDaemon, FaultError, directory
from tests.loops import Loop
from vuserd.client import AsyncioClient, Client, TrioClient, calls
from vuserd.client.async_client import AsyncClient
from vuserd.client.errors import CannotConnect, ConnectionLost, NotTaken, RemoteError
from vuserd.client.files import destinations, sinks, transfer
from vuserd.wire.codec import Request

#: More than a socket holds that nobody reads from.
LONG = "x" * 900_000


class TestSurface:
    """It is that of the synchronous client, and shows as its own."""

    OF_CLIENT = frozenset(name for name in dir(Client) if name[:1] != "_")
    #: What a task does instead.
    FOR_SEVERAL = frozenset({"begin", "finish", "abandon"})

    def test_all_of_it_is_there(self) -> None:
        own = {name for name in vars(AsyncClient) if name[:1] != "_"}
        assert own == self.OF_CLIENT - self.FOR_SEVERAL

    @pytest.mark.parametrize("kind", [TrioClient, AsyncioClient])
    @pytest.mark.parametrize("name", sorted(OF_CLIENT - FOR_SEVERAL - {"connect"}))
    def test_a_method(self, kind: type[AsyncClient], name: str) -> None:
        method, like = getattr(kind, name), getattr(Client, name)
        streams = ("iterdir", "iterwalk", "glob", "tree", "trace", "close")
        assert inspect.iscoroutinefunction(method) == (name not in streams)
        assert [*inspect.signature(method).parameters] == [*inspect.signature(like).parameters]
        assert method.__doc__

    def test_help(self) -> None:
        # Python 3.14 writes an argument a line, and the return type's module or not.
        text = " ".join(pydoc.plain(pydoc.render_doc(AsyncioClient)).replace("|", " ").split())
        assert re.search(r"async stat\( ?self, export: str, path: ", text)
        assert re.search(r"follow: bool = True, timeout: float None = None,? ?\) -> ", text)
        assert "Return a file's attributes" in text


class TestManyTasks:
    def test_replies_out_of_order(self, loop: Loop, fake_daemon: FakeDaemon) -> None:
        fake_daemon.hold, fake_daemon.piece = 20, 777
        results: dict[int, bytes] = {}

        async def main() -> None:
            async def read(number: int) -> None:
                results[number] = await connected.read("kernels", "image", number * 1000, 1000)

            async with loop.client.connect(fake_daemon.address) as connected, loop.group() as group:
                for number in range(20):
                    group.start(read, number)

        loop.run(main)
        assert results == {n: IMAGE[n * 1000 : (n + 1) * 1000] for n in range(20)}

    def test_more_requests_than_the_socket_holds(self, loop: Loop, fake_daemon: FakeDaemon) -> None:
        long_path = "x" * 20_000

        async def main() -> None:
            async def stat() -> None:
                with pytest.raises(FileNotFoundError):
                    await connected.stat("kernels", long_path)

            async with loop.client.connect(fake_daemon.address) as connected, loop.group() as group:
                for _ in range(200):
                    group.start(stat)

        loop.run(main)

    def test_images_of_many(self, loop: Loop, fake_daemon: FakeDaemon) -> None:
        """Each descriptor comes to the task that asked for it."""

        async def main() -> None:
            async def fetch(path: str, content: bytes) -> None:
                with await connected.fetch("kernels", path) as image, image.buffer() as buffer:
                    assert buffer == content

            async with loop.client.connect(fake_daemon.address) as connected, loop.group() as group:
                for _ in range(10):
                    group.start(fetch, "image", IMAGE)
                    group.start(fetch, "odd", b"odd")

        loop.run(main)

    @pytest.mark.parametrize("cut_after", [1, 9, 5000])
    def test_cut_in_mid_payload(self, loop: Loop, fake_daemon: FakeDaemon, cut_after: int) -> None:
        fake_daemon.cut_after, fake_daemon.hold = cut_after, 3
        lost: list[ConnectionLost] = []

        async def main() -> None:
            async def read() -> None:
                with pytest.raises(ConnectionLost) as caught:
                    await connected.read("kernels", "image", 0, 100_000)
                lost.append(caught.value)

            async with loop.client.connect(fake_daemon.address, reconnect=0) as connected:
                async with loop.group() as group:
                    for _ in range(3):
                        group.start(read)
                assert len(lost) == 3
                with pytest.raises(ConnectionLost):
                    await connected.exports()

        loop.run(main)

    def test_closed_while_tasks_wait(self, loop: Loop, fake_daemon: FakeDaemon) -> None:
        fake_daemon.hold = 9

        async def main() -> None:
            async def wait() -> None:
                with pytest.raises(ConnectionLost, match="client was closed"):
                    await connected.exports()

            async with loop.group() as group:
                async with loop.client.connect(fake_daemon.address) as connected:
                    group.start(wait)
                    group.start(wait)
                    await loop.settle()
                connected.close()

        loop.run(main)


class TestCancelled:
    """The connection and all other calls are as they were."""

    def test_one_that_exchanges_for_all_passes_it_on(
        self, loop: Loop, fake_daemon: FakeDaemon
    ) -> None:
        fake_daemon.hold = 3
        buffer = bytearray(1000)
        done: list[str] = []

        async def main() -> None:
            async def wait(name: str) -> None:
                done.append((await connected.stat("kernels", name)).type)

            async with loop.client.connect(fake_daemon.address) as connected:
                async with loop.group() as group:
                    first = group.start(connected.read_into, "kernels", "image", 0, buffer)
                    await loop.settle()
                    group.start(wait, "image")
                    await loop.settle()
                    first.cancel()
                    await loop.settle()
                    assert done == []
                    group.start(wait, "boot")
                assert sorted(done) == ["dir", "file"]
                assert first.cancelled()
                assert buffer == bytes(1000)
                fake_daemon.hold = 1
                assert await connected.read("kernels", "image", 0, 5) == IMAGE[:5]

        loop.run(main)

    def test_one_that_waits_for_another(self, loop: Loop, fake_daemon: FakeDaemon) -> None:
        fake_daemon.hold = 3

        async def main() -> None:
            async with loop.client.connect(fake_daemon.address) as connected:
                async with loop.group() as group:
                    group.start(connected.stat, "kernels", "image")
                    await loop.settle()
                    second = group.start(connected.stat, "kernels", "boot")
                    await loop.settle()
                    second.cancel()
                    await loop.settle()
                    group.start(connected.stat, "kernels", "boot")
                assert second.cancelled()

        loop.run(main)

    def test_before_it_has_begun(self, loop: Loop, fake_daemon: FakeDaemon) -> None:
        async def main() -> None:
            async with loop.client.connect(fake_daemon.address) as connected:
                async with loop.group() as group:
                    group.start(connected.stat, "kernels", "image").cancel()
                    group.start(connected.stat, "kernels", "image")
                assert await connected.exports()
                assert not connected._talk.link.core.is_awaited

        loop.run(main)

    def test_a_late_image_is_closed(self, loop: Loop, fake_daemon: FakeDaemon) -> None:
        async def main() -> None:
            async with loop.client.connect(fake_daemon.address) as connected:
                await connected.exports()
                fake_daemon.hold = 2
                opened = len(os.listdir("/proc/self/fd"))
                async with loop.group() as group:
                    fetching = group.start(connected.fetch, "kernels", "image")
                    await loop.settle()
                    fetching.cancel()
                assert fetching.cancelled()
                await connected.exports()  # whose answer comes before that of the other
                fake_daemon.hold = 1
                await connected.exports()
                assert len(os.listdir("/proc/self/fd")) == opened

        loop.run(main)

    def test_a_listing(self, loop: Loop, fake_daemon: FakeDaemon) -> None:
        async def main() -> None:
            async def walk() -> None:
                async with aclosing(connected.iterdir("kernels", "")) as entries:
                    async for _ in entries:
                        await loop.forever()

            async with loop.client.connect(fake_daemon.address) as connected:
                async with loop.group() as group:
                    walking = group.start(walk)
                    await loop.settle()
                    walking.cancel()
                assert await connected.exports()

        loop.run(main)

    def test_it_does_not_wait_for_what_it_takes_back(
        self, loop: Loop, fake_daemon: FakeDaemon
    ) -> None:
        """The daemon is told, which answers nothing any more."""
        stopped = threading.Event()

        def stop(request: Request) -> None:
            if request.method == "load":
                stopped.wait(10)

        async def main() -> None:
            async def load() -> None:
                async with await connected.attach(size=4096) as memory:
                    await memory.load("kernels", "image", 0, length=10)

            async with loop.client.connect(fake_daemon.address) as connected:
                async with loop.group() as group:
                    loading = group.start(load)
                    while len(fake_daemon.requests) < 2:
                        await loop.sleep(0.001)
                    loading.cancel()
                assert loading.cancelled()
                stopped.set()
                assert await connected.exports()
            assert [r.method for r in fake_daemon.requests][-3:] == ["load", "detach", "exports"]

        fake_daemon.before = stop
        loop.run(main)

    def test_nor_does_a_transfer(
        self, loop: Loop, fake_daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transfer, "LENT_LEAST", 1)
        stopped = threading.Event()
        answered = 0

        def stop(_: Request) -> None:
            nonlocal answered
            answered += 1
            if answered == 4:
                stopped.wait(10)

        async def ignore(_: memoryview) -> None:
            pass

        async def main() -> None:
            async with loop.client.connect(fake_daemon.address) as connected:
                async with loop.group() as group:
                    taking = group.start(connected.stream, "kernels", "image", ignore)
                    while answered < 4:
                        await loop.sleep(0.001)
                    taking.cancel()
                stopped.set()
                for _ in range(100):
                    await connected.exports()
                    if not (fake_daemon.open or fake_daemon.memories):
                        break
                assert (fake_daemon.open, fake_daemon.memories) == ({}, {})

        fake_daemon.before = stop
        loop.run(main)

    def test_a_write_in_a_thread_ends_first(
        self,
        loop: Loop,
        fake_daemon: FakeDaemon,
        copy: BinaryIO,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The file and the memory are the caller's again after that."""
        writing, goes_on, done = threading.Event(), threading.Event(), threading.Event()
        write_at = sinks.write_at

        def slow(fileno: int, payload: memoryview, offset: int) -> None:
            writing.set()
            assert goes_on.wait(10)
            write_at(fileno, payload, offset)
            done.set()

        async def main() -> None:
            async def take() -> None:
                try:
                    await connected.download("kernels", "image", copy.fileno())
                finally:
                    assert done.is_set()

            async with loop.client.connect(fake_daemon.address) as connected:
                async with loop.group() as group:
                    taking = group.start(take)
                    while not writing.is_set():
                        await loop.sleep(0.001)
                    taking.cancel()
                    await loop.settle()
                    taking.cancel()
                    await loop.settle()
                    goes_on.set()
                assert taking.cancelled()
                assert await connected.exports()

        monkeypatch.setattr(sinks, "write_at", slow)
        loop.run(main)


class TestRestart:
    def test_what_was_taken_is_answered(self, loop: Loop, fake_daemon: FakeDaemon) -> None:
        """One task awaits an answer from the old connection, others ask over the new one."""
        fake_daemon.hold = 100
        found: list[bytes] = []

        async def main() -> None:
            async def read(offset: int) -> None:
                found.append(await connected.read("kernels", "image", offset, 3))

            async with loop.client.connect(fake_daemon.address) as connected:
                async with loop.group() as group:
                    group.start(read, 0)
                    await loop.settle()
                    fake_daemon.wait_for_requests(1)
                    fake_daemon.reads.clear()
                    fake_daemon.end_connections()
                    fake_daemon.hold = 1
                    for offset in (3, 6, 9):
                        group.start(read, offset)
                    await loop.sleep(0.01)
                    fake_daemon.reads.set()
                assert sorted(found) == sorted(IMAGE[n : n + 3] for n in (0, 3, 6, 9))
                assert asked(fake_daemon, "read") == 4
                assert fake_daemon.connections == 2
                await connected.exports()
                assert connected._talk.former == []

        loop.run(main)

    def test_half_a_request(self, loop: Loop, fake_daemon: FakeDaemon) -> None:
        """Whose task exchanges for all, and hears of the end from another one's attempt to send."""

        async def main() -> None:
            async def miss(path: str) -> None:
                with pytest.raises(RemoteError, match="ENOENT"):
                    await client.stat("kernels", path)

            async with loop.client.connect(fake_daemon.address) as client:
                fake_daemon.reads.clear()
                async with loop.group() as group:
                    group.start(miss, LONG)
                    await loop.settle()
                    fake_daemon.end_connections()
                    group.start(miss, "nothing")
                    await loop.sleep(0.01)
                    fake_daemon.reads.set()

        loop.run(main)
        assert asked(fake_daemon, "stat") == 2

    def test_over_a_socket_of_the_callers(self, loop: Loop, fake_daemon: FakeDaemon) -> None:
        """Whose successor it does not know."""

        async def main() -> None:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(fake_daemon.address)
            client = loop.client(sock)
            assert len(await client.exports()) == 2
            fake_daemon.end_connections()
            with pytest.raises(NotTaken):
                await client.exports()
            client.close()

        loop.run(main)

    def test_many_tasks_find_one_successor(self, loop: Loop, tmp_path: Path) -> None:
        """Also where it comes late."""
        address = str(tmp_path / "s")

        async def main() -> None:
            async with loop.client.connect(address) as client:
                await client.exports()
                first.__exit__(None, None, None)
                os.unlink(address)
                async with loop.group() as group:
                    for _ in range(30):
                        group.start(client.exports)
                    await loop.sleep(0.12)
                    later.__enter__()

        first = FakeDaemon(address, directory()).__enter__()
        later = FakeDaemon(address, directory())
        try:
            loop.run(main)
            assert later.connections == 1
            assert asked(later, "exports") == 30
        finally:
            later.__exit__(None, None, None)

    def test_cancelled_while_it_looks(self, loop: Loop, tmp_path: Path) -> None:
        address = str(tmp_path / "s")

        async def main() -> None:
            async with loop.client.connect(address) as client:
                await client.exports()
                daemon.__exit__(None, None, None)
                async with loop.group() as group:
                    looking = group.start(client.exports)
                    await loop.sleep(0.1)
                    looking.cancel()
                assert looking.cancelled()
                client.close()
                with pytest.raises(NotTaken):
                    await client.exports()

        daemon = FakeDaemon(address, directory()).__enter__()
        loop.run(main)


class TestConnect:
    def test_a_full_queue(self, loop: Loop, tmp_path: Path) -> None:
        """It waits for room, and can be cancelled."""

        async def connect() -> None:
            async with loop.client.connect(str(tmp_path / "s")):
                pass

        async def main() -> None:
            async with loop.client.connect(str(tmp_path / "s")), loop.group() as group:
                second = group.start(connect)
                await loop.sleep(0.05)
                second.cancel()
            assert second.cancelled()

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "s"))
            listener.listen(0)
            loop.run(main)

    async def test_for_long(self, tmp_path: Path, autojump_clock: MockClock) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "s"))
            listener.listen(0)
            async with TrioClient.connect(str(tmp_path / "s")):
                with pytest.raises(CannotConnect, match="stayed so for 30 s"):
                    async with TrioClient.connect(str(tmp_path / "s")):
                        raise AssertionError
        assert autojump_clock.current_time() >= 30

    def test_outside_of_a_loop(self) -> None:
        with pytest.raises(RuntimeError, match="no running event loop"):
            AsyncioClient()


class TestAsyncio:
    """What is asyncio's own."""

    def test_a_time_out(self, fake_daemon: FakeDaemon) -> None:
        fake_daemon.hold = 2

        async def main() -> None:
            async with AsyncioClient.connect(fake_daemon.address) as client:
                with pytest.raises(TimeoutError) as caught:
                    async with asyncio.timeout(0.02):
                        await client.stat("kernels", "image")
                assert not isinstance(caught.value, RemoteError)
                assert (await client.stat("kernels", "boot")).type == "dir"

        asyncio.run(main())

    def test_gathered(self, fake_daemon: FakeDaemon) -> None:
        async def main() -> None:
            async with AsyncioClient.connect(fake_daemon.address) as client:
                found = await asyncio.gather(
                    client.stat("kernels", "image"),
                    client.stat("kernels", "nothing"),
                    client.call(calls.exports()),
                    return_exceptions=True,
                )
            assert not isinstance(found[0], BaseException)
            assert isinstance(found[1], FileNotFoundError)
            assert len(found[2]) == 2  # type: ignore[arg-type]

        asyncio.run(main())

    def test_a_write_that_fails_when_it_is_cancelled(
        self, fake_daemon: FakeDaemon, copy: BinaryIO, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody is told, nor does asyncio complain that nobody asked."""
        writing, goes_on = threading.Event(), threading.Event()

        def fail(*_: object) -> None:
            writing.set()
            assert goes_on.wait(10)
            raise OSError(28, "No space left on device")

        async def main() -> None:
            complaints: list[object] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, it: complaints.append(it))
            async with AsyncioClient.connect(fake_daemon.address) as connected:
                taking = asyncio.ensure_future(
                    connected.download("kernels", "image", copy.fileno())
                )
                await asyncio.to_thread(writing.wait, 10)
                taking.cancel()
                await asyncio.sleep(0)
                goes_on.set()
                with pytest.raises(asyncio.CancelledError):
                    await taking
                del taking
                assert await connected.exports()
            gc.collect()
            assert complaints == []

        monkeypatch.setattr(sinks, "write_at", fail)
        asyncio.run(main())

    @pytest.mark.parametrize("is_late", [False, True])
    def test_no_thread_to_be_had(
        self,
        fake_daemon: FakeDaemon,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        is_late: bool,
    ) -> None:
        """What has no thread is never called, unless one that was busy is quick to take it."""
        goes_on, taken = threading.Event(), threading.Event()
        refused: list[threading.Thread] = []
        folder = tmp_path / "folder"
        folder.mkdir()

        def made(local: str) -> tuple[str, str, int, bool]:
            taken.set()
            return make_beside(local)

        def refuse_once(thread: threading.Thread) -> None:
            if refused:
                start(thread)
                return
            refused.append(thread)
            if not is_late:
                goes_on.set()
                assert taken.wait(10)
            raise RuntimeError("can't start new thread")

        async def main() -> None:
            async with AsyncioClient.connect(fake_daemon.address) as connected:
                busy = asyncio.ensure_future(asyncio.to_thread(goes_on.wait, 10))
                await asyncio.sleep(0)
                monkeypatch.setattr(threading.Thread, "start", refuse_once)
                with pytest.raises(RuntimeError, match="new thread") if is_late else nullcontext():
                    await connected.download("kernels", "image", folder / "image")
                goes_on.set()
                await busy
                await asyncio.to_thread(int)  # behind what may be left for a thread

        make_beside, start = destinations._make_beside, threading.Thread.start
        monkeypatch.setattr(destinations, "_make_beside", made)
        asyncio.run(main())
        assert refused
        assert os.listdir(folder) == ([] if is_late else ["image"])

    def test_two_clients_in_two_loops_after_each_other(self, fake_daemon: FakeDaemon) -> None:
        async def main() -> int:
            async with AsyncioClient.connect(fake_daemon.address) as client:
                return len(await client.exports())

        assert asyncio.run(main()) == asyncio.run(main()) == 2

    def test_a_remote_time_out_is_no_time_out_here(self, fake_daemon: FakeDaemon) -> None:
        def refuse(*_: object) -> None:
            raise FaultError("ETIMEDOUT", "held back")

        vars(fake_daemon)["do_stat"] = refuse

        async def main() -> None:
            async with AsyncioClient.connect(fake_daemon.address) as client:
                with pytest.raises(RemoteError, match="held back"):
                    async with asyncio.timeout(10):
                        await client.stat("kernels", "image")

        asyncio.run(main())


async def test_trio_and_asyncio_are_told_apart_by_their_loops(fake_daemon: FakeDaemon) -> None:
    with pytest.raises(RuntimeError):
        async with AsyncioClient.connect(fake_daemon.address):
            raise AssertionError
    with trio.fail_after(10):
        async with TrioClient.connect(fake_daemon.address) as client:
            assert await client.exports()


def asked(daemon: FakeDaemon, method: str) -> int:
    """Return how often a method was called."""
    return sum(request.method == method for request in daemon.requests)
