"""Linux's own driver is the judge: what it sees of a directory through virtiofsd, vuserd sees, too.

The driver is fs/fuse/virtio_fs.c, in User-mode Linux, with its own connection to a Rust virtiofsd.
"""

import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from examples import boot_uml, demo_boot
from tests.conformance.relay import Relay
from tests.conformance.requests import PAGE, backend, markdown, of_vuserd
from tests.e2e.host_tree import make_tree
from tests.running import RunningDaemon
from tests.uml import SCRIPT, Seen, rig_folder, what_was_seen
from vuserd.client import Client

#: The name of the largest file of a host tree: 64 MiB.
LARGEST: Final = "file-11"
#: Mounts what is behind the relay.
MOUNT: Final = """\
insmod /fuse.ko && insmod /virtiofs.ko && mount -t virtiofs -o ro lab /mnt || exit 9
"""


@pytest.fixture(scope="module")
def rig() -> Path:
    return rig_folder()


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """Yield a directory of 1,200 names; with a mount in it, where that is allowed."""
    tree = tmp_path / "tree"
    tree.mkdir()
    make_tree(tree, files=850)
    [folder] = [folder for folder, _, files in os.walk(tree) if LARGEST in files]
    os.unlink(os.path.join(folder, LARGEST))  # sums take their time
    below = tree / "another file system"
    below.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(below)]
    is_mounted = subprocess.run(mount, check=False, stderr=subprocess.DEVNULL).returncode == 0
    (below / "file").write_text("there")
    os.link(below / "file", below / "again")
    yield tree
    if is_mounted:
        subprocess.run(["umount", below], check=True)


def what_linux_sees(client: Client, device: str) -> dict[bytes, Seen]:
    """Boot a rig that mounts what is behind a socket, and writes down all of it."""
    with (
        client.fetch("rig", "linux") as kernel,
        boot_uml.memfd("initramfs") as initramfs,
        tempfile.TemporaryFile() as console,
    ):
        client.archive("root", "/", initramfs, owner=(0, 0))
        boot_uml.add_init(initramfs, MOUNT + SCRIPT.format(where="/mnt"))
        argument = f"virtio_uml.device={device}:26"
        status = boot_uml.run(kernel.fileno(), initramfs, console.fileno(), [argument])
        console.seek(0)
        told = console.read()
    assert status == 0, told[-2000:]
    return what_was_seen(told)


def what_vuserd_sees(client: Client) -> dict[bytes, Seen]:
    found = {}
    for entry in client.iterwalk("lab", "/", attrs=True):
        of, path = entry.stat, os.fsencode(entry.path)
        assert of is not None
        assert of.uid is not None
        assert of.gid is not None
        device = of.rdev if of.type in ("char", "block") else 0
        one = Seen(of.mode, of.size, of.nlink, of.uid, of.gid, of.mtime_ns // 10**9, device)
        if of.type == "file":
            with client.fetch("lab", b"/" + path) as image:
                one = one._replace(sha256=hashlib.sha256(image.buffer()).hexdigest())
        elif of.type == "symlink":
            one = one._replace(target=os.fsencode(client.readlink("lab", b"/" + path)))
        found[path] = one
    return found


@pytest.mark.slow
def test_linux_and_vuserd_see_the_same(
    rig: Path, rust_virtiofsd: str, tree: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    demo_boot.make_tree(root, rig / "busybox")
    (root / "mnt").mkdir()
    for module in ("fuse.ko", "virtiofs.ko"):
        shutil.copy(rig / module, root / module)
    exports = {"rig": rig, "root": root, "lab": tree}
    with (
        RunningDaemon(exports, tmp_path / "s", rust_virtiofsd) as daemon,
        Client.connect(daemon.socket) as client,
        backend(rust_virtiofsd, tree, tmp_path / "fs") as behind,
        Relay(str(tmp_path / "relay"), behind),
    ):
        linux = what_linux_sees(client, str(tmp_path / "relay"))
        ours = what_vuserd_sees(client)
    assert len(ours) >= 1100
    assert {stat.S_IFMT(one.mode) for one in ours.values()} >= {
        stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK
    }  # fmt: skip
    assert ours.keys() == linux.keys()
    assert {path: (linux[path], one) for path, one in ours.items() if linux[path] != one} == {}


def test_the_page_has_what_vuserd_asks(rust_virtiofsd: str, tmp_path: Path) -> None:
    """The order may be another one where requests go out together."""
    traced = of_vuserd(rust_virtiofsd, tmp_path)
    now = markdown("", traced, traced)
    assert _of_vuserd(now) == _of_vuserd(PAGE.read_text())


#: Words of what is given back some time.
_ANY_TIME: Final = {"BATCH", "FORGET"}


def _of_vuserd(page: str) -> list[set[str]]:
    """Return the flags of INIT, and the requests for each piece of work."""
    cells = [[cell.strip() for cell in line.split("|")] for line in page.splitlines()]
    flags = {row[1] for row in cells if len(row) == 5 and row[3] == "yes"}
    asked = [row[2] for row in cells if len(row) == 4 and row[1] == "vuserd"]
    return [flags, *(set(re.findall("[A-Z]+", words)) - _ANY_TIME for words in asked)]
