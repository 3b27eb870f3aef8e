"""Boot a rig from a directory of this machine, change a file there, and boot it again.

``make demo-boot [DIR=tree] [CMD='cat /proc/version']`` runs this. The rig is User-mode Linux, a
kernel that is a program; its kernel and its root file system come through a vuserd of its own. A
DIR of yours is never written to: it is booted once. Exit status: that of CMD.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from examples import demo
from examples.boot_uml import Booted, boot
from examples.demo import fail, step
from vuserd.client import Client, ClientError

COMMAND: Final = "cat /proc/version"
#: What the second boot has to see.
GREETING: Final = "Changed on the workstation, and seen by the rig."


def make_tree(tree: Path, busybox: Path) -> None:
    """Make a small root file system: busybox under the name of each of its commands."""
    for folder in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        (tree / folder).mkdir(parents=True)
    shell = tree / "bin" / "busybox"
    shell.write_bytes(busybox.read_bytes())
    shell.chmod(0o755)
    for name in subprocess.check_output([shell, "--list"], text=True).split():
        if name != "busybox":
            (tree / "bin" / name).symlink_to("busybox")
    (tree / "etc" / "motd").write_text("As it was first.\n")


@contextmanager
def console() -> Iterator[int]:
    """Yield a descriptor for a rig's console; show what came there after the block."""
    with tempfile.TemporaryFile() as file:
        yield file.fileno()
        file.seek(0)
        for line in file.read().decode(errors="replace").splitlines():
            step("rig", demo.printable(line))


def show(booted: Booted, title: str) -> None:
    """Say what came by which way, and how long it took."""
    kernel, tree, run = (f"{seconds * 1e3:,.0f} ms" for seconds in booted.times)
    archived = booted.tree
    step(title, f"kernel: {booted.kernel:,} bytes as a sealed image, executed there, in {kernel}")
    step("", f"tree: {archived.entries:,} names, {archived.size:,} bytes by the socket, in {tree}")
    step("", f"booted, ran and switched off in {run}: exit status {booted.status}")


def main() -> int:
    """Run the demonstration; return the command's exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rig", type=Path, help="the folder that tools/find-rig prints")
    parser.add_argument("--directory", help="the tree to boot (default: a small one)")
    parser.add_argument("--command", default=COMMAND)
    parser.add_argument("--backend", help="the virtiofsd to start")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the rig and the daemon end, too
    with tempfile.TemporaryDirectory(prefix="vuserd-demo-") as folder:
        os.chmod(folder, 0o755)  # the tree in it is a virtiofsd's to read
        tree = Path(os.path.abspath(options.directory or f"{folder}/tree"))
        if not options.directory:
            make_tree(tree, options.rig / "busybox")
        elif not os.path.lexists(tree / "bin/sh"):
            fail(f"{tree} has no /bin/sh, which the rig starts with")
        exports = {"rig": str(options.rig), "tree": str(tree)}
        with demo.daemon(exports, folder, options.backend) as process:
            try:
                with demo.connect(process, folder) as client:
                    status = boot_twice(
                        client, options.command, None if options.directory else tree
                    )
            except ClientError as error:
                fail(str(error))
            demo.stop(process)
        step("stop", "nothing is left of it: no process and no file")
    return status


def boot_twice(client: Client, command: str, tree: Path | None) -> int:
    """Boot, change the tree if it is one to change, and boot again; return the first status."""
    kernel, root = ("rig", "/linux"), ("tree", "/")
    step("command", command)
    with console() as rig:
        booted = boot(client, kernel, root, command, console=rig)
    show(booted, "boot")
    if tree is not None:
        (tree / "etc" / "motd").write_text(f"{GREETING}\n")
        step("change", "/etc/motd, here on this machine")
        with console() as rig:
            again = boot(
                client, kernel, root, f"cat /etc/motd; grep -q '{GREETING}' /etc/motd", console=rig
            )
        show(again, "again")
        if again.status:
            fail("the rig did not see the change")
    return booted.status


if __name__ == "__main__":
    sys.exit(main())
