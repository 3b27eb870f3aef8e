"""The trio client against the fake daemon."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.fake.rpc_server import IMAGE, FakeDaemon, Node
from vuserd.client import TrioClient
from vuserd.client.errors import (
    CannotConnect,
    ConnectionLost,
    RemoteError,
)
from vuserd.wire.codec import Request


def no_progress(there: int, total: int) -> None:
    assert 0 <= there <= total == len(IMAGE)


class TestTrioClient:
    async def test_surface(self, fake_daemon: FakeDaemon) -> None:
        async with TrioClient.connect(fake_daemon.address) as connected:
            assert (await connected.api_info()).api_level == 1
            assert len(await connected.exports()) == 2
            assert (await connected.stat("kernels", "link")).size == len(IMAGE)
            assert await connected.readlink("kernels", "odd") == "\udcff"
            assert (await connected.statfs("kernels")).blocks == 0
            assert (await connected.status())["version"] == "9.9"
            assert await connected.reload("kernels") == ["export kernels: backend replaced"]
            assert len(await connected.reload()) == 2
            assert [rig.netns for rig in await connected.rigs()] == ["lab", "bench"]
            assert await connected.read("kernels", "image", 5, 10) == IMAGE[5:15]
            with pytest.raises(RemoteError, match="ENOENT"):
                await connected.stat("kernels", "nothing")

    async def test_pages(self, fake_daemon: FakeDaemon) -> None:
        fake_daemon.root.children = {b"%04d" % n: Node() for n in range(1500)}
        async with TrioClient.connect(fake_daemon.address) as connected:
            names = [entry.name async for entry in connected.iterdir("kernels", "")]
        assert names == [f"{n:04}" for n in range(1500)]

    @pytest.mark.usefixtures("small_chunks")
    async def test_download_and_stream(self, fake_daemon: FakeDaemon, copy: BinaryIO) -> None:
        collected = bytearray()

        async def collect(payload: memoryview) -> None:
            collected.extend(payload)

        async with TrioClient.connect(fake_daemon.address) as connected:
            await connected.download("kernels", "image", copy.fileno(), progress=no_progress)
            await connected.stream("kernels", "image", collect, progress=no_progress)
        assert copy.read() == IMAGE == collected

    @pytest.mark.usefixtures("small_chunks")
    async def test_changes(self, fake_daemon: FakeDaemon, copy: BinaryIO) -> None:
        image = fake_daemon.root.children[b"image"]
        looks = 0

        def alter(request: Request) -> None:
            nonlocal looks
            if request.method == "stat":
                looks += 1
                image.mtime_ns += 1_000_000_000
                image.content = image.content[1:] + image.content[:1]

        async def ignore(_: memoryview) -> None:
            pass

        fake_daemon.before = alter
        async with TrioClient.connect(fake_daemon.address) as connected:
            with pytest.raises(RemoteError, match="CHANGED"):
                await connected.download("kernels", "image", copy.fileno())
            assert looks == 3
            with pytest.raises(RemoteError, match="CHANGED"):
                await connected.stream("kernels", "image", ignore)

            def shrink(request: Request) -> None:
                if request.method in ("read", "load"):
                    image.content = b"x"

            fake_daemon.before = shrink
            with pytest.raises(RemoteError, match="CHANGED"):
                await connected.stream("kernels", "image", ignore)
            image.content = IMAGE
            await connected.download("kernels", "image", copy.fileno())
        assert copy.read() == b"x"

    async def test_written_all_the_time(self, fake_daemon: FakeDaemon) -> None:
        """Its timestamps tell nothing yet: it is read twice and compared."""
        collected = bytearray()

        async def collect(payload: memoryview) -> None:
            collected.extend(payload)

        def alter(_request: Request) -> None:
            image.content = image.content[1:] + image.content[:1]

        image = fake_daemon.root.children[b"image"]
        fake_daemon.settled = False
        async with TrioClient.connect(fake_daemon.address) as connected:
            await connected.stream("kernels", "image", collect)
            assert collected == IMAGE
            fake_daemon.before = alter
            with pytest.raises(RemoteError, match="CHANGED"):
                await connected.stream("kernels", "image", collect)

    async def test_many_tasks_and_replies_out_of_order(self, fake_daemon: FakeDaemon) -> None:
        fake_daemon.hold, fake_daemon.piece = 20, 777
        results: dict[int, bytes] = {}

        async def read(number: int) -> None:
            results[number] = await connected.read("kernels", "image", number * 1000, 1000)

        async with (
            TrioClient.connect(fake_daemon.address) as connected,
            trio.open_nursery() as nursery,
        ):
            for number in range(20):
                nursery.start_soon(read, number)
        assert results == {n: IMAGE[n * 1000 : (n + 1) * 1000] for n in range(20)}

    async def test_more_requests_than_the_socket_holds(self, fake_daemon: FakeDaemon) -> None:
        long_path = "x" * 20_000

        async def stat() -> None:
            with pytest.raises(RemoteError, match="ENOENT"):
                await connected.stat("kernels", long_path)

        async with (
            TrioClient.connect(fake_daemon.address) as connected,
            trio.open_nursery() as nursery,
        ):
            for _ in range(200):
                nursery.start_soon(stat)

    async def test_a_cancelled_call_passes_its_duty_on(self, fake_daemon: FakeDaemon) -> None:
        fake_daemon.hold = 3
        buffer = bytearray(1000)
        done: list[str] = []

        async def exchange_then_go() -> None:
            with cancel_first:
                await connected.read_into("kernels", "image", 0, buffer)

        async def wait(name: str) -> None:
            done.append((await connected.stat("kernels", name)).type)

        cancel_first = trio.CancelScope()
        async with TrioClient.connect(fake_daemon.address) as connected:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(exchange_then_go)
                await wait_all_tasks_blocked()
                nursery.start_soon(wait, "image")
                await wait_all_tasks_blocked()
                cancel_first.cancel()
                await wait_all_tasks_blocked()
                assert done == []
                nursery.start_soon(wait, "boot")
            assert sorted(done) == ["dir", "file"]
            assert cancel_first.cancelled_caught
            assert buffer == bytes(1000)
            fake_daemon.hold = 1
            assert await connected.read("kernels", "image", 0, 5) == IMAGE[:5]

    async def test_a_cancelled_waiter(self, fake_daemon: FakeDaemon) -> None:
        fake_daemon.hold = 3
        async with (
            TrioClient.connect(fake_daemon.address) as connected,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(connected.stat, "kernels", "image")
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel_when_blocked, scope.cancel)
                await connected.stat("kernels", "boot")
            assert scope.cancelled_caught
            assert (await connected.stat("kernels", "boot")).type == "dir"

    @pytest.mark.parametrize("cut_after", [1, 9, 5000])
    async def test_cut_in_mid_payload(self, fake_daemon: FakeDaemon, cut_after: int) -> None:
        fake_daemon.cut_after, fake_daemon.hold = cut_after, 3
        lost = 0

        async def read() -> None:
            nonlocal lost
            with pytest.raises(ConnectionLost):
                await connected.read("kernels", "image", 0, 100_000)
            lost += 1

        async with TrioClient.connect(fake_daemon.address, reconnect=0) as connected:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(read)
            assert lost == 3
            with pytest.raises(ConnectionLost):
                await connected.exports()

    async def test_closed_while_tasks_wait(self, fake_daemon: FakeDaemon) -> None:
        fake_daemon.hold = 9

        async def wait() -> None:
            with pytest.raises(ConnectionLost, match="client was closed"):
                await connected.exports()

        async with trio.open_nursery() as nursery:
            async with TrioClient.connect(fake_daemon.address) as connected:
                nursery.start_soon(wait)
                nursery.start_soon(wait)
                await wait_all_tasks_blocked()
            connected.close()

    async def test_nobody_listens(self, tmp_path: Path) -> None:
        with pytest.raises(CannotConnect, match="no such file"):
            async with TrioClient.connect(str(tmp_path / "none")):
                raise AssertionError

    async def test_a_full_backlog(self, tmp_path: Path, autojump_clock: MockClock) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "s"))
            listener.listen(0)
            async with TrioClient.connect(str(tmp_path / "s")):
                with trio.move_on_after(1) as scope:
                    async with TrioClient.connect(str(tmp_path / "s")):
                        raise AssertionError
                assert scope.cancelled_caught
        assert autojump_clock.current_time() >= 1


async def cancel_when_blocked(cancel: Callable[[], None]) -> None:
    await wait_all_tasks_blocked()
    cancel()
