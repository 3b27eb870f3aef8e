"""Sparse files stay sparse: in what get, get -r and download write, and in images."""

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stderr
from pathlib import Path
from typing import Final

import pytest

from tests.running import RunningDaemon
from tests.systems.conftest import without
from tests.systems.grounds import GROUNDS
from tests.systems.mounting import make_image, mounted, mounted_image, shared_folder
from vuserd.client import Client
from vuserd.ctl import main

_KINDS: Final = {
    "ext4": ("mkfs.ext4", "-q", "-b", "4096"),  # smaller blocks would keep files below 1 TiB
    "xfs": ("mkfs.xfs", "-q"),
    "btrfs": ("mkfs.btrfs", "--quiet"),
    "tmpfs": None,
}
_DATA: Final = b"here is data" * 100
_SIZES: Final = {"small": 40 << 20, "large": 4 << 30, "huge": 1 << 40}
#: Of copies: what a page or block of each piece of data, and a file system's own blocks, may take.
_MOST_BLOCKS: Final = 4 << 20


def islands(size: int) -> list[int]:
    """Return where a sparse file has data; it ends with a hole."""
    return [0, 70_000, size // 2 - 7, size - (1 << 20) - 1]


@pytest.fixture(scope="module", params=_KINDS)
def disk(request: pytest.FixtureRequest, _root: None) -> Iterator[Path]:
    """Yield a small file system: with the exported folder, and room for copies that are sparse."""
    kind: str = request.param
    command = _KINDS[kind]
    lacking = GROUNDS.get(kind, GROUNDS["ext4-256"]).lacking()
    if lacking is not None:
        pytest.skip(lacking)
    with shared_folder("sparse") as base, ExitStack() as stack:
        place = base / "disk"
        place.mkdir()
        if command is None:
            stack.enter_context(mounted("-t", "tmpfs", "-o", "size=64M", "tmpfs", place))
        else:
            ground = GROUNDS.get(kind, GROUNDS["ext4-256"])
            if ground.not_installed():
                without(f"{kind}: {ground.not_installed()}")
            image = make_image(base / "image", 320, *command)
            stack.enter_context(mounted_image(image, place))
        export = place / "export"
        for name, size in _SIZES.items():
            (export / name).mkdir(parents=True)
            with open(export / name / "file", "wb") as file:
                file.truncate(size)
                for begin in islands(size):
                    os.pwrite(file.fileno(), _DATA, begin)
        yield place


@pytest.fixture(scope="module")
def client(disk: Path, virtiofsd: str) -> Iterator[Client]:
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "s"
        exports = {"files": disk / "export"}
        with RunningDaemon(exports, socket, virtiofsd), Client.connect(str(socket)) as client:
            yield client


@pytest.fixture
def copies(disk: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=disk) as folder:
        yield Path(folder)


def vuserctl_get(client: Client, name: str, folder: Path, *options: str) -> Path:
    """Fetch by the command; return where the file is."""
    said = io.StringIO()
    source = f"files:{name}" if options else f"files:{name}/file"
    address = client._talk._address
    assert address is not None
    with redirect_stderr(said):
        arguments = ["--socket", address.address, "get", *options, source, str(folder / "copy")]
        assert main.run(arguments) == 0, said.getvalue()
    return folder / "copy" / "file" if options else folder / "copy"


def get(client: Client, name: str, folder: Path) -> Path:
    return vuserctl_get(client, name, folder)


def get_r(client: Client, name: str, folder: Path) -> Path:
    return vuserctl_get(client, name, folder, "-r")


def download(client: Client, name: str, folder: Path) -> Path:
    with open(folder / "copy", "w+b") as file:
        client.download("files", f"{name}/file", file.fileno())
    return folder / "copy"


def extents(descriptor: int) -> Iterator[tuple[int, int]]:
    """Yield where data begins and ends, as far as the file system shows."""
    begin = end = 0
    while True:
        try:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # no data after this
            return
        end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        yield begin, end


def check(copy: Path, host: Path) -> None:
    """Expect the bytes of the file on the host, and no more blocks than these take."""
    size = host.stat().st_size
    assert copy.stat().st_size == size
    assert copy.stat().st_blocks * 512 < _MOST_BLOCKS
    with open(copy, "rb") as file:
        for begin in islands(size):
            assert os.pread(file.fileno(), len(_DATA), begin) == _DATA
        for begin, end in extents(file.fileno()):
            piece = os.pread(file.fileno(), end - begin, begin)
            assert piece == host_bytes(host, begin, end)


def host_bytes(host: Path, begin: int, end: int) -> bytes:
    with open(host, "rb") as file:
        return os.pread(file.fileno(), end - begin, begin)


@pytest.mark.parametrize("size", _SIZES)
@pytest.mark.parametrize("way", [get, get_r, download], ids=lambda way: way.__name__)
def test_copies_stay_sparse(
    client: Client,
    disk: Path,
    copies: Path,
    way: Callable[[Client, str, Path], Path],
    size: str,
) -> None:
    check(way(client, size, copies), disk / "export" / size / "file")


def test_a_copy_over_an_older_one(client: Client, disk: Path, copies: Path) -> None:
    """Where the older one had data there are zeros now, in a file that stays the same."""
    with open(copies / "copy", "w+b") as file:
        file.write(b"older" * (2 << 20))
        file.flush()
        client.download("files", "small/file", file.fileno())
    check(copies / "copy", disk / "export" / "small" / "file")


def test_an_image_costs_what_it_holds(client: Client) -> None:
    with client.fetch("files", "large/file") as image, image.buffer() as buffer:
        assert len(buffer) == _SIZES["large"]
        assert os.fstat(image.fileno()).st_blocks * 512 < _MOST_BLOCKS
        for begin in islands(_SIZES["large"]):
            assert buffer[begin : begin + len(_DATA)] == _DATA
        assert not any(buffer[200_000:300_000])
