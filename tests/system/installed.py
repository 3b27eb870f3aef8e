"""A machine with vuserd installed by make install, and what tests ask of it."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.system.checkout import SOURCE, copy_checkout, kernel_package
from tests.system.machine import Machine

CONFIGURATION: Final = """
sandbox = "none"

[[export]]
name = "kernels"
path = "/srv/kernels"
users = ["rig"]
"""
#: The Python that vuserd is installed with.
PYTHON: Final = "/usr/local/lib/vuserd/current/bin/python"


@contextmanager
def installed() -> Iterator[Machine]:
    """Yield a machine with a checkout, vuserd installed from it, and a user named rig."""
    package = kernel_package()
    with Machine() as machine:
        copy_checkout(machine.root)
        kernels = machine.root / "srv/kernels"
        kernels.mkdir()
        [kernel] = (package / "boot").glob("vmlinuz-*")
        shutil.copy(kernel, kernels / "vmlinuz")
        for script in ("load.py", "replacements.py"):
            shutil.copy(Path(__file__).with_name(script), machine.root / "root")
        shutil.copy(Path(__file__).with_name("attacks.py"), machine.root / "srv")
        make(machine, "install")
        machine.run("useradd --create-home --shell /bin/sh rig")
        machine.run(["cp", "/dev/stdin", "/etc/vuserd/vuserd.toml"], given=CONFIGURATION)
        yield machine


def make(machine: Machine, target: str) -> str:
    """Run ``make`` in the machine's checkout, with the package indexes in reach."""
    return machine.run(f". /etc/profile.d/host.sh; cd {SOURCE}; make {target}", timeout=300)


def main_pid(machine: Machine, unit: str = "vuserd.service") -> int:
    """Return the main process of a service."""
    return int(machine.run(["systemctl", "show", "-P", "MainPID", unit]))


def gets_the_kernel(machine: Machine, export: str = "kernels", user: str = "rig") -> None:
    """Have a user read the kernel through vuserd, and compare."""
    machine.run(
        f"vuserctl cat {export}:/vmlinuz | cmp - /srv/kernels/vmlinuz",
        user=user,
    )


@contextmanager
def under_load(machine: Machine, python: str = PYTHON, *, pause: float) -> Iterator[dict[str, int]]:
    """Have clients connect and read during the block; after it, here is what they counted.

    ``pause`` is how many seconds each waits between its batches of requests.
    """
    counts: dict[str, int] = {}
    where = "/run/vuserd/vuserd.sock kernels /vmlinuz /srv/kernels/vmlinuz"
    with machine.start(f"exec {python} /root/load.py {where} {pause}") as loading:
        try:
            time.sleep(1)
            yield counts
            time.sleep(1)
        finally:
            said, _ = loading.communicate("", timeout=60)
    counts |= json.loads(said)
