"""The commands about what files hold: head, tail, sha256sum, diff and watch."""

from vuserd.ctl.usage.arguments import COMMAND, count_argument, number_argument, seconds_argument
from vuserd.ctl.usage.grammar import AddCommand, CommandParser, add_flags, add_target, add_targets


def add_contents(command: AddCommand) -> None:
    """Add these commands."""
    head = command("head", "write the beginning of files", "head -n 20 logs:/syslog")
    _add_part(head)
    tail = command(
        "tail", "write the end of files, and what is appended", "tail -n 50 -f logs:/syslog"
    )
    _add_part(tail)
    add_flags(tail, follow=("-f", "go on with what is appended, until it is interrupted"))
    _add_interval(tail, 1.0)
    sums = command(
        "sha256sum",
        "print the checksums of files, which are not stored, or check them",
        "sha256sum 'kernels:/boot/*' > sums",
        "sha256sum -c sums",
        "sha256sum -c SHA256SUMS kernels:/boot",
    )
    sums.add_argument(
        "-c",
        dest="sums",
        metavar="FILE",
        help="check those of a local file, '-' for standard input",
    )
    add_targets(sums, "*")
    diff = command(
        "diff",
        "print what differs from a local file or directory; the exit status is 1 if anything does",
        "diff kernels:/dtbs /srv/tftp/dtbs",
    )
    add_target(diff)
    diff.add_argument("local", metavar="LOCAL", help="the local file or directory")
    watch = command(
        "watch",
        "look at a file or directory again and again, and print what has changed",
        "watch kernels:/boot",
        "watch -n 1 kernels:/Image && echo 'there is a new one'",
        "watch kernels:/dtbs -- make -C board test",
    )
    _add_interval(watch, 2.0)
    watch.add_argument(
        "-n",
        dest="count",
        metavar="COUNT",
        type=count_argument,
        help="end after COUNT looks that saw changes",
    )
    add_target(watch)
    watch.add_argument("run", metavar=COMMAND, nargs="*", help="is run after changes")


def _add_part(parser: CommandParser) -> None:
    """Add how much of a file is wanted, which -20 says as well as -n 20."""
    parser.number_option = "-n"
    parser.add_argument(
        "-n",
        dest="lines",
        metavar="LINES",
        type=number_argument,
        default=10,
        help="this number of lines (default: 10)",
    )
    parser.add_argument(
        "-c",
        dest="bytes",
        metavar="BYTES",
        type=number_argument,
        help="this number of bytes instead",
    )
    add_targets(parser)


def _add_interval(parser: CommandParser, seconds: float) -> None:
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=seconds_argument,
        default=seconds,
        help=f"between two looks (default: {seconds:g})",
    )
