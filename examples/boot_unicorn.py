"""Boot an arm64 kernel in the RAM of an emulated board, as far as its first console.

``boot_unicorn.py EXPORT:IMAGE EXPORT:DTB``. The RAM is a memfd that vuserd's backend writes kernel
and device tree into; the CPU is that of the emulator unicorn (``pip install vuserd[rigs]``). It
prints the board's console, and ends with status 0 once Linux has named the machine as the device
tree does.

Unicorn's CPU is QEMU's, without QEMU's boards: there is no timer and no interrupt controller here,
so Linux gets no further than its early console. ``--write-dtb FILE`` writes the board's device tree
where there is no dtc.
"""

import argparse
import ctypes
import mmap
import os
import struct
import sys
import time
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import unicorn
from unicorn import arm64_const as arm64

from vuserd.client import Client, ClientError

#: Where things are in the board's memory, and in its RAM.
RAM: Final = 0x4000_0000
RAM_SIZE: Final = 256 << 20
UART: Final = 0x0900_0000
KERNEL: Final = 2 << 20
DTB: Final = 192 << 20
#: Seconds after which a board that still runs is stopped.
RUNS_FOR: Final = 60

MODEL: Final = "A rig of vuserd's (unicorn)"
Node: TypeAlias = "Mapping[str, bytes | Node]"


def text(*words: str) -> bytes:
    """Return strings as a property."""
    return b"".join(word.encode() + b"\0" for word in words)


def cells(*numbers: int) -> bytes:
    """Return 32-bit numbers as a property."""
    return struct.pack(f">{len(numbers)}I", *numbers)


BOARD: Final[Node] = {
    "model": text(MODEL),
    "compatible": text("vuserd,rig"),
    "#address-cells": cells(2),
    "#size-cells": cells(2),
    "chosen": {"bootargs": text(f"earlycon=pl011,mmio32,{UART:#x} keep_bootcon nokaslr")},
    f"memory@{RAM:x}": {"device_type": text("memory"), "reg": cells(0, RAM, 0, RAM_SIZE)},
    "cpus": {
        "#address-cells": cells(1),
        "#size-cells": cells(0),
        "cpu@0": {
            "device_type": text("cpu"),
            "compatible": text("arm,cortex-a57"),
            "reg": cells(0),
        },
    },
    f"serial@{UART:x}": {
        "compatible": text("arm,pl011", "arm,primecell"),
        "reg": cells(0, UART, 0, 0x1000),
    },
}


def flattened(board: Node) -> bytes:
    """Return a device tree as a blob: Devicetree Specification 0.4, chapter 5."""
    names: dict[str, int] = {}
    strings = bytearray()

    def name(of: str) -> int:
        if of not in names:
            names[of] = len(strings)
            strings.extend(text(of))
        return names[of]

    def padded(part: bytes) -> bytes:
        return part + bytes(-len(part) % 4)

    def node(called: str, inside: Node) -> bytes:
        found = cells(1) + padded(text(called))
        for key, value in inside.items():
            if isinstance(value, bytes):
                found += cells(3, len(value), name(key)) + padded(value)
            else:
                found += node(key, value)
        return found + cells(2)

    structure = node("", board) + cells(9)
    reserved = bytes(16)
    begin = 40 + len(reserved)
    end = begin + len(structure)
    head = (0xD00DFEED, end + len(strings), begin, end, 40, 17, 16, 0, len(strings), len(structure))
    return cells(*head) + reserved + structure + strings


class Board:
    """The emulated machine: a CPU, RAM that others have written to, and a serial port."""

    def __init__(self, ram: mmap.mmap, until: bytes) -> None:
        self._ram, self._until = ram, until
        self._line = bytearray()
        self.has_said_it = False
        cpu = self._cpu = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        cpu.ctl_set_cpu_model(arm64.UC_CPU_ARM64_A57)
        pointer = ctypes.addressof(ctypes.c_char.from_buffer(ram))
        cpu.mem_map_ptr(RAM, len(ram), unicorn.UC_PROT_ALL, pointer)
        cpu.mmio_map(UART, 0x1000, self._read_uart, None, self._write_uart, None)
        # Unicorn's own translation knows nothing of tables that a guest makes.
        cpu.ctl_set_tlb_mode(unicorn.UC_TLB_VIRTUAL)
        cpu.hook_add(unicorn.UC_HOOK_TLB_FILL, self._translate)

    def run(self) -> None:
        """Start Linux as its Documentation/arch/arm64/booting.rst has it."""
        for register in range(1, 4):
            self._cpu.reg_write(arm64.UC_ARM64_REG_X0 + register, 0)
        self._cpu.reg_write(arm64.UC_ARM64_REG_X0, RAM + DTB)
        try:
            self._cpu.emu_start(RAM + KERNEL, (1 << 64) - 1, timeout=RUNS_FOR * 1_000_000)
        except unicorn.UcError:
            if not self.has_said_it:  # else it was stopped, in the middle of an instruction
                raise

    def _read_uart(self, _cpu: Any, offset: int, _size: int, _: Any) -> int:
        return 0x90 if offset == 0x18 else 0  # the flags: nothing to read, and room to write

    def _write_uart(self, cpu: Any, offset: int, _size: int, value: int, _: Any) -> None:
        if offset:
            return
        self._line.append(value & 0xFF)
        if value == ord("\n"):
            print(self._line.decode(errors="replace").rstrip(), flush=True)
            if self._until in self._line:
                self.has_said_it = True
                cpu.emu_stop()
            self._line.clear()

    def _translate(self, cpu: Any, address: int, _access: int, result: Any, _: Any) -> bool:
        """Walk the tables of four levels, with pages of 4 KiB, that Linux has made."""
        control = cpu.reg_read(arm64.UC_ARM64_REG_CP_REG, (1, 0, 3, 0, 0))  # SCTLR_EL1
        result.perms = unicorn.UC_PROT_ALL
        if not control & 1:  # it is not translating yet
            result.paddr = address & ~0x3FF
            return True
        high = address >> 63
        table = cpu.reg_read(arm64.UC_ARM64_REG_TTBR1_EL1 if high else arm64.UC_ARM64_REG_TTBR0_EL1)
        for shift in (39, 30, 21, 12):
            at = (table & 0xFFFF_FFFF_F000) + 8 * (address >> shift & 0x1FF) - RAM
            (table,) = struct.unpack_from("<Q", self._ram, at) if 0 <= at < RAM_SIZE else (0,)
            if not table & 1:
                return False
            if shift == 12 or not table & 2:
                inside = (1 << shift) - 1
                page = table & 0xFFFF_FFFF_F000 & ~inside | address & inside
                result.paddr = page & ~0x3FF
                return True
        return False


def boot(client: Client, image: tuple[str, str], dtb: tuple[str, str]) -> bool:
    """Load a kernel and a device tree into a board, and run it; return whether it was named."""
    descriptor = os.memfd_create("rig-ram", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, RAM_SIZE)
        started = time.perf_counter()
        with client.attach(descriptor) as memory:
            kernel = memory.load(*image, KERNEL)
            tree = memory.load(*dtb, DTB)
        took = time.perf_counter() - started
        ram = mmap.mmap(descriptor, RAM_SIZE)
    finally:
        os.close(descriptor)
    print(f"{kernel:,} and {tree:,} bytes in the board's RAM after {took * 1e3:.1f} ms", flush=True)
    board = Board(ram, f"Machine model: {MODEL}".encode())
    board.run()
    return board.has_said_it


def target(words: str) -> tuple[str, str]:
    """Read EXPORT:PATH."""
    export, colon, path = words.partition(":")
    if not export or not colon:
        raise argparse.ArgumentTypeError(f"{words!r} is not EXPORT:PATH")
    return export, path


def main() -> int:
    """Boot, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("image", type=target, nargs="?", metavar="EXPORT:IMAGE")
    parser.add_argument("dtb", type=target, nargs="?", metavar="EXPORT:DTB")
    parser.add_argument(
        "--write-dtb", metavar="FILE", help="write the board's device tree, and end"
    )
    parser.add_argument("--socket", help="the daemon's socket")
    options = parser.parse_args()
    if options.write_dtb is not None:
        with open(options.write_dtb, "wb") as file:
            file.write(flattened(BOARD))
        return 0
    if options.dtb is None:
        parser.error("name a kernel and a device tree")
    try:
        with Client.connect(options.socket) as client:
            return 0 if boot(client, options.image, options.dtb) else 1
    except (ClientError, unicorn.UcError) as error:
        print(f"boot_unicorn.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
