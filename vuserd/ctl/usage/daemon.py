"""The commands about the daemon itself: exports, status, top, reload and the like."""

from vuserd.ctl.usage.arguments import EXPORT, count_argument, number_argument, seconds_argument
from vuserd.ctl.usage.grammar import AddCommand


def add_daemon(command: AddCommand) -> None:
    """Add these commands."""
    command("exports", "list the exports, their state and their backends", "exports --json")
    reload = command(
        "reload",
        "replace the backend of an export, or read the configuration again; no call is lost",
        "reload",
        "reload kernels",
    )
    reload.add_argument(
        "export", metavar=EXPORT, nargs="?", help="default: the whole configuration"
    )
    command("rigs", "list the rigs: network namespaces in which the daemon has a socket", "rigs")
    command("status", "show the daemon's state", "status --json")
    top = command(
        "top", "keep showing the daemon's state and what its clients do", "top --interval 5"
    )
    top.add_argument(
        "--interval",
        metavar="SECONDS",
        type=seconds_argument,
        default=2.0,
        help="pause between updates (default: 2)",
    )
    top.add_argument(
        "-n", dest="count", metavar="COUNT", type=count_argument, help="end after COUNT updates"
    )
    command("metrics", "print the daemon's metrics in Prometheus' text format", "metrics")
    trace = command(
        "trace",
        "print the FUSE requests of an export as they happen",
        "trace kernels",
        "trace kernels --write capture",
        "trace --read capture",
    )
    trace.add_argument("export", metavar=EXPORT, nargs="?")
    trace.add_argument("--write", metavar="FILE", help="write them to a file and print nothing")
    trace.add_argument(
        "--read", metavar="FILE", help="print those of a file that was written before"
    )
    trace.add_argument(
        "-n", dest="count", metavar="COUNT", type=number_argument, help="end after COUNT requests"
    )
    completion = command(
        "completion",
        "print a completion script for a shell",
        "completion bash > ~/.local/share/bash-completion/completions/vuserctl",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
