"""The commands that bring files to where they are used: cat, get, archive and load."""

from vuserd.ctl.usage.arguments import number_argument, owner_argument, time_argument
from vuserd.ctl.usage.grammar import AddCommand, add_flags, add_target, add_targets


def add_copying(command: AddCommand) -> None:
    """Add these commands."""
    cat = command("cat", "write files to standard output", "cat kernels:/board.dtb | dtc -I dtb")
    add_targets(cat)
    get = command(
        "get",
        "fetch files, and put each in place once it is whole",
        "get kernels:/boot/Image",
        "get 'kernels:/boot/vmlinuz-*' kernels:/board.dtb /srv/tftp/",
        "get -ru kernels:/dtbs /srv/tftp/",
    )
    add_flags(
        get,
        recursive=("-r", "fetch directories with all below them"),
        update=("-u", "skip what is there with the same size and modification time"),
        preserve=("-p", "keep permissions whatever the umask (times are always kept)"),
        quiet=("-q", "show no progress"),
        verbose=("-v", "print each file that is fetched, and where to"),
        dry_run=("-n", "print what would be fetched, and write nothing"),
        growing=("--growing", "of a growing file, fetch what it has at the start"),
    )
    # Which of the operands is DEST, parser.parse() says once there are all of them.
    add_targets(get, kind=str)
    get.add_argument("destination", metavar="DEST", nargs="?", help="file, directory, or '-'")
    archive = command(
        "archive",
        "write a directory with all below it as one cpio or tar archive",
        "archive lab:/rootfs --owner 0:0 -o initramfs.cpio",
        "archive lab:/rootfs --format tar --reproducible | sqfstar rootfs.squashfs",
    )
    add_target(archive)
    archive.add_argument("-o", dest="output", metavar="FILE", help="(default: standard output)")
    archive.add_argument(
        "--format",
        choices=("newc", "tar"),
        default="newc",
        help="newc (the default), which is an initramfs, or tar",
    )
    archive.add_argument(
        "--owner", metavar="UID:GID", type=owner_argument, help="the owner of all files"
    )
    archive.add_argument(
        "--mtime", metavar="SECONDS", type=time_argument, help="the time of all files, since 1970"
    )
    archive.add_argument(
        "--exclude",
        metavar="PATTERN",
        action="append",
        default=[],
        help="leave out such names or, with a slash in it, such paths",
    )
    archive.add_argument(
        "--no-special",
        dest="special",
        action="store_false",
        help="leave out devices, fifos and sockets",
    )
    add_flags(
        archive,
        reproducible=("--reproducible", "owner 0:0 and time $SOURCE_DATE_EPOCH or 0, if not given"),
        allow_changes=("--allow-changes", "take a tree that changes meanwhile"),
    )
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
