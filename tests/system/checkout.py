"""The files for a test machine: this repository, and real kernels."""

import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.once import made_once
from tests.running import REPOSITORY

#: Where the repository is, in the machine.
SOURCE: Final = "/usr/src/vuserd"


def copy_checkout(root: Path) -> None:
    """Put there what ``git add --all`` would know."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout.split(b"\0")
    for name in filter(None, names):
        source = REPOSITORY / name.decode()
        if source.is_file():
            target = root / SOURCE.lstrip("/") / name.decode()
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


def kernel_package() -> Path:
    """Return the root of what Debian's newest arm64 kernel has in its package: to read."""

    def unpack(folder: Path) -> None:
        unpack = REPOSITORY / "tests/debian/unpack-packages"
        command = [str(unpack), "bookworm", "arm64", str(folder), "--dependency"]
        subprocess.run([*command, "linux-image-arm64"], check=True, timeout=600)

    return made_once("linux-image-arm64", unpack) / "root"
