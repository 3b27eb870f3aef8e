"""Images and attached memory from the client's side, and ``vuserctl load``'s memory and numbers."""

import gc
import mmap
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.fake.rpc_server import IMAGE, FakeDaemon
from tests.loops import Loop
from tests.unit.faces import Connect
from vuserd.client import Client
from vuserd.client.core.ticket import Ticket
from vuserd.client.errors import BadReply, ConnectionLost, NotTaken, RemoteError
from vuserd.client.files import transfer
from vuserd.client.image import Image
from vuserd.client.memory import SharedMemory
from vuserd.client.records import ImageInfo
from vuserd.ctl import main
from vuserd.ctl.usage.arguments import parse_number
from vuserd.wire.codec import Request, encode_response

CONTENT = b"image " * 1000


def memfds() -> list[str]:
    """Return the shared memory that is open here."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own, or the daemon's at this moment
            found.append(os.readlink(f"/proc/self/fd/{entry}"))
    return [target for target in found if "memfd:vuserd-client" in target or "memfd:rig" in target]


@pytest.fixture(autouse=True)
def _no_memory_is_left_open() -> Iterator[None]:
    gc.collect()  # of other tests
    before = memfds()
    yield
    gc.collect()
    assert memfds() == before


def methods(fake_daemon: FakeDaemon) -> list[str]:
    """Return what the daemon was asked for."""
    return [request.method for request in fake_daemon.requests]


def image_of(content: bytes, size: int | None = None) -> Image:
    descriptor = os.memfd_create("image")
    os.write(descriptor, content)
    info = ImageInfo(len(content) if size is None else size, 1, 2, cached=False)
    return Image(info, descriptor)


class TestImage:
    def test_its_bytes(self) -> None:
        with image_of(CONTENT) as image, image.buffer() as buffer:
            assert buffer == CONTENT
            assert buffer.readonly
            assert image.buffer() == CONTENT

    def test_an_empty_one(self) -> None:
        with image_of(b"") as image:
            assert bytes(image.buffer()) == b""

    def test_a_view_outlives_it(self) -> None:
        image = image_of(CONTENT)
        view = image.buffer()
        image.close()
        image.close()
        assert view == CONTENT
        with pytest.raises(ValueError, match="closed"):
            image.fileno()
        with pytest.raises(ValueError, match="closed"):
            image.buffer()
        assert repr(image) == f"<Image of {len(CONTENT)} bytes, closed>"

    def test_a_forgotten_one_is_told_and_closed(self) -> None:
        images = [image_of(CONTENT)]
        descriptor = images[0].fileno()
        with pytest.warns(ResourceWarning, match="unclosed <Image"):
            images.clear()
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(descriptor)

    def test_from_a_daemon(self, client: Client) -> None:
        with client.fetch("kernels", "image") as image, image.buffer() as buffer:
            assert buffer == IMAGE

    def test_none_of_what_is_no_file(self, client: Client) -> None:
        with pytest.raises(RemoteError):
            client.fetch("kernels", "boot")

    def test_an_answer_without_a_descriptor(self, client: Client, fake_daemon: FakeDaemon) -> None:
        fake_daemon.results["fetch"] = {"size": 1, "mtime_ns": 2, "ino": 3, "cached": False}
        with pytest.raises(BadReply, match="without its descriptor"):
            client.fetch("kernels", "image")
        assert client.stat("kernels", "image").size == len(IMAGE)


class TestSharedMemory:
    def test_a_memfd_of_the_callers(self) -> None:
        memfd = os.memfd_create("rig")
        try:
            os.ftruncate(memfd, 3 * mmap.PAGESIZE + 5)
            memory = SharedMemory(memfd, None)
            assert memory.size == 3 * mmap.PAGESIZE
            memory.mapping()[:4] = b"mine"
            memory.close()
            memory.close()
            assert os.pread(memfd, 4, 0) == b"mine"  # it is open yet
        finally:
            os.close(memfd)

    def test_one_made_here(self) -> None:
        memory = SharedMemory(None, 8192)
        assert memory.mapping() is memory.mapping()
        view = memoryview(memory.mapping())
        memory.close()
        assert len(view) == 8192
        with pytest.raises(ValueError, match="closed"):
            memory.fileno()

    @pytest.mark.parametrize("size", [None, 0, -1])
    def test_neither_memfd_nor_size(self, size: int | None) -> None:
        with pytest.raises(ValueError, match="the size of one to make"):
            SharedMemory(None, size)

    def test_one_that_cannot_be_made(self) -> None:
        with pytest.raises(OverflowError):
            SharedMemory(None, 1 << 63)

    def test_a_forgotten_one_is_told_and_closed(self) -> None:
        memories = [SharedMemory(None, 4096)]
        with pytest.warns(ResourceWarning, match="not detached"):
            memories.clear()


class TestAttached:
    def test_load_and_detach(self, client: Client, fake_daemon: FakeDaemon) -> None:
        with client.attach(size=1 << 20) as memory:
            assert memory.load("kernels", "image", 4096, offset=10, length=1000) == 1000
            assert memory.buffer[4096 : 4096 + 1000] == IMAGE[10:1010]
        assert fake_daemon.requests[-1].method == "detach"
        with pytest.raises(RemoteError):
            client.load(memory.id, 0, "kernels", "image")

    def test_a_refusal_closes_what_was_made(self, client: Client, fake_daemon: FakeDaemon) -> None:
        fake_daemon.unknown.add("attach")
        with pytest.raises(RemoteError) as refused:
            client.attach(size=4096)
        assert refused.value.code == "UNKNOWN_METHOD"

    def test_a_lost_connection_detaches(self, fake_daemon: FakeDaemon, connect: Connect) -> None:
        with connect(fake_daemon.address) as client, client.attach(size=4096):
            client.close()

    def test_a_forgotten_one_is_told_and_detached(
        self, client: Client, fake_daemon: FakeDaemon
    ) -> None:
        memories = [client.attach(size=4096)]
        with pytest.warns(ResourceWarning, match="not detached"):
            memories.clear()
        client.exports()
        client.exports()
        assert fake_daemon.memories == {}
        fake_daemon.end_connections()
        assert client.exports()  # of the successor, as nothing is left on the connection

    def test_one_of_the_callers_may_be_known_by_its_number(
        self, client: Client, fake_daemon: FakeDaemon
    ) -> None:
        memfd = os.memfd_create("rig", os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(memfd, 1 << 20)
            number = client.attach(memfd).id
            gc.collect()
            assert client.load(number, 0, "kernels", "image", length=9) == 9
            assert os.pread(memfd, 9, 0) == IMAGE[:9]
            client.detach(number)
        finally:
            os.close(memfd)
        assert fake_daemon.memories == {}

    def test_detached_twice(self, client: Client, fake_daemon: FakeDaemon) -> None:
        with client.attach(size=4096) as memory:
            memory.detach()
            memory.detach()
        memory.detach()
        assert methods(fake_daemon) == ["attach", "detach"]


class TestLending:
    """A file's memory: that the backend has room for it shows with a first load."""

    @pytest.fixture(autouse=True)
    def _lent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transfer, "LENT_LEAST", 1)

    def cut_at_the_first_load(self, fake_daemon: FakeDaemon) -> None:
        def cut(request: Request) -> None:
            if request.method == "load":
                fake_daemon.cut_connections()

        fake_daemon.before = cut

    def test_a_lost_connection_is_told_as_it_is(
        self, client: Client, fake_daemon: FakeDaemon
    ) -> None:
        self.cut_at_the_first_load(fake_daemon)
        with pytest.raises(ConnectionLost, match="closed the connection") as caught:
            client.stream("kernels", "image", bytearray().extend)
        assert not isinstance(caught.value, NotTaken)
        assert fake_daemon.connections == 2  # the successor is asked once, and ends as well

    def test_an_interruption_is_passed_on(self, fake_daemon: FakeDaemon) -> None:
        with Client.connect(fake_daemon.address) as client:
            core = client._talk.link.core

            def interrupt(*_: object) -> NoReturn:
                del vars(core)["received"]  # once
                raise KeyboardInterrupt

            def interrupt_the_load(request: Request) -> None:
                if request.method == "load":
                    vars(core)["received"] = interrupt

            fake_daemon.before = interrupt_the_load
            with pytest.raises(KeyboardInterrupt):
                client.stream("kernels", "image", bytearray().extend)
            assert client.exports()
        assert fake_daemon.connections == 2
        fake_daemon.wait_for_no_memory()

    def test_an_interruption_in_a_loop(self, loop: Loop, fake_daemon: FakeDaemon) -> None:
        async def ignore(_: memoryview) -> None:
            pass

        async def main() -> None:
            async def interrupted(ticket: Ticket[Any], *more: Any) -> Any:
                if ticket.call is not None and ticket.call.method == "load":
                    client.close()
                    raise KeyboardInterrupt
                return await finish(ticket, *more)

            async with loop.client.connect(fake_daemon.address) as client:
                finish = client._finish
                vars(client)["_finish"] = interrupted
                with pytest.raises(KeyboardInterrupt):
                    await client.stream("kernels", "image", ignore)

        loop.run(main)

    @pytest.mark.parametrize("code", ["TOO_LARGE", "EIO"])
    def test_a_refused_load(self, client: Client, fake_daemon: FakeDaemon, code: str) -> None:
        """Where there is no room the file comes in reads, and the memory is taken back."""
        fake_daemon.raw["load"] = lambda request: encode_response(
            request.msgid, {"code": code, "message": "no"}, None
        )
        collected = bytearray()
        if code == "EIO":
            with pytest.raises(RemoteError, match="EIO"):
                client.stream("kernels", "image", collected.extend)
        else:
            client.stream("kernels", "image", collected.extend)
        assert collected == (b"" if code == "EIO" else IMAGE)
        assert methods(fake_daemon)[1:4] == ["attach", "load", "detach"]


class TestLoading:
    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("0", 0),
            ("4096", 4096),
            ("0x80000", 0x80000),
            ("0Xff", 255),
            ("64K", 64 << 10),
            ("0x10M", 16 << 20),
            ("1G", 1 << 30),
            ("007", 7),
        ],
    )
    def test_numbers(self, text: str, number: int) -> None:
        assert parse_number(text) == number

    @pytest.mark.parametrize("text", ["", "K", "-1", "+1", "1k", "1.5M", "0x", "1 ", "1_000", "¹"])
    def test_no_numbers(self, text: str) -> None:
        with pytest.raises(ValueError, match="is not a number"):
            parse_number(text)

    def test_the_largest_number(self) -> None:
        assert parse_number("0x7fffffffffffffff") == (1 << 63) - 1
        for text in ("0x8000000000000000", "8589934592G", "9" * 5000):
            with pytest.raises(ValueError, match=r"is more than 9223372036854775807|Exceeds"):
                parse_number(text)

    def test_into_an_inherited_descriptor(
        self, fake_daemon: FakeDaemon, capfd: pytest.CaptureFixture[str]
    ) -> None:
        memfd = os.memfd_create("rig", os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(memfd, 1 << 20)
            for name in (str(memfd), f"/proc/{os.getpid()}/fd/{memfd}"):
                assert self.load(fake_daemon, name) == 0
                assert capfd.readouterr().out == f"{len(IMAGE)} bytes of kernels:image at 0x1000\n"
                assert os.pread(memfd, len(IMAGE), 0x1000) == IMAGE
                os.pwrite(memfd, bytes(len(IMAGE)), 0x1000)
            os.fstat(memfd)
        finally:
            os.close(memfd)

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("999999", "999999: bad file descriptor (EBADF)"),
            ("9" * 30, "(EBADF)"),
            ("/proc/1/fd/none", "/proc/1/fd/none: "),
            ("", ": no such file or directory (ENOENT)"),
        ],
    )
    def test_into_nothing(
        self, fake_daemon: FakeDaemon, capfd: pytest.CaptureFixture[str], name: str, words: str
    ) -> None:
        assert self.load(fake_daemon, name) == 1
        assert words in capfd.readouterr().err

    def test_into_what_is_no_file(
        self, fake_daemon: FakeDaemon, capfd: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        fifo = str(tmp_path / "fifo")
        os.mkfifo(fifo)
        ends = os.pipe()
        ours, theirs = socket.socketpair()
        try:
            for name in (str(ends[0]), str(ours.fileno()), fifo):
                assert self.load(fake_daemon, name) == 1
                assert capfd.readouterr().err == f"vuserctl: {name}: not a memfd (EBADF)\n"
        finally:
            for end in ends:
                os.close(end)
            ours.close()
            theirs.close()
        assert fake_daemon.requests == []

    def load(self, fake_daemon: FakeDaemon, memory: str) -> int:
        options = ["--memory", memory, "--address", "4K"]
        return main.run(["--socket", fake_daemon.address, "load", "kernels:image", *options])


def test_a_child_that_closes_the_client_leaves_the_connection(fake_daemon: FakeDaemon) -> None:
    with Client.connect(fake_daemon.address) as client:
        child = os.fork()
        if not child:
            client.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert client.stat("kernels", "image").size == len(IMAGE)
