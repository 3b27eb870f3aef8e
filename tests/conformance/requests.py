"""What Linux's driver and vuserd ask of one virtiofsd for the same work, request by request."""

import contextlib
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

from examples import boot_uml, demo_boot
from protocol.fuse import Opcode
from tests.conformance.relay import Relay, Request
from tests.running import REPOSITORY, RunningDaemon
from vuserd.client import Client

PAGE: Final = REPOSITORY / "docs" / "linux.md"
#: Of ``FUSE_INIT``, from bit 0 on: include/uapi/linux/fuse.h, 7.38.
FLAGS: Final = (
    "ASYNC_READ", "POSIX_LOCKS", "FILE_OPS", "ATOMIC_O_TRUNC", "EXPORT_SUPPORT", "BIG_WRITES",
    "DONT_MASK", "SPLICE_WRITE", "SPLICE_MOVE", "SPLICE_READ", "FLOCK_LOCKS", "HAS_IOCTL_DIR",
    "AUTO_INVAL_DATA", "DO_READDIRPLUS", "READDIRPLUS_AUTO", "ASYNC_DIO", "WRITEBACK_CACHE",
    "NO_OPEN_SUPPORT", "PARALLEL_DIROPS", "HANDLE_KILLPRIV", "POSIX_ACL", "ABORT_ERROR",
    "MAX_PAGES", "CACHE_SYMLINKS", "NO_OPENDIR_SUPPORT", "EXPLICIT_INVAL_DATA", "MAP_ALIGNMENT",
    "SUBMOUNTS", "HANDLE_KILLPRIV_V2", "SETXATTR_EXT", "INIT_EXT", "INIT_RESERVED",
    "SECURITY_CTX", "HAS_INODE_DAX", "CREATE_SUPP_GROUP", "HAS_EXPIRE_ONLY",
    "DIRECT_IO_ALLOW_MMAP", "PASSTHROUGH", "NO_EXPORT_SUPPORT", "HAS_RESEND", "ALLOW_IDMAP",
    "OVER_IO_URING", "REQUEST_TIMEOUT",
)  # fmt: skip
_INIT: Final = struct.Struct("=IIII")
#: What is done, and how: in a shell, and by a client.
WORK: Final[Sequence[tuple[str, Callable[[Client], object]]]] = (
    ("ls /mnt/folder", lambda client: [*client.iterdir("lab", "/folder")]),
    ("ls -l /mnt/folder", lambda client: [*client.iterdir("lab", "/folder", attrs=True)]),
    ("cat /mnt/folder/file", lambda client: client.read("lab", "/folder/file", 0, 1 << 20)),
)
_BEGIN: Final = """\
# What Linux asks, and what vuserd asks

The FUSE requests that Linux's own driver (`fs/fuse/virtio_fs.c`) and vuserd put on the rings of
the same virtiofsd (the Rust one) for the same work, read from the rings meanwhile. Linux is
{version}, in User-mode Linux, and has just mounted it. `python -m tests.conformance` writes this
page.

Linux believes what it was told for as long as the backend allows (a second), so the second listing
and `cat` look up nothing. vuserd asks again for each call, and looks after a READ whether the file
is still the version that it opened.

## FUSE_INIT

| | Linux | vuserd |
|---|---|---|
"""
#: The name that is looked up between two pieces of work, to tell them apart.
_MARK: Final = "mark-"


class Traced(NamedTuple):
    """What one of the two asked for."""

    init: Request
    work: list[list[Request]]  #: for each of WORK


def traced(requests: Sequence[Request]) -> Traced:
    """Cut the requests of a session into pieces, at the marks."""
    pieces: list[list[Request]] = [[]]
    for request in requests:
        if request.opcode == Opcode.LOOKUP and request.body.startswith(_MARK.encode()):
            pieces.append([])
        else:
            pieces[-1].append(request)
    init = next(request for request in requests if request.opcode == Opcode.INIT)
    return Traced(init, pieces[1 : 1 + len(WORK)])


def make_tree(tree: Path) -> None:
    """Make a folder with a file of 100,000 bytes and two others."""
    (tree / "folder").mkdir(parents=True)
    (tree / "folder" / "file").write_bytes(os.urandom(100_000))
    for name in ("one", "two"):
        (tree / "folder" / name).touch()


@contextlib.contextmanager
def backend(program: str, directory: Path, socket: Path) -> Iterator[str]:
    """Run a Rust virtiofsd that listens on a socket."""
    command = [program, f"--socket-path={socket}", f"--shared-dir={directory}", "--tag=lab"]
    command += ["--sandbox", "none", "--inode-file-handles=never", "--log-level=error"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as running:
        try:
            deadline = time.monotonic() + 30
            while not socket.exists():
                assert running.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield str(socket)
        finally:
            running.kill()


def of_vuserd(program: str, folder: Path) -> Traced:
    """Trace vuserd, whose backend is behind a relay."""
    make_tree(folder / "tree")
    configuration = folder / "vuserd.toml"
    socket = folder / "relay"
    configuration.write_text(
        f'[[listen]]\nsocket = "{folder}/s"\n[[export]]\nname = "lab"\nsocket = "{socket}"\n'
    )
    with (
        backend(program, folder / "tree", folder / "fs") as behind,
        Relay(str(socket), behind, taps=True) as relay,
        RunningDaemon(
            {}, folder / "s", None, "--config", str(configuration), configured=True
        ) as daemon,
        Client.connect(daemon.socket) as client,
    ):
        for number, (_, work) in enumerate(WORK):
            _mark(client, number)
            work(client)
        _mark(client, len(WORK))
        requests = [*relay.requests]
    return traced(requests)


def _mark(client: Client, number: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        client.stat("lab", f"/{_MARK}{number}")


def of_linux(program: str, rig: Path, folder: Path) -> tuple[str, Traced]:
    """Trace Linux's driver in User-mode Linux; return its version, too."""
    make_tree(folder / "tree")
    root = folder / "root"
    demo_boot.make_tree(root, rig / "busybox")
    (root / "mnt").mkdir()
    for module in ("fuse.ko", "virtiofs.ko"):
        shutil.copy(rig / module, root / module)
    marks = (
        f"ls /mnt/{_MARK}{number} 2>/dev/null\n{work}" for number, (work, _) in enumerate(WORK)
    )
    script = "\n".join((
        "uname -r; exec >/dev/null",
        "insmod /fuse.ko && insmod /virtiofs.ko && mount -t virtiofs -o ro lab /mnt || exit 9",
        *marks,
        f"ls /mnt/{_MARK}{len(WORK)} 2>/dev/null; exit 0",
    ))  # fmt: skip
    with (
        RunningDaemon({"rig": rig, "root": root}, folder / "s", program) as daemon,
        Client.connect(daemon.socket) as client,
        backend(program, folder / "tree", folder / "fs") as behind,
        Relay(str(folder / "relay"), behind, taps=True) as relay,
        client.fetch("rig", "linux") as kernel,
        boot_uml.memfd("initramfs") as initramfs,
        tempfile.TemporaryFile() as console,
    ):
        client.archive("root", "/", initramfs, owner=(0, 0))
        boot_uml.add_init(initramfs, script)
        device = f"virtio_uml.device={folder}/relay:26"
        status = boot_uml.run(kernel.fileno(), initramfs, console.fileno(), [device])
        console.seek(0)
        told = console.read().decode()
        assert status == 0, told
        requests = [*relay.requests]
    return told.split()[0], traced(requests)


def markdown(version: str, linux: Traced, ours: Traced) -> str:
    """Return the page."""
    lines = _BEGIN.format(version=version).splitlines()
    offers = [_offer(each.init.body) for each in (linux, ours)]
    lines.append("| version | " + " | ".join(offer.version for offer in offers) + " |")
    lines.append(
        "| max_readahead | " + " | ".join(f"{offer.readahead:,}" for offer in offers) + " |"
    )
    for bit, name in enumerate(FLAGS):
        offered = ["yes" if offer.flags >> bit & 1 else "" for offer in offers]
        if any(offered):
            lines.append(f"| `{name}` | " + " | ".join(offered) + " |")
    lines += [
        "",
        "## Requests in their order",
        "",
        "FORGET and BATCH_FORGET go on the hiprio queue (h), at any time.",
        "",
    ]
    for (work, _), theirs, mine in zip(WORK, linux.work, ours.work, strict=True):
        lines += [
            f"`{work}`",
            "",
            "| | |",
            "|---|---|",
            f"| Linux | {_words(theirs)} |",
            f"| vuserd | {_words(mine)} |",
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


class _Offer(NamedTuple):
    version: str
    readahead: int
    flags: int


def _offer(body: bytes) -> _Offer:
    major, minor, readahead, flags = _INIT.unpack_from(body)
    more = struct.unpack_from("=I", body, _INIT.size)[0] if len(body) >= 20 else 0
    return _Offer(f"{major}.{minor}", readahead, flags | more << 32)


def _words(requests: Sequence[Request]) -> str:
    """Return the requests by name, with how often each came where it did so in a row."""
    named = [f"{Opcode(each.opcode).name}{'' if each.queue else ' (h)'}" for each in requests]
    runs = ((name, len([*run])) for name, run in groupby(named))
    return ", ".join(name if count == 1 else f"{name} x {count}" for name, count in runs)
