"""Parse the command line of ``vuserctl``, and refuse what is wrong with it."""

import argparse
import os
from contextlib import suppress
from typing import Final, NoReturn

from vuserd import __version__
from vuserd.ctl.target import Target

_EPILOG = """\
EXPORT:PATH names a file as scp does; PATH begins at the export's root, which 'EXPORT:' is.
A number may be hexadecimal (0x...) and have a suffix K, M or G (of 1024).
The socket is --socket, else $VUSERD_SOCKET, else @vuserd (abstract: a rig's, in its own network
namespace), else $XDG_RUNTIME_DIR/vuserd.sock, else /run/vuserd/vuserd.sock.
"""


#: How usage names an operand that is an export.
EXPORT: Final = "EXPORT"


class _Help(argparse.HelpFormatter):
    """Formats help as wide as the terminal, without the modules that argparse imports for that."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


class _HelpAsWritten(_Help, argparse.RawDescriptionHelpFormatter):
    """The same, but the epilog keeps its line breaks."""


def _columns() -> int:
    """Return $COLUMNS, or else the columns of the terminal on standard output, or else 80."""
    said = os.environ.get("COLUMNS", "")
    with suppress(OSError):
        return (int(said) if said.isdecimal() else 0) or os.get_terminal_size().columns or 80
    return 80


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read a command line; wrong usage ends the process with status 2."""
    usage = parser()
    options = usage.parse_args(arguments, argparse.Namespace(socket=None, json=False))
    _check(usage, options)
    return options


def _check(usage: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse, as wrong usage, what argparse cannot check by itself."""
    if options.command == "trace" and (options.export is None) == (options.read is None):
        usage.error("trace takes an export, or a capture to --read")
    if options.command == "trace" and options.read is not None and options.write is not None:
        usage.error("trace either reads a capture or writes one")
    if options.command == "get" and options.destination == "":
        usage.error("DEST is an empty string, which names no file")
    if options.command not in ("get", "load") or options.target.name:
        return
    # Refuse a target that names no file where a file is needed.
    if options.command == "load" or not options.recursive:
        usage.error(f"'{options.target}' names no file")
    if options.destination is None:
        usage.error(f"'{options.target}' has no name of its own: say where to put it")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    # These options are accepted before and after the command. Only an option that is given sets a
    # value; else the default of one place would overwrite what was given in the other.
    common = argparse.ArgumentParser(
        add_help=False, argument_default=argparse.SUPPRESS, formatter_class=_Help
    )
    common.add_argument("--socket", metavar="PATH", help="the daemon's socket")
    common.add_argument("--json", action="store_true", help="print JSON where there is a table")

    top_level = argparse.ArgumentParser(
        prog="vuserctl",
        description="List and fetch what the vuserd daemon exports.",
        epilog=_EPILOG,
        formatter_class=_HelpAsWritten,
        parents=[common],
        allow_abbrev=False,
    )
    top_level.add_argument("--version", action="version", version=f"vuserctl {__version__}")
    commands = top_level.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            description=text,
            parents=[common],
            allow_abbrev=False,
            formatter_class=_Help,
        )

    command("exports", "list the exports, their state and their backends")
    ls = command("ls", "list a directory, in the order of names, hidden ones included")
    ls.add_argument("-l", dest="long", action="store_true", help="with attributes")
    _add_target(ls)
    _add_target(command("tree", "list a directory with all below it"))
    stat = command("stat", "show a file's attributes")
    stat.add_argument(
        "-L", "--follow", action="store_true", help="of the file that a symlink leads to"
    )
    _add_target(stat)
    cat = command("cat", "write files to standard output")
    cat.add_argument("targets", type=target_argument, metavar="EXPORT:PATH", nargs="+")
    get = command("get", "fetch a file, and put it in place once it is whole")
    get.add_argument(
        "-r", dest="recursive", action="store_true", help="fetch a directory with all below it"
    )
    get.add_argument(
        "--growing",
        action="store_true",
        help="of a growing file, fetch what it has at the start",
    )
    _add_target(get)
    get.add_argument("destination", metavar="DEST", nargs="?", help="file, directory, or '-'")
    load = command("load", "load a file into memory that another process shares")
    _add_target(load)
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
    reload = command(
        "reload",
        "replace the backend of an export, or read the configuration again; no call is lost",
    )
    reload.add_argument(
        "export", metavar=EXPORT, nargs="?", help="default: the whole configuration"
    )
    command("rigs", "list the rigs: network namespaces in which the daemon has a socket")
    command("status", "show the daemon's state")
    top = command("top", "keep showing the daemon's state and what its clients do")
    top.add_argument(
        "--interval",
        metavar="SECONDS",
        type=_seconds,
        default=2.0,
        help="pause between updates (default: 2)",
    )
    top.add_argument(
        "-n", dest="count", metavar="COUNT", type=_count, help="end after so many updates"
    )
    command("metrics", "print the daemon's metrics in Prometheus' text format")
    trace = command("trace", "print the FUSE requests of an export as they happen")
    trace.add_argument("export", metavar=EXPORT, nargs="?")
    trace.add_argument("--write", metavar="FILE", help="write them to a file and print nothing")
    trace.add_argument(
        "--read", metavar="FILE", help="print those of a file that was written before"
    )
    trace.add_argument(
        "-n", dest="count", metavar="COUNT", type=number_argument, help="end after so many requests"
    )
    completion = command("completion", "print a completion script for a shell")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    return top_level


def _add_target(command: argparse.ArgumentParser) -> None:
    command.add_argument("target", type=target_argument, metavar="EXPORT:PATH")


def target_argument(text: str) -> Target:
    """Read EXPORT:PATH, as a ``type`` of argparse, which reports an error as wrong usage."""
    try:
        return Target.parse(text)
    except ValueError as error:
        _refuse(str(error))


def number_argument(text: str) -> int:
    """Read a number by :func:`vuserd.ctl.load.parse_number`, as a ``type`` of argparse."""
    from vuserd.ctl.load import parse_number

    try:
        return parse_number(text)
    except ValueError as error:
        _refuse(str(error))


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        _refuse(f"{text!r} is not a number of at least 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.1 <= seconds <= 86400:
        _refuse(f"{text!r} is not a number of seconds from 0.1 to 86400")
    return seconds


def _refuse(reason: str) -> NoReturn:
    raise argparse.ArgumentTypeError(reason)
