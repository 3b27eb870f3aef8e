"""Time ``vuserctl get`` of a file beside ``cp`` of the same file: whole commands, interleaved.

``make bench-get`` runs this and prints a Markdown table for each folder.

Every command finds the same: its source in the page cache, no target, no byte of a former one yet
to be written, and what a run of the same command has left, since each is run twice and the second
run counts. Each round runs every command, in an order that moves on by one. The time is that until
the command has ended, when most of the file is yet to be written to the disk, whoever made it.
Every copy is compared with the source, outside the measured time.

That is memory above all. The host of a virtual machine takes back what is free for some seconds,
and whoever takes that next waits for the host, for longer than the whole copy takes. Seen so far:
after a pause that hits whatever writes, as ``vuserctl get`` does, and not ``cp``, which has the
kernel copy from file to file. A run that follows one of its own at once finds what that had,
whichever command it is. Some are slow nevertheless, so the table has the fastest ones beside each
other, too.
"""

import argparse
import contextlib
import filecmp
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from vuserd.client import Client
from vuserd.client.errors import CannotConnect

READY_WITHIN: Final = 20.0  #: seconds
BLOCK: Final = 1 << 20
#: MiB that are copied by default, by folder: within memory, and onto the same disk.
SIZES: Final = {"/dev/shm": 512, "/var/tmp": 1024}
#: The most time that is wanted beside ``cp``.
WANTED: Final = 1.3
SOURCE: Final = "source.bin"


class Contender(NamedTuple):
    """One way to copy the file."""

    title: str
    command: Sequence[str]  #: all but the target, which comes last


def make_source(path: str, size: int) -> None:
    """Write ``size`` bytes in which no two blocks are equal."""
    filling = os.urandom(BLOCK - 8)
    with open(path, "wb") as file:
        for offset in range(0, size, BLOCK):
            block = offset.to_bytes(8, "little") + filling
            file.write(block[: size - offset])


@contextlib.contextmanager
def served(folder: str, socket: str, backend: str | None) -> Iterator[str]:
    """Run ``vuserd serve`` on a folder for the block's time; give its virtiofsd's kind."""
    command = [sys.executable, "-m", "vuserd", "serve", "--socket", socket]
    # Every byte goes through virtio-fs: no image is kept from one round to the next.
    command += [
        "--image-cache",
        "0",
        "--export",
        f"bench={folder}",
        *(["--backend", backend] if backend else []),
    ]
    daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + READY_WITHIN
        while True:
            try:
                with Client.connect(socket) as client:
                    (export,) = client.exports()
                    client.stat("bench", SOURCE)
                break
            except CannotConnect:
                if daemon.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        yield f"{export.backend.kind} {export.backend.version}" if export.backend else "unknown"
    finally:
        daemon.terminate()
        daemon.wait()


def run(command: Sequence[str], target: str) -> float:
    """Run a command that makes ``target``, once all is written; return the seconds it took."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(target)
    os.sync()
    started = time.perf_counter()
    subprocess.run([*command, target], stdin=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def timed(command: Sequence[str], source: str, target: str) -> float:
    """Run a command twice, and check what it made; return the seconds the second run took."""
    run(command, target)
    elapsed = run(command, target)
    if not filecmp.cmp(source, target, shallow=False):
        sys.exit(f"{' '.join(command)}: the copy differs from its source")
    return elapsed


def measure(folder: str, size: int, rounds: int, backends: Sequence[str | None]) -> None:
    """Print the table for copies from a new folder inside ``folder`` to the same place."""
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="vuserd-bench-", dir=folder))
        sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="vuserd-bench-"))
        source, target = f"{place}/{SOURCE}", f"{place}/target.bin"
        make_source(source, size)
        contenders = [Contender("`cp`", ["cp", source])]
        vuserctl = os.path.join(os.path.dirname(sys.executable), "vuserctl")
        for number, backend in enumerate(backends):
            socket = f"{sockets}/{number}.sock"
            kind = stack.enter_context(served(place, socket, backend))
            command = [vuserctl, "--socket", socket, "get", f"bench:{SOURCE}"]
            contenders.append(Contender(f"`vuserctl get`, virtiofsd {kind}", command))

        times: list[list[float]] = [[] for _ in contenders]
        for turn in range(rounds + 1):
            for step in range(len(contenders)):
                index = (turn + step) % len(contenders)
                elapsed = timed(contenders[index].command, source, target)
                if turn:  # the first round warms up
                    times[index].append(elapsed)

    medians = [statistics.median(taken) for taken in times]
    fastest = [min(taken) for taken in times]
    where = f"{folder} ({file_system(folder)})"
    print(f"\n{size / BLOCK:g} MiB onto the same disk, {where}, {rounds} rounds\n")
    print("| command | median | fastest | median rate | beside `cp` | fastest beside fastest |")
    print("|---|---:|---:|---:|---:|---:|")
    for contender, median, least in zip(contenders, medians, fastest, strict=True):
        print(
            f"| {contender.title} | {median:.3f} s | {least:.3f} s"
            f" | {size / median / 1e6:,.0f} MB/s | {median / medians[0]:.2f} x"
            f" | {least / fastest[0]:.2f} x |"
        )
    slowest = max(medians) / medians[0]
    print(f"\nThe slowest takes {slowest:.2f} times as long as `cp`; wanted: {WANTED} at most.")


def file_system(folder: str) -> str:
    """Return the type of the file system that a folder is on."""
    answer = subprocess.run(
        ["findmnt", "--noheadings", "--output=FSTYPE", "--target", folder],
        capture_output=True,
        text=True,
        check=True,
    )
    return answer.stdout.split()[-1]  # of several there the last one is seen


def main() -> None:
    """Measure in each folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", action="append", help="a virtiofsd; give it again for more")
    parser.add_argument("--folder", action="append", help=f"default: {' and '.join(SIZES)}")
    parser.add_argument("--size", type=int, help="MiB (default: 512 in /dev/shm, else 1024)")
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    arguments = parser.parse_args()

    uname = platform.uname()
    print(f"{uname.system} {uname.release}, {uname.machine}, {os.cpu_count()} processors, ", end="")
    print(f"Python {platform.python_version()}")
    for folder in arguments.folder or SIZES:
        size = arguments.size or SIZES.get(folder, 1024)
        measure(folder, size << 20, arguments.rounds, arguments.backend or [None])


if __name__ == "__main__":
    main()
