"""The file system of fsspec, over a real daemon."""

import asyncio
import errno
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.integrations.conftest import Exported
from vuserd.client import BadReply, CannotConnect, ClientError, ConnectionLost, RemoteError
from vuserd.integrations.fsspec.errors import os_errors
from vuserd.integrations.fsspec.filesystem import VuserdFileSystem

CONTENT = b"0123456789"
LARGE = os.urandom(3 << 20)  # too large for an image


@pytest.fixture(scope="module")
def options(exported: Exported) -> dict[str, Any]:
    """Make files, and return the options of a file system that has them."""
    folder = exported.directory / "boot"
    (folder / "dtbs" / "empty").mkdir(parents=True)
    (folder / "Image").write_bytes(CONTENT)
    (folder / "dtbs" / "a.dtb").write_bytes(b"a")
    (folder / "dtbs" / "b.dtb").write_bytes(b"bb")
    (folder / "vmlinuz").symlink_to("Image")
    (folder / "up").symlink_to("../boot")
    (folder / "nowhere").symlink_to("none")
    (exported.directory / "large").write_bytes(LARGE)
    os.mkfifo(folder / "pipe")
    return {"socket": exported.socket, "timeout": 60}


@pytest.fixture
def fs(options: dict[str, Any]) -> Iterator[VuserdFileSystem]:
    yield fsspec.filesystem("vuserd", **options)
    VuserdFileSystem.clear_instance_cache()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # fsspec 2025.3's
@pytest.mark.usefixtures("fs")
def test_an_address_is_all_it_takes(options: dict[str, Any], tmp_path: Path) -> None:
    with fsspec.open("vuserd://files/boot/Image", **options) as file:
        assert file.read() == CONTENT
    with fsspec.open("vuserd://files/boot/Image", "rt", **options) as text:
        assert text.read() == CONTENT.decode()
    [local] = fsspec.open_local(
        ["simplecache::vuserd://files/boot/vmlinuz"],
        vuserd=options,
        simplecache={"cache_storage": str(tmp_path)},
    )
    assert Path(local).read_bytes() == CONTENT


def test_it_lists(fs: VuserdFileSystem) -> None:
    assert fs.isdir("vuserd://")
    assert fs.ls("", detail=False) == ["files"]
    assert fs.ls("vuserd://files/", detail=False) == ["files/boot", "files/large"]
    kinds = {info["name"]: info["type"] for info in fs.ls("files/boot")}
    assert kinds == {
        "files/boot/Image": "file",
        "files/boot/dtbs": "directory",
        "files/boot/vmlinuz": "file",
        "files/boot/up": "other",
        "files/boot/nowhere": "other",
        "files/boot/pipe": "other",
    }
    assert [info["name"] for info in fs.ls("files/boot/Image")] == ["files/boot/Image"]
    found = ["files/boot/dtbs/a.dtb", "files/boot/dtbs/b.dtb"]
    assert fs.find("files/boot/dtbs") == fs.glob("files/**/*.dtb") == found
    assert fs.find("files/boot/dtbs", withdirs=True) == [
        "files/boot/dtbs",
        *found,
        "files/boot/dtbs/empty",
    ]
    assert fs.find("files/boot/Image") == fs.find("files/boot/Image", maxdepth=1)
    assert fs.find("files/none") == []
    walk = fs.walk("files/boot/dtbs")
    walked = [(path, sorted(folders), sorted(files)) for path, folders, files in walk]
    assert walked == [
        ("files/boot/dtbs", ["empty"], ["a.dtb", "b.dtb"]),
        ("files/boot/dtbs/empty", [], []),
    ]
    assert fs.du("files/boot/dtbs") == 3
    assert fs.du("files/boot/dtbs", total=False) == dict(zip(found, (1, 2), strict=True))


def test_it_tells_of_files(fs: VuserdFileSystem, exported: Exported) -> None:
    real = os.stat(exported.directory / "boot" / "Image")
    info = fs.info("files/boot/vmlinuz")
    assert (info["type"], info["islink"], info["destination"]) == ("file", True, "Image")
    assert (info["size"], info["ino"], info["mtime_ns"]) == (10, real.st_ino, real.st_mtime_ns)
    assert fs.modified("files/boot/Image").timestamp() == pytest.approx(real.st_mtime)
    assert fs.created("files/boot/Image").timestamp() == pytest.approx(real.st_ctime)
    asks = (fs.exists, fs.isdir, fs.isfile)
    assert [ask("files/boot/dtbs") for ask in asks] == [True, True, False]
    assert [ask("files/boot/Image") for ask in asks] == [True, False, True]
    for none in ("files/none", "files/boot/Image/x", "none/x"):
        assert not any(ask(none) for ask in asks)


def test_what_is_written_is_another_version(fs: VuserdFileSystem, exported: Exported) -> None:
    file = exported.directory / "log"
    file.write_bytes(b"one")
    before = fs.ukey("files/log"), fs.checksum("files/log")
    assert before == (fs.ukey("files/log"), fs.checksum("files/log"))
    with fs.open("files/log") as opened:
        file.write_bytes(b"three")
        assert opened.read() == b"one"
    assert fs.cat("files/log") == b"three"
    assert fs.ukey("files/log") != before[0]
    assert fs.checksum("files/log") != before[1]
    file.unlink()


def test_it_reads_ranges(fs: VuserdFileSystem) -> None:
    image, large = "files/boot/Image", "files/large"
    ranges = [(None, None), (2, 5), (2, -2), (-3, None), (8, 99), (5, 2), (0, 0), (20, 30)]
    for start, end in ranges:
        assert fs.cat_file(image, start, end) == CONTENT[start:end]
        assert fs.cat_file(large, start, end) == LARGE[start:end]
    starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
    expected = [CONTENT[start:end] for start, end in ranges]
    assert fs.cat_ranges([image] * len(ranges), starts, ends) == expected
    two, none = fs.cat_ranges([large, "files/none"], 1, 3)
    assert two == LARGE[1:3]
    assert isinstance(none, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges([large, "files/none"], 1, 3, on_error="raise")
    with pytest.raises(ValueError, match="3 offsets of 1 paths"):
        fs.cat_ranges([large], [1, 2, 3], 4)
    with pytest.raises(NotImplementedError):
        fs.cat_ranges([large], 1, 2, max_gap=1)
    with pytest.raises(TypeError):
        fs.cat_ranges(large, 1, 2)
    assert fs.cat(["files/boot/dtbs/a.dtb", "files/boot/dtbs/b.dtb"]) == {
        "files/boot/dtbs/a.dtb": b"a",
        "files/boot/dtbs/b.dtb": b"bb",
    }
    assert dict(fs.get_mapper("files/boot/dtbs")) == {"a.dtb": b"a", "b.dtb": b"bb"}


def test_a_large_file_is_read_in_blocks(fs: VuserdFileSystem, exported: Exported) -> None:
    path = exported.directory / "changing"
    path.write_bytes(LARGE)
    with fs.open("files/changing", block_size=4096) as file:
        assert file.name == "files:/changing"
        assert file.read(10) == LARGE[:10]
        file.seek(-10, os.SEEK_END)
        assert file.read() == LARGE[-10:]
        file.seek(5)
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(file.read).result() == LARGE[5:]
        path.write_bytes(LARGE + b"more")
        file.seek(0)
        with pytest.raises(OSError, match="CHANGED") as raised:
            file.read()
    assert raised.value.errno == errno.ESTALE
    path.unlink()


def test_a_directory_is_copied(fs: VuserdFileSystem, tmp_path: Path) -> None:
    counted = fsspec.Callback()
    fs.get("files/boot", str(tmp_path), recursive=True, callback=counted)
    copied = {
        str(path.relative_to(tmp_path)): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert copied == {
        "boot/Image": CONTENT,
        "boot/vmlinuz": CONTENT,
        "boot/dtbs/a.dtb": b"a",
        "boot/dtbs/b.dtb": b"bb",
    }
    assert (tmp_path / "boot" / "dtbs" / "empty").is_dir()
    assert counted.value == 4
    fs.get("files", f"{tmp_path}/all", recursive=True)
    assert (tmp_path / "all" / "large").read_bytes() == LARGE
    (tmp_path / "all" / "boot" / "Image").unlink()
    (tmp_path / "all" / "boot" / "Image").mkdir()
    with pytest.raises(IsADirectoryError):
        fs.get("files/", f"{tmp_path}/all/", recursive=True)


def test_a_file_is_copied_with_progress(fs: VuserdFileSystem, tmp_path: Path) -> None:
    counted = fsspec.Callback()
    fs.get_file("files/large", str(tmp_path / "large"), callback=counted)
    assert (counted.value, counted.size) == (len(LARGE), len(LARGE))
    fs.get("files/boot/dtbs/*.dtb", str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["a.dtb", "b.dtb", "large"]


@pytest.mark.parametrize("path", ["files/none", "none/x", "files/none/x"])
@pytest.mark.parametrize("method", ["info", "ls", "cat_file", "open", "ukey", "get_file"])
def test_what_is_not_there_is_a_file_not_found(
    fs: VuserdFileSystem, path: str, method: str, tmp_path: Path
) -> None:
    more = [str(tmp_path / "x")] if method == "get_file" else []
    with pytest.raises(FileNotFoundError):
        getattr(fs, method)(path, *more)


@pytest.mark.parametrize(
    "write",
    [
        lambda fs: fs.open("files/x", "wb"),
        lambda fs: fs.open("files/x", "a"),
        lambda fs: fs.pipe_file("files/x", value=b""),
        lambda fs: fs.put_file(lpath=__file__, rpath="files/x"),
        lambda fs: fs.put(__file__, "files/x"),
        lambda fs: fs.copy("files/large", "files/x"),
        lambda fs: fs.mv("files/large", "files/x"),
        lambda fs: fs.rm("files/boot", recursive=True),
        lambda fs: fs.rm_file("files/x"),
        lambda fs: fs.mkdir("files/x"),
        lambda fs: fs.makedirs("files/x", exist_ok=True),
        lambda fs: fs.rmdir("files/boot"),
        lambda fs: fs.touch("files/x"),
    ],
)
def test_what_writes_is_refused(
    fs: VuserdFileSystem, write: Callable[[VuserdFileSystem], object]
) -> None:
    with pytest.raises(OSError, match="Read-only") as raised:
        write(fs)
    assert raised.value.errno == errno.EROFS


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (RemoteError("UNKNOWN_EXPORT", "none"), errno.ENOENT),
        (RemoteError("DENIED", "no"), errno.EACCES),
        (RemoteError("TIMEOUT", "late"), errno.ETIMEDOUT),
        (RemoteError("BACKEND_DOWN", "down"), errno.EIO),
        (RemoteError("ENOTDIR", "no directory"), errno.ENOTDIR),
        (CannotConnect([("/s", OSError())]), errno.ECONNREFUSED),
        (ConnectionLost("gone"), errno.ECONNRESET),
        (BadReply("odd"), errno.EPROTO),
    ],
)
def test_each_error_of_a_client_is_an_os_error(error: ClientError, number: int) -> None:
    with pytest.raises(OSError, match=re.escape(str(error))) as raised, os_errors("files/x"):
        raise error
    assert raised.value.errno == number


def test_no_daemon_is_an_error_of_the_system(tmp_path: Path) -> None:
    fs = fsspec.filesystem("vuserd", socket=str(tmp_path / "none"), skip_instance_cache=True)
    for attempt in (fs.ls, fs.exists, fs.isfile, fs.open):
        with pytest.raises(ConnectionRefusedError, match="cannot connect to the daemon"):
            attempt("files/boot")


def test_threads_and_pickles_share_it(fs: VuserdFileSystem) -> None:
    again = pickle.loads(pickle.dumps(fs))
    assert again == fs
    with ThreadPoolExecutor(4) as threads:
        read = threads.map(again.cat_file, ["files/boot/Image"] * 40)
        assert {*read} == {CONTENT}


def test_a_child_of_a_fork_goes_on_with_it(options: dict[str, Any]) -> None:
    program = f"""
import fsspec, logging, os
logging.getLogger("asyncio").setLevel("ERROR")  # on a busy machine it warns of steps that take long
fs = fsspec.filesystem("vuserd", **{options!r})
assert fs.cat("files/boot/Image") == {CONTENT!r}
child = os.fork()
assert fs.cat("files/boot/Image") == {CONTENT!r}
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert fs.cat("files/boot/Image") == {CONTENT!r}
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_tasks_await_it(options: dict[str, Any]) -> None:
    fs = VuserdFileSystem(**options, asynchronous=True, skip_instance_cache=True)

    async def read() -> list[Any]:
        async with await fs.open_async("files/large") as file:
            begin = await file.read(7)
            return [begin, await file.read(), *await asyncio.gather(*map(fs._cat_file, paths))]

    paths = ["files/boot/Image", "files/boot/dtbs/b.dtb"]
    for _ in range(2):  # two loops, one after the other
        assert asyncio.run(read()) == [LARGE[:7], LARGE[7:], CONTENT, b"bb"]
    with pytest.raises(RuntimeError, match="open_async"):
        fs.open("files/large")
    with pytest.raises(OSError, match="Read-only"):
        asyncio.run(fs.open_async("files/large", "wb"))


def test_a_file_that_is_forgotten_in_the_loops_own_thread_is_closed(fs: VuserdFileSystem) -> None:
    """As by Python's cycle collector; a client may have 64 files open."""
    loop = fs.loop
    assert loop is not None
    for _ in range(70):
        files = [fs.open("files/large")]
        assert files[0].read(9) == LARGE[:9]
        loop.call_soon_threadsafe(files.clear)
