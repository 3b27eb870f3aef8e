"""What makes a client pleasant: whole files in one call, files to seek in, patterns, a pool."""

import errno
import gzip
import io
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from tests.fake.rpc_server import IMAGE, FakeDaemon, FaultError, Node, directory
from tests.loops import Loop
from tests.unit.faces import Connect
from vuserd.client import Client, ClientPool, calls
from vuserd.client.calls import RemotePath
from vuserd.client.errors import CannotConnect, RemoteError
from vuserd.client.files import destinations, handles
from vuserd.client.records import Stat
from vuserd.wire.codec import Request, wire_name


def refuse_images(daemon: FakeDaemon) -> None:
    def do_fetch(*_: object) -> Any:
        raise FaultError("TOO_LARGE", "too large for an image")

    vars(daemon)["do_fetch"] = do_fetch


class TestRead:
    @pytest.mark.usefixtures("small_chunks")
    @pytest.mark.parametrize("size", [0, 1, 9_999, 10_000, 300_001])
    def test_bytes(self, fake_daemon: FakeDaemon, client: Client, size: int) -> None:
        fake_daemon.root.children[b"image"].content = IMAGE[:size]
        assert client.read_bytes("kernels", "image") == IMAGE[:size]
        assert fake_daemon.open == {}

    @pytest.mark.usefixtures("small_chunks")
    def test_a_file_that_changes_once(self, fake_daemon: FakeDaemon, client: Client) -> None:
        image = fake_daemon.root.children[b"image"]

        def alter(request: Request) -> None:
            if len(fake_daemon.requests) == 5 and request.method in ("read", "load"):
                image.content, image.mtime_ns = IMAGE[::-1], image.mtime_ns + 10**9

        fake_daemon.before = alter
        assert client.read_bytes("kernels", "image") == image.content

    def test_a_file_whose_size_is_untrue(self, fake_daemon: FakeDaemon, client: Client) -> None:
        fake_daemon.root.children[b"image"].size = 0
        assert client.read_bytes("kernels", "image") == IMAGE

    def test_a_file_with_holes(self, fake_daemon: FakeDaemon, client: Client) -> None:
        content = bytes(100_000) + IMAGE[:1000] + bytes(200_000)
        fake_daemon.root.children[b"image"] = Node(
            content=content, blocks=2, extents=[(100_000, 1000)]
        )
        assert client.read_bytes("kernels", "image") == content

    def test_text(self, fake_daemon: FakeDaemon, client: Client) -> None:
        fake_daemon.root.children[b"text"] = Node(content="früh".encode("latin-1"))
        assert client.read_text("kernels", "text", encoding="latin-1") == "früh"
        assert client.read_text("kernels", "text", errors="replace") == "fr\ufffdh"
        with pytest.raises(UnicodeDecodeError):
            client.read_text("kernels", "text")

    def test_what_is_none(self, client: Client) -> None:
        with pytest.raises(IsADirectoryError) as caught:
            client.read_bytes("kernels", "boot")
        assert caught.value.filename == "kernels:boot"


class TestDownload:
    def test_to_a_path(self, client: Client, tmp_path: Path) -> None:
        (tmp_path / "old").write_bytes(b"older")
        (tmp_path / "old").chmod(0o640)
        (tmp_path / "link").symlink_to("old")
        for to in (tmp_path / "new", str(tmp_path / "link"), os.fsencode(tmp_path / "bytes")):
            assert client.download("kernels", "image", to).size == len(IMAGE)
            assert Path(os.fsdecode(to)).read_bytes() == IMAGE
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "old").stat().st_mode & 0o777 == 0o640
        assert sorted(os.listdir(tmp_path)) == ["bytes", "d.sock", "link", "new", "old"]

    def test_a_new_file_has_its_blocks_before_its_bytes(
        self, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        set_aside: list[tuple[int, int]] = []

        def record(fileno: int, source: Stat) -> None:
            set_aside.append((os.fstat(fileno).st_size, source.size))

        monkeypatch.setattr(destinations, "set_aside", record)
        (tmp_path / "old").write_bytes(b"older")
        client.download("kernels", "image", tmp_path / "old")
        assert set_aside == []
        client.download("kernels", "image", tmp_path / "new")
        assert set_aside == [(0, len(IMAGE))]

    def test_a_path_that_fails(
        self, client: Client, fake_daemon: FakeDaemon, tmp_path: Path
    ) -> None:
        """What was there stays there, and nothing is left behind."""
        (tmp_path / "old").write_bytes(b"older")
        with pytest.raises(FileNotFoundError):
            client.download("kernels", "nothing", tmp_path / "old")
        with pytest.raises(OSError, match="no regular file"):
            client.download("kernels", "image", tmp_path)
        with pytest.raises(OSError, match="no regular file"):
            client.download("kernels", "image", os.devnull)
        with pytest.raises(FileNotFoundError) as caught:
            client.download("kernels", "image", tmp_path / "no" / "where")
        assert caught.value.filename == str(tmp_path / "no" / "where")
        assert (tmp_path / "old").read_bytes() == b"older"
        assert sorted(os.listdir(tmp_path)) == ["d.sock", "old"]
        assert fake_daemon.open == {}

    def test_a_link_that_may_not_be_followed(
        self, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Others' links in /tmp, say, of which the kernel says so: fs.protected_symlinks."""
        place, really = tmp_path / "link", os.stat
        place.symlink_to("precious")
        (tmp_path / "precious").write_bytes(b"data")

        def stat(path: Any, **options: Any) -> os.stat_result:
            if path == str(place):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return really(path, **options)

        monkeypatch.setattr(os, "stat", stat)
        with pytest.raises(PermissionError):
            client.download("kernels", "image", place)
        monkeypatch.undo()
        assert (tmp_path / "precious").read_bytes() == b"data"
        assert place.is_symlink()

    def test_to_objects(self, client: Client, tmp_path: Path) -> None:
        memory = io.BytesIO(b"older and longer" * 30_000)
        client.download("kernels", "image", memory)
        assert memory.getvalue() == IMAGE
        for mode in ("w+b", "r+b"):
            with open(tmp_path / "copy", mode) as file:
                file.write(b"older")
                client.download("kernels", "image", file)
                file.write(b"behind")
            assert (tmp_path / "copy").read_bytes() == IMAGE + b"behind"
        with open(tmp_path / "raw", "wb", buffering=0) as raw:
            client.download("kernels", "image", raw)
        assert (tmp_path / "raw").read_bytes() == IMAGE
        with gzip.open(tmp_path / "copy.gz", "wb") as packed:
            client.download("kernels", "image", packed)
        with gzip.open(tmp_path / "copy.gz") as packed:
            assert packed.read() == IMAGE

    def test_to_a_pipe(self, client: Client) -> None:
        reading, writing = os.pipe()
        got: list[bytes] = []
        with open(reading, "rb") as source:
            reader = threading.Thread(target=lambda: got.append(source.read()))
            reader.start()
            with open(writing, "wb") as sink:
                client.download("kernels", "image", sink)
            reader.join()
        assert got == [IMAGE]

    def test_to_text(self, client: Client) -> None:
        with pytest.raises(TypeError, match="'wb'"):
            client.download("kernels", "image", io.StringIO())  # type: ignore[arg-type]

    def test_an_object_that_takes_little(self, client: Client) -> None:
        class Short:
            content = b""

            def write(self, payload: memoryview) -> int:
                self.content += bytes(payload[:50_000])
                return min(50_000, len(payload))

        short = Short()
        client.download("kernels", "image", short)
        assert short.content == IMAGE

    @pytest.mark.parametrize("name", ["image", "empty"])
    def test_new_content_gets_no_set_user_id_bits(
        self, client: Client, tmp_path: Path, name: str
    ) -> None:
        """As after a write by any user but root, who would make another's program one of root's."""
        (tmp_path / "old").touch()
        (tmp_path / "old").chmod(0o6755)
        client.download("kernels", name, tmp_path / "old")
        assert (tmp_path / "old").stat().st_mode & 0o7777 == 0o755

    @pytest.mark.parametrize("make", [io.BytesIO, tempfile.NamedTemporaryFile])
    def test_an_object_keeps_what_it_has_where_nothing_comes(
        self, client: Client, make: Callable[[], Any]
    ) -> None:
        with make() as file:
            file.write(b"older")
            with pytest.raises(FileNotFoundError):
                client.download("kernels", "no", file)
            file.seek(0)
            assert file.read() == b"older"
            client.download("kernels", "odd", file)
            assert file.tell() == 3
            file.seek(0)
            assert file.read() == b"odd"

    def test_an_object_that_cannot_be_cut_off_is_written_from_its_beginning(
        self, client: Client
    ) -> None:
        class Disk(io.BytesIO):
            def truncate(self, size: int | None = None, /) -> int:
                raise io.UnsupportedOperation(size)

        disk = Disk(bytes(1000))
        client.download("kernels", "odd", disk)
        assert disk.getvalue() == b"odd" + bytes(997)

    def test_one_that_is_cancelled_while_its_file_is_made(
        self, fake_daemon: FakeDaemon, tmp_path: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun, go_on = threading.Event(), threading.Event()
        make = destinations._make_beside
        made: list[int] = []

        def slowly(local: str) -> tuple[str, str, int, bool]:
            begun.set()
            go_on.wait(10)
            found = make(local)
            made.append(found[2])
            return found

        monkeypatch.setattr(destinations, "_make_beside", slowly)

        async def cancel() -> None:
            async with loop.client.connect(fake_daemon.address) as client, loop.group() as group:
                task = group.start(client.download, "kernels", "image", tmp_path / "copy")
                while not begun.is_set():
                    await loop.sleep(0.01)
                task.cancel()
                await loop.settle()
                go_on.set()

        loop.run(cancel)
        assert os.listdir(tmp_path) == ["d.sock"]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(made[0])


class TestOpen:
    @pytest.fixture(params=["image", "parts"], autouse=True)
    def _way(self, request: pytest.FixtureRequest, fake_daemon: FakeDaemon) -> None:
        if request.param == "parts":
            refuse_images(fake_daemon)

    def test_read_and_seek(self, client: Client, fake_daemon: FakeDaemon) -> None:
        with client.open("kernels", "/image") as file:
            assert file.name == "kernels:/image"
            assert file.read(10) == IMAGE[:10]
            assert file.seek(-5, os.SEEK_END) == len(IMAGE) - 5
            assert file.read() == IMAGE[-5:]
            assert file.read(1) == b""
            assert file.seek(200_000) == file.tell() == 200_000
            assert file.read() == IMAGE[200_000:]
            file.seek(0)
            buffer = bytearray(7)
            assert file.readinto(buffer) == 7
            assert buffer == IMAGE[:7]
            with pytest.raises((ValueError, OSError)):
                file.seek(-1)
        assert file.closed
        for size in (1, 0):
            with pytest.raises(ValueError, match="closed"):
                file.read(size)
        client.exports()
        assert fake_daemon.open == {}

    def test_empty(self, client: Client) -> None:
        with client.open("kernels", "empty") as file:
            assert file.read() == b""

    def test_errors(self, client: Client) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            client.open("kernels", "nothing")
        assert caught.value.filename == "kernels:nothing"

    def test_one_version(self, client: Client, fake_daemon: FakeDaemon) -> None:
        with client.open("kernels", "image") as file:
            node = fake_daemon.root.children[b"image"]
            node.content, node.mtime_ns = IMAGE[::-1], node.mtime_ns + 1
            if "do_fetch" in vars(fake_daemon):
                with pytest.raises(RemoteError, match="CHANGED"):
                    file.read()
            else:
                assert file.read() == IMAGE


class TestParts:
    def test_one_that_is_not_settled(self, client: Client, fake_daemon: FakeDaemon) -> None:
        refuse_images(fake_daemon)
        fake_daemon.settled = False

        def settle(_: Request) -> None:
            fake_daemon.settled = len(fake_daemon.requests) > 6

        fake_daemon.before = settle
        with client.open("kernels", "image") as file:
            assert file.read() == IMAGE

    @pytest.mark.parametrize("by_attributes", [True, False])
    def test_a_restart(
        self,
        client: Client,
        fake_daemon: FakeDaemon,
        monkeypatch: pytest.MonkeyPatch,
        by_attributes: bool,
    ) -> None:
        monkeypatch.setattr(handles, "_AHEAD", 16)
        refuse_images(fake_daemon)
        fake_daemon.by_attributes = by_attributes
        with client.open("kernels", "image") as file:
            first = file.read(10)
            file.seek(0)
            fake_daemon.end_connections()
            if by_attributes:
                assert file.read() == IMAGE
            else:
                with pytest.raises(RemoteError, match="CHANGED"):
                    file.read()
        assert first == IMAGE[:10]


PATTERNS: dict[str, list[str]] = {
    "image": ["image"],
    "/image": ["/image"],
    "nothing": [],
    "nothing/*": [],
    "*": ["boot", "empty", "image", "lib", "link", "odd", "pipe", "\udcff"],
    "/boot/*": ["/boot/a", "/boot/b"],
    "/boot/[b-z]": ["/boot/b"],
    "*/a": ["boot/a", "lib/a"],
    "image/*": [],
    "*/*/*.ko": ["lib/5.1/x.ko"],
    "lib/**": ["lib", "lib/5.1", "lib/5.1/x.ko", "lib/a"],
    "lib/**/*.ko": ["lib/5.1/x.ko"],
    "**/a": ["boot/a", "lib/a"],
    "**/.*": ["lib/.hidden"],
    "l*/**/**/x.k?": ["lib/5.1/x.ko"],
    "lib/./5.1//x.*": ["lib/5.1/x.ko"],
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_glob(
    client: Client, fake_daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    modules = Node("dir", children={b"x.ko": Node()})
    fake_daemon.root.children[b"lib"] = Node(
        "dir", children={b"a": Node(), b"5.1": modules, b".hidden": Node()}
    )

    def do_walk(export: object, path: object, _: object) -> Any:
        found: list[dict[str, object]] = []

        def visit(node: Node, above: bytes) -> None:
            for name, child in node.children.items():
                path = above + name
                found.append({"path": wire_name(path), "type": child.type, "ino": 1})
                visit(child, path + b"/")

        visit(fake_daemon.find(export, path), b"")
        return {"entries": found, "problems": [], "next": None}

    monkeypatch.setattr(fake_daemon, "do_walk", do_walk, raising=False)
    assert list(client.glob("kernels", pattern)) == PATTERNS[pattern]


@pytest.mark.timeout(20)
def test_glob_of_a_deep_tree(client: Client, fake_daemon: FakeDaemon) -> None:
    """Neither its depth nor the ways that ``**`` may stand for it take much."""
    path = "a/" * 2000 + "b.ko"
    entry = {"path": path, "type": "file", "ino": 1}
    fake_daemon.results["walk"] = {"entries": [entry], "problems": [], "next": None}
    assert list(client.glob("kernels", "**/*.ko")) == [path]
    assert list(client.glob("kernels", "**/a/**/a/**/a/**/c")) == []


@pytest.mark.parametrize("pattern", [b"boot/*", PurePosixPath("boot/*")])
def test_glob_takes_what_paths_are(client: Client, pattern: RemotePath) -> None:
    assert list(client.glob("kernels", pattern)) == list(client.glob("kernels", "boot/*")) != []


def test_glob_of_no_export(client: Client) -> None:
    with pytest.raises(RemoteError, match="UNKNOWN_EXPORT"):
        list(client.glob("others", "*"))


class TestAttributes:
    """Entries that came without are looked at."""

    def listed_without(self, daemon: FakeDaemon, *names: str) -> Callable[[], None]:
        do_readdir = daemon.do_readdir

        def without(*arguments: Any) -> Any:
            page = do_readdir(*arguments)
            for entry in page["entries"]:
                if entry["name"] in names:
                    entry.pop("mode", None)
            return page

        vars(daemon)["do_readdir"] = without
        return lambda: None

    def test_they_are_asked_for(self, client: Client, fake_daemon: FakeDaemon) -> None:
        self.listed_without(fake_daemon, "image", "link")
        found = {entry.name: entry.stat for entry in client.iterdir("kernels", "", attrs=True)}
        assert found["image"].size == len(IMAGE)
        assert found["link"].type == "symlink"

    def test_one_is_gone(self, client: Client, fake_daemon: FakeDaemon) -> None:
        self.listed_without(fake_daemon, "a")

        def remove(request: Request) -> None:
            if request.method == "stat":
                fake_daemon.root.children[b"boot"] = directory(b=Node())

        fake_daemon.before = remove
        assert [e.name for e in client.iterdir("kernels", "/boot", attrs=True)] == ["b"]

    def test_one_cannot_be_had(self, client: Client, fake_daemon: FakeDaemon) -> None:
        self.listed_without(fake_daemon, "a")

        def do_stat(*_: object) -> Any:
            raise FaultError("EIO", "no")

        vars(fake_daemon)["do_stat"] = do_stat
        a, b = client.iterdir("kernels", "/boot", attrs=True)
        assert (a.name, a.type, b.name, b.stat.type) == ("a", "file", "b", "file")
        with pytest.raises(OSError, match="kernels:/boot/a: stat: no"):
            _ = a.stat


class TestPool:
    def test_threads_share_it(self, fake_daemon: FakeDaemon) -> None:
        found: list[bytes] = []
        with ClientPool(fake_daemon.address, size=3) as pool:

            def read(number: int) -> None:
                for _ in range(5):
                    with pool.client() as client:
                        found.append(client.read("kernels", "image", number, 1))

            threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert sorted(found) == sorted(IMAGE[n : n + 1] for n in range(8) for _ in range(5))
        assert 1 <= fake_daemon.connections <= 3

    def test_what_is_left_on_a_connection_ends_with_it(self, fake_daemon: FakeDaemon) -> None:
        with ClientPool(fake_daemon.address) as pool:
            with pool.client() as client:
                client.begin(calls.exports())
            with pool.client() as client:
                attached = client.attach(size=4096)
                attached.load("kernels", "odd", 0)
            with pool.client() as client:
                client.close()
            with pool.client() as client:
                assert client.exports()
            with pool.client() as client:
                assert client.exports()
            attached._memory.close()
        assert fake_daemon.connections == 4

    def test_the_child_of_a_fork_has_its_own(self, fake_daemon: FakeDaemon) -> None:
        with ClientPool(fake_daemon.address, timeout=10) as pool:
            with pool.client() as client:
                client.exports()
            child = os.fork()
            if not child:
                with pool.client() as client:
                    os._exit(0 if client.exports() else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            with pool.client() as client:
                assert client.exports()
        assert fake_daemon.connections == 2

    def test_a_client_that_was_lent_before_a_fork_stays_the_parents(
        self, fake_daemon: FakeDaemon
    ) -> None:
        with ClientPool(fake_daemon.address, timeout=10) as pool:
            child = -1
            with pool.client() as lent:
                lent.exports()
                child = os.fork()
                if not child:
                    with pool.client() as own:
                        own.exports()
            if not child:
                with pool.client() as one, pool.client() as two:
                    os._exit(1 if lent in (one, two) else 0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            with pool.client() as client:
                assert client is lent
                assert client.exports()

    def test_two_threads_close_it(self, fake_daemon: FakeDaemon) -> None:
        """As where one gives its client back while another closes the pool."""
        pool = ClientPool(fake_daemon.address)

        class Raced(list[Client]):
            def __len__(self) -> int:
                count = super().__len__()
                if count and threading.current_thread() is threading.main_thread():
                    other = threading.Thread(target=pool.close)
                    other.start()
                    other.join()
                return count

        with pool.client() as client:
            assert client.exports()
        pool._idle = Raced(pool._idle)
        pool.close()
        assert list(pool._idle) == []

    def test_closed(self, fake_daemon: FakeDaemon, tmp_path: Path) -> None:
        pool = ClientPool(fake_daemon.address)
        with pool.client() as lent:
            pool.close()
            assert lent.exports()
        with pytest.raises(RuntimeError, match="closed"), pool.client():
            pass
        child = os.fork()
        if not child:
            try:
                with pool.client():
                    os._exit(1)
            except RuntimeError:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pytest.raises(CannotConnect), ClientPool(str(tmp_path / "none")).client():
            pass
        with pytest.raises(ValueError, match="0 clients"):
            ClientPool(size=0)


def test_timeouts_hold_for_open_files(connect: Connect, fake_daemon: FakeDaemon) -> None:
    refuse_images(fake_daemon)
    with connect(fake_daemon.address) as client:
        file = client.open("kernels", "image", timeout=1)
        fake_daemon.reads.clear()
        with pytest.raises(TimeoutError, match=r"^kernels:image: "):
            file.read(1)
        fake_daemon.reads.set()
        assert file.read(1) == IMAGE[:1]
        file.close()
