"""The commands that bring files to where they are used: cat, get and load."""

from vuserd.ctl.usage.arguments import number_argument
from vuserd.ctl.usage.grammar import AddCommand, add_flags, add_target, add_targets


def add_copying(command: AddCommand) -> None:
    """Add these commands."""
    cat = command("cat", "write files to standard output", "cat kernels:/board.dtb | dtc -I dtb")
    add_targets(cat)
    get = command(
        "get",
        "fetch a file, and put it in place once it is whole",
        "get kernels:/boot/Image",
        "get -r kernels:/dtbs /srv/tftp/",
    )
    add_flags(
        get,
        recursive=("-r", "fetch a directory with all below it"),
        growing=("--growing", "of a growing file, fetch what it has at the start"),
    )
    add_target(get)
    get.add_argument("destination", metavar="DEST", nargs="?", help="file, directory, or '-'")
    load = command(
        "load",
        "load a file into memory that another process shares",
        "load kernels:/Image --memory /proc/4711/fd/5 --address 0x80000",
    )
    add_target(load)
    load.add_argument(
        "--memory", metavar="MEMFD", required=True, help="a descriptor, or /proc/PID/fd/N"
    )
    load.add_argument(
        "--address",
        metavar="A",
        type=number_argument,
        required=True,
        help="the address in the memory",
    )
    load.add_argument(
        "--offset", metavar="N", type=number_argument, default=0, help="the first byte of the file"
    )
    load.add_argument("--length", metavar="N", type=number_argument, help="how many bytes")
