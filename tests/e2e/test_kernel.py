"""A real Debian arm64 kernel and its device trees, fetched as a rig would fetch them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import REPOSITORY, RunningDaemon
from tests.system.checkout import kernel_package

pytestmark = [
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="the kernel comes by apt"),
]


def get(daemon: RunningDaemon, name: str, target: Path) -> None:
    command = [sys.executable, "-m", "vuserd.ctl.main", "--socket", daemon.socket]
    subprocess.run([*command, "get", name, str(target)], check=True, cwd=REPOSITORY)


@pytest.mark.timeout(900)
def test_they_arrive_byte_for_byte(virtiofsd: str, tmp_path: Path) -> None:
    package = kernel_package()
    kernels = list((package / "boot").glob("vmlinuz-*"))
    trees = sorted(package.glob("usr/lib/linux-image-*/**/*.dtb"))
    assert len(kernels) == 1
    assert len(trees) > 100
    wanted = [*kernels, *trees[:: len(trees) // 20]]
    with RunningDaemon({"kernels": package}, tmp_path / "s", virtiofsd) as daemon:
        for host in wanted:
            fetched = tmp_path / host.name
            get(daemon, f"kernels:{host.relative_to(package)}", fetched)
            assert fetched.read_bytes() == host.read_bytes()
            assert fetched.stat().st_mtime_ns == host.stat().st_mtime_ns
    image = (tmp_path / kernels[0].name).read_bytes()
    assert len(image) > 10_000_000
    assert image[:2] == b"MZ"  # the kernel is an EFI application
    magic = {(tmp_path / tree.name).read_bytes()[:4] for tree in wanted[1:]}
    assert magic == {b"\xd0\x0d\xfe\xed"}
