"""Put a kernel and a device tree into a rig's RAM, and check every byte there.

``rig.py EXPORT:KERNEL EXPORT:DTB`` stands for the loader of a simulator or an emulator. The RAM is
a memfd, which the rig and the daemon's backend share: the backend writes the files there itself,
and nothing on the way copies them. It boots nothing. Exit status: 0 where every byte was right,
else 1.
"""

import argparse
import hashlib
import os
import sys
from typing import Final, NamedTuple

from vuserd.client import AttachedMemory, Client, ClientError

READ_MAX: Final = 8 << 20  #: the most that one read gives
SUFFIXES: Final = {"K": 10, "M": 20, "G": 30}


class Target(NamedTuple):
    """A path inside an export."""

    export: str
    path: str

    def __str__(self) -> str:
        return f"{self.export}:{self.path}"


def target(text: str) -> Target:
    """Read EXPORT:PATH."""
    export, colon, path = text.partition(":")
    if not export or not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is not EXPORT:PATH")
    return Target(export, path)


def number(text: str) -> int:
    """Read a number such as 4096, 0x80000, 64K or 1G."""
    shift = SUFFIXES.get(text[-1:], 0)
    try:
        found = int(text[:-1] if shift else text, 0) << shift
    except ValueError:
        found = -1
    if not 0 <= found < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 0x80000 or 64K")
    return found


def sha256_by_read(client: Client, file: Target) -> str:
    """Return the SHA-256 of a file as ``read`` gives it, part by part."""
    digest, buffer, offset = hashlib.sha256(), memoryview(bytearray(READ_MAX)), 0
    while count := client.read_into(file.export, file.path, offset, buffer):
        digest.update(buffer[:count])
        offset += count
    return digest.hexdigest()


def load(client: Client, memory: AttachedMemory, file: Target, address: int) -> bool:
    """Load a file, and say whether the RAM has its bytes then."""
    length = memory.load(file.export, file.path, address)
    with memoryview(memory.buffer) as ram, ram[address : address + length] as loaded:
        in_ram = hashlib.sha256(loaded).hexdigest()
    same = in_ram == sha256_by_read(client, file)
    print(f"{address:#012x}  {length:>11,} bytes  {file}")
    print(f"{'equal' if same else 'DIFFERS':>12}  sha256 {in_ram}")
    return same


def main() -> int:
    """Load the files and check them; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kernel", type=target, metavar="EXPORT:KERNEL")
    parser.add_argument("dtb", type=target, metavar="EXPORT:DTB")
    for option, default, words in (
        ("--ram", 256 << 20, "bytes (256M)"),
        ("--kernel-address", 0x80000, "(0x80000)"),
        ("--dtb-address", 0x8000000, "(0x8000000)"),
    ):
        parser.add_argument(option, type=number, default=default, help=words)
    parser.add_argument("--socket", help="the daemon's socket")
    options = parser.parse_args()

    ram = os.memfd_create("rig-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(ram, options.ram)
        with Client.connect(options.socket) as client, client.attach(ram) as memory:
            kernel = load(client, memory, options.kernel, options.kernel_address)
            dtb = load(client, memory, options.dtb, options.dtb_address)
    except ClientError as error:
        print(f"rig.py: {error}", file=sys.stderr)
        return 1
    finally:
        os.close(ram)
    return 0 if kernel and dtb else 1


if __name__ == "__main__":
    sys.exit(main())
