"""docs/lab.md, word for word: installed in a Debian 13, run by its systemd."""

import shutil
from collections.abc import Iterator

import pytest

from tests.documents import blocks
from tests.running import REPOSITORY
from tests.system.checkout import SOURCE, copy_checkout, kernel_package
from tests.system.machine import Machine, why_not

pytestmark = [
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=f"{why_not()}"),
    pytest.mark.timeout(600),
]


@pytest.fixture
def lab() -> Iterator[Machine]:
    """Yield a machine with a clone of this repository, and a real kernel for each board."""
    package = kernel_package()
    [kernel] = (package / "boot").glob("vmlinuz-*")
    trees = {
        "imx8": next(package.glob("usr/lib/linux-image-*/freescale/imx8mm-evk.dtb")),
        "zynq": next(package.glob("usr/lib/linux-image-*/xilinx/*.dtb")),
    }
    with Machine() as machine:
        copy_checkout(machine.root)
        for board, tree in trees.items():
            folder = machine.root / "srv/lab" / board
            folder.mkdir(parents=True)
            shutil.copy(kernel, folder / "Image")
            shutil.copy(tree, folder / "board.dtb")
        yield machine


def test_the_story_of_the_lab(lab: Machine) -> None:
    for block in blocks(REPOSITORY / "docs/lab.md"):
        profile = "[ ! -e /etc/profile.d/host.sh ] || . /etc/profile.d/host.sh"
        script = f"{profile}; cd {SOURCE}; export HOME=/root; exec " + '"$@"'
        with lab.start(["/bin/sh", "-c", script, "sh", *block.command]) as process:
            output, _ = process.communicate(timeout=300)
        block.check(process.returncode, output)
