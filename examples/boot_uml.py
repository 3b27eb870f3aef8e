"""Boot User-mode Linux from a directory of an export, and run a command there.

``boot_uml.py EXPORT:KERNEL EXPORT:TREE COMMAND``. Kernel and tree come through vuserd, and neither
is written to a disk: the kernel is executed from a sealed memfd, and the tree is an initramfs in
another one. The tree needs a /bin/sh. Exit status: that of the command.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from vuserd.client import Archived, Client, ClientError

#: Seconds after which a rig that still runs is stopped.
RUNS_FOR: Final = 120.0
#: The exit status where a rig came to none of its own.
NO_STATUS: Final = 124
#: Debian's kernel spends most of its start on finding the fastest way to compute RAID 6.
NO_RAID6: Final = "initcall_blacklist=raid6_select_algo"
#: The rig's first process. Its status goes to a console of its own, since what UML itself ends with
#: is not always that of the rig.
INIT: Final = """#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/
mount -t proc proc /proc && mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
( {command}
)
echo $? >/dev/tty1
poweroff -f || echo o >/proc/sysrq-trigger
"""


class Times(NamedTuple):
    """How long the steps took, in seconds."""

    kernel: float
    tree: float
    boot: float


class Booted(NamedTuple):
    """What came of a boot: the command's status, and what the rig was made of."""

    status: int
    kernel: int  #: bytes
    tree: Archived
    times: Times


def initramfs_file(name: bytes, mode: int, content: bytes) -> bytes:
    """Return one file in the format of an initramfs, newc; Linux takes them one after another."""
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"%08X" * 13 % numbers + name + b"\0"
    return b"".join(part + bytes(-len(part) % 4) for part in (head, content))


def add_init(initramfs: int, command: str) -> None:
    """Add the rig's first process, which runs the command and switches off."""
    init = INIT.format(command=command).encode()
    os.write(initramfs, initramfs_file(b"rig-init", 0o100755, init))
    os.write(initramfs, initramfs_file(b"TRAILER!!!", 0, b""))


@contextlib.contextmanager
def memfd(name: str) -> Iterator[int]:
    """Yield a file in memory, which has no name on any file system."""
    descriptor = os.memfd_create(name)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def run(kernel: int, initramfs: int, console: int, arguments: Sequence[str] = ()) -> int:
    """Run the kernel of one descriptor with the initramfs of another; return its exit status.

    Args:
        kernel: a descriptor of User-mode Linux.
        initramfs: one of an initramfs that has /rig-init.
        console: one that the rig's console is written to.
        arguments: more of the kernel's command line.

    """
    size = os.fstat(initramfs).st_size
    # MiB for the archive, what is unpacked of it, and Linux, which allows processes by it.
    memory = 256 + 3 * size // (1 << 20)
    with (
        tempfile.TemporaryDirectory(prefix="vuserd-uml-") as home,  # for what UML leaves
        tempfile.TemporaryFile() as statuses,
    ):
        command = [
            *(f"/proc/self/fd/{kernel}", f"mem={memory}M", f"uml_dir={home}/"),
            *(f"initrd=/proc/self/fd/{initramfs}", "rdinit=/rig-init"),
            *("con=null", "con0=null,fd:1", f"con1=null,fd:{statuses.fileno()}"),
            *("quiet", "loglevel=1", "noreboot", NO_RAID6, *arguments),
        ]
        descriptors = (kernel, initramfs, statuses.fileno())
        with group_of(command, pass_fds=descriptors, stdout=console, home=home) as rig:
            try:
                rig.wait(RUNS_FOR)
            except subprocess.TimeoutExpired:
                print(f"the rig still runs after {RUNS_FOR:.0f} s", file=sys.stderr)
        statuses.seek(0)
        return int(statuses.read() or NO_STATUS)


@contextlib.contextmanager
def group_of(
    command: Sequence[str], *, pass_fds: Sequence[int], stdout: int, home: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command in a process group of its own, which ends with the block whatever happens."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        rig = subprocess.Popen(
            command,
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HOME": home},
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask),
            start_new_session=True,
        )
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # from here on it is known
            yield rig
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rig.pid, signal.SIGKILL)
            rig.wait()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def boot(
    client: Client,
    kernel: tuple[str, str],
    tree: tuple[str, str],
    command: str,
    *,
    console: int = 1,
) -> Booted:
    """Fetch a kernel and a tree, boot them, and run a command there."""
    started = time.perf_counter()
    with client.fetch(*kernel) as image, memfd("initramfs") as initramfs:
        fetched = time.perf_counter()
        archived = client.archive(*tree, initramfs, owner=(0, 0))
        add_init(initramfs, command)
        ready = time.perf_counter()
        status = run(image.fileno(), initramfs, console)
        times = Times(fetched - started, ready - fetched, time.perf_counter() - ready)
        return Booted(status, image.size, archived, times)


def target(text: str) -> tuple[str, str]:
    """Read EXPORT:PATH."""
    export, colon, path = text.partition(":")
    if not export or not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is not EXPORT:PATH")
    return export, path


def main() -> int:
    """Boot, and return the command's exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kernel", type=target, metavar="EXPORT:KERNEL")
    parser.add_argument("tree", type=target, metavar="EXPORT:TREE")
    parser.add_argument("command")
    parser.add_argument("--socket", help="the daemon's socket")
    options = parser.parse_args()
    try:
        with Client.connect(options.socket) as client:
            return boot(client, options.kernel, options.tree, options.command).status
    except ClientError as error:
        print(f"boot_uml.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
