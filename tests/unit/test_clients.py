"""What all clients have in common, against the fake daemon."""

import os
import socket
import time
from pathlib import Path
from typing import Any, Final

import pytest

from tests.fake.rpc_server import IMAGE, FakeDaemon, Node
from tests.unit.faces import Connect
from vuserd.client import Client, calls, composite
from vuserd.client.errors import (
    CannotConnect,
    ConnectionLost,
    RemoteError,
)
from vuserd.client.files import transfer
from vuserd.client.records import Stat
from vuserd.wire.codec import Request

#: Seconds until a fake daemon must have been asked.
_SOON: Final = 60.0


class TestClient:
    def test_a_walk_asks_for_the_next_page_ahead(
        self, fake_daemon: FakeDaemon, client: Client
    ) -> None:
        fake_daemon.root.children = {name: Node() for name in (b"a", b"b", b"c")}
        walk = client.iterwalk("kernels", "")
        assert next(walk).path == "a"
        end = time.monotonic() + _SOON
        while [one.method for one in fake_daemon.requests].count("walk") < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert [entry.path for entry in walk] == ["b", "c"]
        assert [one.method for one in fake_daemon.requests].count("walk") == 3

    def test_a_caller_takes_its_time_for_each_entry(
        self, fake_daemon: FakeDaemon, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(composite, "_A_WHILE", -1.0)
        pages = [["a", "b", "c"], ["d", "e"], [], ["f"]]

        def do_walk(_: object, __: object, options: dict[str, Any]) -> Any:
            at = int.from_bytes(options["after"] or b"", "big")
            entries = [{"path": path, "type": "file", "ino": 1} for path in pages[at]]
            more = (at + 1).to_bytes(8, "big") if at + 1 < len(pages) else None
            return {"entries": entries, "problems": [], "next": more}

        monkeypatch.setattr(fake_daemon, "do_walk", do_walk, raising=False)
        assert [entry.path for entry in client.iterwalk("kernels", "")] == [*"abcdef"]

    def test_surface(self, client: Client) -> None:
        assert client.api_info().version == "9.9"
        ready, broken = client.exports()
        assert ready.backend is not None
        assert ready.backend.kind == "rust"
        assert (broken.state, broken.reason) == ("failed", "no virtiofsd")
        assert client.stat("kernels", "image").size == len(IMAGE)
        assert client.stat("kernels", Path("link"), follow=False).type == "symlink"
        assert client.readlink("kernels", b"/link") == "/image"
        assert client.statfs("kernels").namelen == 7
        assert client.status()["pid"] == os.getpid()
        assert client.reload("kernels") == ["export kernels: backend replaced"]
        assert client.reload() == ["limits: changed", "rig lab: added, absent"]
        lab, bench = client.rigs()
        assert (lab.netns, lab.state, lab.exports) == ("lab", "listening", ["kernels"])
        assert (bench.state, bench.reason) == ("failed", "permission denied")
        assert client.read("kernels", "image", 299_999, 100) == IMAGE[-2:]

    def test_names_that_are_not_utf8(self, client: Client) -> None:
        names = {entry.name for entry in client.iterdir("kernels", "")}
        assert "\udcff" in names
        assert client.readlink("kernels", "odd") == "\udcff"
        assert client.read("kernels", "\udcff", 0, 9) == b"odd"
        assert client.read("kernels", b"\xff", 0, 9) == b"odd"
        with pytest.raises(RemoteError, match="UNKNOWN_EXPORT"):
            client.stat("\udcff", "")

    def test_pages(self, fake_daemon: FakeDaemon, client: Client) -> None:
        fake_daemon.root.children = {b"%04d" % n: Node() for n in range(2500)}
        entries = list(client.iterdir("kernels", "/", attrs=True))
        assert [entry.name for entry in entries] == [f"{n:04}" for n in range(2500)]
        assert all(entry.stat is not None and entry.stat.mode for entry in entries)
        assert [one.method for one in fake_daemon.requests] == ["api_info", *["readdir"] * 3]
        page = client.readdir("kernels", "", limit=7)
        page = client.readdir("kernels", "", limit=2, after=page.next)
        assert [entry.name for entry in page.entries] == ["0007", "0008"]
        assert page.entries[0].stat is None

    def test_pages_of_a_daemon_that_has_columns(
        self, fake_daemon: FakeDaemon, client: Client
    ) -> None:
        fake_daemon.api_level = 3
        fake_daemon.root.children = {b"%04d" % n: Node() for n in range(5000)}
        entries = list(client.iterdir("kernels", "/", attrs=True))
        assert [entry.name for entry in entries] == [f"{n:04}" for n in range(5000)]
        assert all(entry.stat is not None and entry.stat.mode for entry in entries)
        assert [one.method for one in fake_daemon.requests] == ["api_info", *["readdir"] * 2]
        page = client.readdir("kernels", "", limit=7)
        assert [entry.name for entry in page.entries] == [f"{n:04}" for n in range(7)]
        assert all(one.params[2]["columns"] for one in fake_daemon.requests[1:])

    def test_remote_error(self, client: Client) -> None:
        with pytest.raises(RemoteError) as caught:
            client.stat("kernels", "/nothing")
        assert (caught.value.code, caught.value.fields) == ("ENOENT", {"errno": 2})
        assert client.stat("kernels", "image").type == "file"

    def test_pipelined_and_answered_in_reverse(
        self, client: Client, fake_daemon: FakeDaemon
    ) -> None:
        fake_daemon.hold, fake_daemon.piece = 3, 1000
        buffer = bytearray(100_000)
        first = client.begin(calls.read_into("kernels", "image", 100_000, buffer))
        second = client.begin(calls.stat("kernels", "image"))
        third = client.begin(calls.readlink("kernels", "link"))
        assert client.finish(first) == 100_000
        assert buffer == IMAGE[100_000:200_000]
        assert client.finish(third) == "/image"
        assert client.finish(second).type == "file"
        with pytest.raises(RuntimeError):
            client.begin(calls.exports()).result()

    def test_more_requests_than_the_socket_holds(self, client: Client) -> None:
        long_path = "x" * 20_000
        tickets = [client.begin(calls.stat("kernels", long_path)) for _ in range(200)]
        for ticket in tickets:
            with pytest.raises(RemoteError, match="ENOENT"):
                client.finish(ticket)

    @pytest.mark.parametrize("cut_after", [1, 9, 5000, 100_008])
    def test_cut_in_mid_payload(
        self, connect: Connect, fake_daemon: FakeDaemon, cut_after: int
    ) -> None:
        fake_daemon.cut_after = cut_after
        with connect(fake_daemon.address, reconnect=0) as client:
            with pytest.raises(ConnectionLost, match="closed the connection"):
                client.read("kernels", "image", 0, 100_000)
            with pytest.raises(ConnectionLost):
                client.stat("kernels", "image")

    def test_closed(self, client: Client) -> None:
        client.close()
        with pytest.raises(ConnectionLost, match="closed"):
            client.exports()

    def test_an_attach_that_is_given_up_is_undone(
        self, client: Client, fake_daemon: FakeDaemon
    ) -> None:
        memfd = os.memfd_create("rig")
        try:
            os.ftruncate(memfd, 4096)
            ticket = client.begin(calls.attach(memfd, 4096))
        finally:
            os.close(memfd)
        client.exports()  # the other's answer came first
        client.abandon(ticket)
        assert not client._talk.link.core.outgoing
        fake_daemon.wait_for_requests(3)
        assert [request.method for request in fake_daemon.requests[2:]] == ["detach"]

    def test_nobody_listens(self, connect: Connect, tmp_path: Path) -> None:
        address = str(tmp_path / "none.sock")
        with pytest.raises(CannotConnect, match=r"none.sock: no such file.*vuserd serve") as caught:
            connect(address)
        assert caught.value.addresses == (address,)
        with pytest.raises(CannotConnect, match="too long"):
            connect("/" + "x" * 200)

    def test_the_systems_daemon_is_tried_second(
        self,
        connect: Connect,
        fake_daemon: FakeDaemon,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.delenv("VUSERD_SOCKET", raising=False)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        monkeypatch.setattr("vuserd.wire.address.SYSTEM_SOCKET", fake_daemon.address)
        with connect() as client:
            assert client.exports()

    def test_abstract_socket(self, connect: Connect) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("")  # the kernel chooses an abstract name
            listener.listen()
            name: bytes = listener.getsockname()
            with connect("@" + name[1:].decode()):
                pass


#: The methods that parts of a file are asked for with.
PARTS = ("read", "load")


def no_progress(there: int, total: int) -> None:
    assert 0 <= there <= total


@pytest.mark.usefixtures("small_chunks")
class TestDownload:
    def fetch(
        self,
        client: Client,
        tmp_path: Path,
        path: str = "image",
        way: str = "download",
        **options: Any,
    ) -> tuple[Stat, bytes]:
        if way == "stream":
            collected = bytearray()
            return client.stream("kernels", path, collected.extend), bytes(collected)
        with open(tmp_path / "copy", "w+b") as copy:
            copy.write(b"older and longer " * 30_000)
            copy.flush()
            stat = client.download("kernels", path, copy.fileno(), **options)
        return stat, (tmp_path / "copy").read_bytes()

    @pytest.mark.parametrize("size", [0, 1, 9_999, 10_000, 10_001, 40_000, 300_001])
    def test_whole(
        self, fake_daemon: FakeDaemon, client: Client, tmp_path: Path, size: int
    ) -> None:
        fake_daemon.root.children[b"image"].content = IMAGE[:size]
        stat, copy = self.fetch(client, tmp_path, progress=no_progress)
        assert copy == IMAGE[:size]
        assert stat.size == size

    def test_replies_in_reverse_and_in_pieces(
        self, fake_daemon: FakeDaemon, client: Client, tmp_path: Path
    ) -> None:
        fake_daemon.root.children[b"image"].content = IMAGE[:40_000]
        fake_daemon.piece = 999

        lent = transfer.LENT_LEAST == 1
        before_the_parts = 3 if lent else 1  # open, attach, a load; or open
        at_once = transfer.LENT_WINDOW if lent else transfer.WINDOW

        def hold_the_parts(_request: Request) -> None:
            # all chunks that are in flight together, then one request at a time
            fake_daemon.hold = at_once if len(fake_daemon.requests) == before_the_parts else 1

        fake_daemon.before = hold_the_parts
        assert self.fetch(client, tmp_path)[1] == IMAGE[:40_000]

    def test_progress(self, client: Client, tmp_path: Path) -> None:
        seen: list[tuple[int, int]] = []
        self.fetch(client, tmp_path, progress=lambda there, total: seen.append((there, total)))
        assert seen[-1] == (300_001, 300_001)
        assert seen == sorted(seen)

    @pytest.mark.parametrize("change", ["grow", "shrink", "touch", "shorten"])
    def test_changed_once(
        self, fake_daemon: FakeDaemon, client: Client, tmp_path: Path, change: str
    ) -> None:
        image = fake_daemon.root.children[b"image"]

        def alter(request: Request) -> None:
            if len(fake_daemon.requests) == 5 and request.method in PARTS:
                fake_daemon.before = lambda _request: None
                content = {"grow": IMAGE * 2, "shrink": IMAGE[:50_000], "shorten": b"x"}
                image.content = content.get(change, IMAGE[::-1])
                image.mtime_ns += 1_000_000_000

        fake_daemon.before = alter
        stat, copy = self.fetch(client, tmp_path)
        assert copy == image.content
        assert stat.mtime_ns == image.mtime_ns

    @pytest.mark.parametrize("way", ["download", "stream"])
    def test_changed_for_ever(
        self, fake_daemon: FakeDaemon, client: Client, tmp_path: Path, way: str
    ) -> None:
        image = fake_daemon.root.children[b"image"]

        def alter(_request: Request) -> None:
            image.ctime_ns += 1_000_000_000
            image.content = image.content[1:] + image.content[:1]

        fake_daemon.before = alter
        with pytest.raises(RemoteError) as caught:
            self.fetch(client, tmp_path, way=way)
        assert caught.value.code == "CHANGED"
        fake_daemon.before = lambda _request: None
        assert self.fetch(client, tmp_path, way=way)[1] == image.content

    @pytest.mark.parametrize("way", ["download", "stream"])
    def test_just_written(
        self, fake_daemon: FakeDaemon, client: Client, tmp_path: Path, way: str
    ) -> None:
        """Its timestamps tell nothing yet: it is read twice, at once, and compared."""
        fake_daemon.settled = False
        assert self.fetch(client, tmp_path, way=way)[1] == IMAGE
        twice = [tuple(r.params[-2:]) for r in fake_daemon.requests if r.method == "read"]
        if transfer.LENT_LEAST == 1:
            assert len(twice) == 37  # once in loads
        else:
            assert len(twice) == 62
        assert fake_daemon.open == {}

    @pytest.mark.parametrize("way", ["download", "stream"])
    def test_written_all_the_time(
        self, fake_daemon: FakeDaemon, client: Client, tmp_path: Path, way: str
    ) -> None:
        """... and it differs, which no attribute shows."""
        image = fake_daemon.root.children[b"image"]

        def alter(_request: Request) -> None:
            image.content = image.content[1:] + image.content[:1]

        fake_daemon.settled, fake_daemon.before = False, alter
        with pytest.raises(RemoteError, match="CHANGED"):
            self.fetch(client, tmp_path, way=way)
        opened = sum(request.method == "open" for request in fake_daemon.requests)
        assert opened == (3 if way == "download" else 1)  # what was written is written

    @pytest.mark.parametrize(("path", "code"), [("boot", "EISDIR"), ("pipe", "EINVAL")])
    def test_what_is_no_file(self, client: Client, tmp_path: Path, path: str, code: str) -> None:
        with pytest.raises(RemoteError, match=code):
            self.fetch(client, tmp_path, path)

    def test_stream_of_a_file_that_shrinks(self, fake_daemon: FakeDaemon, client: Client) -> None:
        def shrink(request: Request) -> None:
            if request.method in PARTS:
                fake_daemon.root.children[b"image"].content = b"x"

        fake_daemon.before = shrink
        with pytest.raises(RemoteError, match="CHANGED"):
            client.stream("kernels", "image", lambda _: None)

    def test_a_stream_leaves_nothing_on_its_way_while_it_writes(
        self, fake_daemon: FakeDaemon, client: Client
    ) -> None:
        def write(_: memoryview) -> None:
            assert not client._talk.link.core._pending

        client.stream("kernels", "image", write)
        parts = sum(request.method in PARTS for request in fake_daemon.requests)
        assert parts == (38 if transfer.LENT_LEAST == 1 else 31)

    def test_a_writer_that_fails(self, client: Client) -> None:
        def refuse(_: memoryview) -> None:
            raise OSError(28, "full")

        with pytest.raises(OSError, match="full"):
            client.stream("kernels", "image", refuse)
        assert client.read("kernels", "image", 0, 10) == IMAGE[:10]
