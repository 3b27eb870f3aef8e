"""Serve a directory through virtio-fs without a virtual machine, and check the results.

``make demo [DIR=...]`` runs this. It starts a vuserd of its own on a private socket, talks to it as
any client would, and stops it. Exit status: 0 where every byte was right, 1 where anything was not.
"""

import argparse
import contextlib
import glob
import hashlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Final, NamedTuple, NoReturn

from vuserd.client import CannotConnect, Client, ClientError, Entry, RemoteError, Stat

READY_WITHIN: Final = 20.0  #: seconds from the start of the daemon to its first answer
STOPPED_WITHIN: Final = 20.0
EXPORT: Final = "demo"
SHOWN: Final = 8  #: entries of the listing that are printed
LARGEST: Final = 256 << 20  #: bytes; a larger file is not fetched
VISITED: Final = 20_000  #: entries looked at to find the file
ROUNDS: Final = 5


def step(title: str, text: str) -> None:
    """Print one line of what happened."""
    print(f"{title:>9}  {text}", flush=True)


def fail(text: str) -> NoReturn:
    """Say what is wrong and leave with status 1."""
    step("FAILED", text)
    sys.exit(1)


def printable(name: str) -> str:
    """Show a name, of whatever bytes it is, on one line of a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


@contextlib.contextmanager
def daemon(
    exports: Mapping[str, str], folder: str, backend: str | None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``vuserd serve`` for the block's time; where the block fails, print what it logged."""
    command = [sys.executable, "-m", "vuserd.cli", "serve"]
    for name, directory in exports.items():
        command += ["--export", f"{name}={directory}"]
    command += ["--socket", f"{folder}/rpc.sock"]
    command += ["--backend", backend] if backend else []
    step("start", " ".join(["vuserd", *command[3:]]))
    with open(f"{folder}/log", "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
    try:
        yield process
    except BaseException:
        with open(f"{folder}/log", errors="replace") as text:
            sys.stderr.write(text.read())
        raise
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOPPED_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def connect(process: subprocess.Popen[bytes], folder: str) -> Client:
    """Return a client as soon as the daemon answers."""
    deadline = time.monotonic() + READY_WITHIN
    while process.poll() is None and time.monotonic() < deadline:
        try:
            return Client.connect(f"{folder}/rpc.sock", timeout=READY_WITHIN)
        except CannotConnect:
            time.sleep(0.01)
    fail("the daemon ended" if process.poll() is not None else f"no answer in {READY_WITHIN:.0f} s")


def program(pid: int) -> str:
    """Return the name of the program a process runs, the loader's where that was called by hand."""
    with open(f"/proc/{pid}/cmdline", errors="replace") as file:
        words = [os.path.basename(word) for word in file.read().split("\0")]
    return "virtiofsd" if "virtiofsd" in words else words[0]


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Yield the number and the program of each process below ``pid``, as the kernel tells it."""
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        with contextlib.suppress(OSError), open(path) as children:
            for child in map(int, children.read().split()):
                yield child, program(child)
                yield from descendants(child)


def stat_of(entry: Entry) -> Stat | None:
    """Return an entry's attributes, where they can be had."""
    with contextlib.suppress(RemoteError):
        return entry.stat
    return None


def listing_line(entry: Entry) -> str:
    """Format an entry about as ``ls -l`` does."""
    stat = stat_of(entry)
    if stat is None:
        return f"{entry.type:<8} {'?':>13}  {'?':<16}  {printable(entry.name)}"
    modified = time.strftime("%Y-%m-%d %H:%M", time.localtime(stat.mtime_ns / 1e9))
    return f"{entry.type:<8} {stat.size:>13,}  {modified}  {printable(entry.name)}"


class Found(NamedTuple):
    """The file to fetch: where it is inside the export, and how big."""

    path: str
    size: int


def largest_file(client: Client, directory: str) -> Found:
    """Find the largest file that this user may read, breadth first, in listings from the RPC."""
    folders, visited = deque([""]), 0
    best = Found("", -1)
    while folders and visited < VISITED:
        folder = folders.popleft()
        try:
            entries = list(islice(client.iterdir(EXPORT, folder or "/", attrs=True), VISITED))
        except RemoteError:
            continue  # one that this user may not list
        visited += len(entries)
        for entry in entries:
            path = f"{folder}/{entry.name}"
            if entry.type == "dir":
                folders.append(path)
            stat = stat_of(entry)
            if entry.type != "file" or stat is None or stat.size > LARGEST:
                continue
            if stat.size > best.size and os.access(directory + path, os.R_OK):
                best = Found(path, stat.size)
    if best.size < 0:
        fail("there is no regular file to fetch; choose another directory: make demo DIR=...")
    return best


def sha256(path: str) -> str:
    """Return the file's SHA-256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain_read(path: str) -> None:
    """Read a file to its end into one buffer, as fast as a program can that has it at hand."""
    buffer = bytearray(1 << 20)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def seconds(work: Callable[[], object]) -> float:
    """Return how long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def show_backend(client: Client, process: subprocess.Popen[bytes]) -> None:
    """Say what serves the export, and that nothing of it is a virtual machine."""
    (export,) = client.exports()
    if export.backend is None:
        fail(f"the export is in the state {export.state}: {export.reason}")
    kind = {"rust": "Rust", "c": "C"}.get(export.backend.kind, export.backend.kind)
    step("backend", f"virtiofsd {export.backend.version} ({kind}), process {export.backend.pid}")
    family = [(process.pid, "vuserd"), *descendants(process.pid)]
    step("no VM", "all that runs: " + ", ".join(f"{name} ({pid})" for pid, name in family))


def show_listing(client: Client) -> None:
    """List the export's root, attributes included, and print the first entries by name."""
    entries: list[Entry] = []
    elapsed = seconds(lambda: entries.extend(client.iterdir(EXPORT, "/", attrs=True)))
    step("list", f"{len(entries):,} entries with their attributes in {elapsed * 1e3:.1f} ms:")
    for entry in sorted(entries, key=lambda entry: entry.name)[:SHOWN]:
        step("", listing_line(entry))
    if len(entries) > SHOWN:
        step("", f"... and {len(entries) - SHOWN:,} more")


def fetch_and_compare(client: Client, directory: str, folder: str) -> None:
    """Fetch the largest file, compare its hash with that of the host's own, and time both ways."""
    found = largest_file(client, directory)
    original, copy = directory + found.path, f"{folder}/fetched"
    with open(copy, "wb") as file:
        elapsed = seconds(lambda: client.download(EXPORT, found.path, file.fileno()))
    step("fetch", f"{printable(found.path)}, {found.size:,} bytes in {elapsed * 1e3:.1f} ms")
    ours, theirs = sha256(copy), sha256(original)
    step("sha256", f"{ours}  what came through virtio-fs")
    step("", f"{theirs}  {printable(original)}")
    if ours != theirs:
        fail("the bytes differ")
    step("equal", "every byte is the host's")
    rounds = [
        (
            seconds(lambda: client.stream(EXPORT, found.path, lambda _payload: None)),
            seconds(lambda: plain_read(original)),
        )
        for _ in range(ROUNDS)
    ]
    ways = ("through vuserd", "a plain read of the same file")
    rates = [
        f"{found.size / statistics.median(times) / 1e6:,.0f} MB/s {way}"
        for way, times in zip(ways, zip(*rounds, strict=True), strict=True)
    ]
    step("rate", f"{', '.join(rates)} (median of {ROUNDS}, into memory)")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the daemon to end, as systemd would, and see that it ends well."""
    process.send_signal(signal.SIGTERM)
    try:
        status = process.wait(STOPPED_WITHIN)
    except subprocess.TimeoutExpired:
        fail(f"the daemon still runs {STOPPED_WITHIN:.0f} s after SIGTERM")
    if status != 0:
        fail(f"the daemon ended with status {status}")


def show_work(client: Client) -> None:
    """Say what the daemon counted."""
    status = client.status()
    given = status["bytes_read"] + status["bytes_of_images"] + status["bytes_loaded"]
    fuse = sum(export.get("requests", 0) for export in status["exports"])
    step(
        "work",
        f"{status['requests']:,} calls by RPC, {fuse:,} FUSE requests over the virtqueues,"
        f" {given:,} bytes given to clients",
    )


def main() -> None:
    """Run the whole demonstration."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", nargs="?", default="/usr/bin", help="default: %(default)s")
    parser.add_argument("--backend", help="the virtiofsd to start (default: the first one found)")
    arguments = parser.parse_args()
    directory = os.path.abspath(arguments.directory)

    with (
        tempfile.TemporaryDirectory(prefix="vuserd-demo-") as folder,
        daemon({EXPORT: directory}, folder, arguments.backend) as process,
    ):
        started = time.monotonic()
        try:
            with connect(process, folder) as client:
                client.exports()
                elapsed = time.monotonic() - started
                step("ready", f"process {process.pid} answers after {elapsed * 1e3:.0f} ms")
                show_backend(client, process)
                show_listing(client)
                fetch_and_compare(client, directory, folder)
                show_work(client)
        except ClientError as error:
            fail(str(error))
        elapsed = seconds(lambda: stop(process))
        step("stop", f"SIGTERM, exit status 0 after {elapsed * 1e3:.0f} ms")
    print("The demonstration worked.")


if __name__ == "__main__":
    main()
