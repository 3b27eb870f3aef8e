"""Parse the command line of ``vuserctl``, and refuse what is wrong with it."""

import argparse

from vuserd import __version__
from vuserd.ctl.target import Target
from vuserd.ctl.usage.arguments import COMMAND, FILE, seconds_argument
from vuserd.ctl.usage.arguments import number_argument as number_argument
from vuserd.ctl.usage.arguments import target_argument as target_argument
from vuserd.ctl.usage.contents import add_contents
from vuserd.ctl.usage.copying import add_copying
from vuserd.ctl.usage.daemon import add_daemon
from vuserd.ctl.usage.grammar import CommandParser, Help, Parser, add_commands
from vuserd.ctl.usage.looking import add_looking

_EPILOG = """\
EXPORT:PATH names a file as scp does; PATH begins at the export's root, which 'EXPORT:' is.
An address or a number of bytes may be hexadecimal (0x...) and have a suffix K, M or G (of 1024).
The socket is --socket, else $VUSERD_SOCKET, else @vuserd (abstract: a rig's, in its own network
namespace), else $XDG_RUNTIME_DIR/vuserd.sock, else /run/vuserd/vuserd.sock.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read a command line; wrong usage ends the process with status 2."""
    options = parser().parse_args(
        arguments, argparse.Namespace(socket=None, json=False, timeout=None)
    )
    _check(options.usage, options)
    return options


def _check(usage: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse, as wrong usage, what argparse cannot check by itself."""
    if options.socket == "":
        usage.error("--socket is an empty string, which names no file")
    if options.command == "trace" and (options.export is None) == (options.read is None):
        usage.error("trace takes an export, or a capture to --read")
    if options.command == "trace" and options.read is not None and options.write is not None:
        usage.error("trace either reads a capture or writes one")
    if options.command == "get":
        _take_destination(usage, options)
    elif options.command == "sha256sum" and options.sums is None and not options.targets:
        usage.error(f"the following arguments are required: {FILE}, or -c")
    elif options.command == "sha256sum" and options.sums is not None and len(options.targets) > 1:
        usage.error("-c takes one directory at most, in which the names are")
    elif options.command == "load" and not options.target.name:
        usage.error(f"'{options.target}' names no file")


def _take_destination(usage: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Take the last one of several operands of ``get`` for DEST, and check the others."""
    if len(options.targets) > 1:
        options.destination = options.targets.pop()
    if options.destination == "":
        usage.error("DEST is an empty string, which names no file")
    if _is_of_an_export(options.destination):
        usage.error(
            f"'{options.destination}' is the last operand, and so where to put the others: say '.'"
            f" behind it for this directory, or './{options.destination}' for a local file"
        )
    try:
        options.targets = [Target.parse(text) for text in options.targets]
    except ValueError as error:
        usage.error(f"argument {FILE}: {error}")
    for target in options.targets:
        if target.name:
            continue
        if not options.recursive:
            usage.error(f"'{target}' names no file")
        if options.destination is None:
            usage.error(f"'{target}' has no name of its own: say where to put it")


def _is_of_an_export(destination: str | None) -> bool:
    """Return whether scp would take that for a remote file: a colon comes before any slash."""
    return destination is not None and ":" in destination.partition("/")[0]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    # These options are accepted before and after the command. Only an option that is given sets a
    # value; else the default of one place would overwrite what was given in the other.
    common = CommandParser(add_help=False, argument_default=argparse.SUPPRESS, formatter_class=Help)
    common.add_argument("--socket", metavar="PATH", help="the daemon's socket")
    common.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds_argument,
        help="give up after SECONDS without an answer",
    )
    common.add_argument("--json", action="store_true", help="print JSON where there is a table")

    top_level = Parser(
        prog="vuserctl",
        description="List and fetch what the vuserd daemon exports.",
        epilog=_EPILOG,
        formatter_class=Help,
        parents=[common],
        allow_abbrev=False,
    )
    # With its own end of line: then it needs not be wrapped, nor textwrap be loaded.
    top_level.add_argument("-V", "--version", action="version", version=f"vuserctl {__version__}\n")
    commands = top_level.add_subparsers(
        dest="command", metavar=COMMAND, required=True, parser_class=CommandParser
    )
    command = add_commands(commands, common)
    add_looking(command)
    add_copying(command)
    add_contents(command)
    add_daemon(command)
    topics = command("help", "show how a command is used", "help get")
    topics.add_argument("topic", metavar=COMMAND, nargs="?", choices=[*commands.choices])
    return top_level
