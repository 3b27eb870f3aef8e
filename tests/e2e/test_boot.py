"""A rig boots from a directory: the demonstration as users run it, and what Linux unpacks there."""

import hashlib
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from examples import boot_uml, demo_boot
from tests.e2e import archived_tree
from tests.e2e.archived_tree import host_view
from tests.running import REPOSITORY, RunningDaemon
from tests.uml import SCRIPT, rig_folder, what_was_seen
from vuserd.client import Client


@pytest.fixture(scope="module")
def rig() -> Path:
    return rig_folder()


def start(rig: Path, backend: str, folder: Path, *words: str) -> "subprocess.Popen[str]":
    """Start the demonstration, which may leave nothing in the folder."""
    return subprocess.Popen(
        [sys.executable, REPOSITORY / "examples/demo_boot.py", rig, "--backend", backend, *words],
        cwd=folder,
        env={**os.environ, "HOME": str(folder), "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_the_demonstration(rig: Path, rust_virtiofsd: str, tmp_path: Path) -> None:
    with start(
        rig, rust_virtiofsd, tmp_path, "--command", 'echo "it is $((6 * 7))"; exit 7'
    ) as demo:
        told, _ = demo.communicate(timeout=60)
    assert demo.returncode == 7, told
    assert "rig  it is 42\n" in told
    assert f"rig  {demo_boot.GREETING}\n" in told
    assert [*tmp_path.iterdir()] == []


def test_an_end_before_the_end(rig: Path, rust_virtiofsd: str, tmp_path: Path) -> None:
    """What was started ends with the demonstration: conftest looks for processes."""
    with start(rig, rust_virtiofsd, tmp_path, "--command", "sleep 1000") as demo:
        deadline = time.monotonic() + 60
        while not [*tmp_path.glob("vuserd-uml-*")]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        demo.send_signal(signal.SIGTERM)
        demo.communicate(timeout=60)
    assert demo.returncode == 143
    assert [*tmp_path.iterdir()] == []


def test_linux_unpacks_what_was_there(rig: Path, rust_virtiofsd: str, tmp_path: Path) -> None:
    """All types of files, hard links, and names of any bytes."""
    root = tmp_path / "root"
    demo_boot.make_tree(root, rig / "busybox")
    tree = archived_tree.make(root)
    exports = {"rig": rig, "root": root}
    with (
        RunningDaemon(exports, tmp_path / "s", rust_virtiofsd),
        Client.connect(str(tmp_path / "s")) as client,
        tempfile.TemporaryFile() as console,
    ):
        with client.fetch("rig", "linux") as kernel, boot_uml.memfd("initramfs") as initramfs:
            client.archive("root", "/", initramfs)
            boot_uml.add_init(initramfs, SCRIPT.format(where="/tree"))
            status = boot_uml.run(kernel.fileno(), initramfs, console.fileno())
        console.seek(0)
        told = console.read()
    assert status == 0, told
    seen, host = what_was_seen(told), host_view(tree)
    assert seen.keys() == host.keys()
    for path, one in seen.items():
        there, where = host[path], os.path.join(os.fsencode(tree), path)
        assert (one.mode, one.uid, one.gid) == (there.st_mode, there.st_uid, there.st_gid), path
        if not stat.S_ISDIR(one.mode):
            assert (one.size, one.nlink) == (there.st_size, there.st_nlink), path
            assert one.rdev == there.st_rdev, path
            assert one.mtime == there.st_mtime_ns // 10**9, path
        if one.sha256:
            assert one.sha256 == hashlib.sha256(Path(os.fsdecode(where)).read_bytes()).hexdigest()
        if one.target:
            assert one.target == os.readlink(where)
