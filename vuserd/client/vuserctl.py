"""``vuserctl``: the daemon's methods as commands.

Exit codes: 0; 1 the call failed; 2 wrong usage.  Ended by a signal (also SIGPIPE, when nobody reads
what ``cat`` writes) it removes its temporary file and dies of that signal, as shells expect it.
"""

import argparse
import io
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from vuserd import __version__
from vuserd.client.errors import ClientError, RemoteError
from vuserd.client.output import complain, local_fault
from vuserd.client.sync_client import Client
from vuserd.client.target import Target

_EPILOG = """\
EXPORT:PATH names a file as scp does; PATH begins at the export's root, which 'EXPORT:' is.
A number may be hexadecimal (0x...) and have a suffix K, M or G (of 1024).
The socket is --socket, else $VUSERD_SOCKET, else $XDG_RUNTIME_DIR/vuserd.sock, else
/run/vuserd/vuserd.sock. A name that begins with '@' is an abstract socket.
"""


class _Signalled(BaseException):
    """A signal wants the process to end; what it holds is cleaned up on the way."""

    def __init__(self, number: int) -> None:
        self.number = number


def main() -> int:
    """Run the command line; the entry point of the script."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        die_of(signal.SIGINT)
    except _Signalled as signalled:
        die_of(signalled.number)
    except BrokenPipeError:
        die_of(signal.SIGPIPE)
    _let_go_of_output()
    return code


def _let_go_of_output() -> None:
    """Drop output that cannot be written: the interpreter would try again, and exit with 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _on_signal(number: int, _frame: FrameType | None) -> NoReturn:
    raise _Signalled(number)


def die_of(number: int) -> NoReturn:
    """End this process by a signal, so that the shell sees what it was."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # where the signal is blocked


def run(arguments: list[str]) -> int:
    """Do one command; give the exit code.

    KeyboardInterrupt and BrokenPipeError (of standard output) are left to the caller.
    """
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)  # the bytes of a name go out as they came
    if arguments[:1] == ["__complete"]:
        from vuserd.client.completion import complete

        return complete(arguments[1:])
    usage = parser()
    options = usage.parse_args(arguments, argparse.Namespace(socket=None, json=False))
    _check_target(usage, options)
    target: Target | None = getattr(options, "target", None)
    try:
        code = _dispatch(options)
        sys.stdout.flush()
    except RemoteError as error:
        return complain(f"{target}: {error}" if target else str(error))
    except ClientError as error:
        return complain(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        return complain(local_fault(error))
    return code


def _dispatch(options: argparse.Namespace) -> int:
    """Load what the command needs, and only that: it starts in a shell, again and again."""
    command, as_json = options.command, options.json
    if command == "completion":
        from vuserd.client.completion import script

        sys.stdout.write(script(options.shell))
        return 0
    with Client.connect(options.socket) as client:
        match command:
            case "exports" | "status" | "stat":
                from vuserd.client import report

                if command == "exports":
                    report.exports(client, as_json=as_json)
                elif command == "status":
                    report.status(client, as_json=as_json)
                else:
                    report.stat(client, options.target, follow=options.follow, as_json=as_json)
            case "ls":
                from vuserd.client.listing import ls

                ls(client, options.target, long=options.long, as_json=as_json)
            case "tree":
                from vuserd.client import tree

                return (tree.print_json if as_json else tree.draw)(client, options.target)
            case "cat":
                return _cat(client, options.targets)
            case "get":
                return _get(client, options)
            case "reload":
                client.reload(options.export)
            case "load":
                from vuserd.client.loading import load

                load(
                    client,
                    options.target,
                    options.memory,
                    options.address,
                    offset=options.offset,
                    length=options.length,
                )
    return 0


def _get(client: Client, options: argparse.Namespace) -> int:
    if options.recursive:
        from vuserd.client.download_tree import get_tree

        return get_tree(client, options.target, options.destination)
    from vuserd.client.download import get

    get(client, options.target, options.destination)
    return 0


def _cat(client: Client, targets: list[Target]) -> int:
    """Write one file after the other; a missing one does not keep back the others."""
    from vuserd.client.download import cat

    code = 0
    for target in targets:
        try:
            cat(client, target)
        except RemoteError as error:
            code = complain(f"{target}: {error}")
    return code


def _target(text: str) -> Target:
    try:
        return Target.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _number(text: str) -> int:
    from vuserd.client.loading import parse_number

    try:
        return parse_number(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _check_target(usage: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse, as wrong usage, a target that names no file where one is wanted."""
    if options.command not in ("get", "load") or options.target.name:
        return
    if options.command == "load" or not options.recursive:
        usage.error(f"'{options.target}' names no file")
    if options.destination is None:
        usage.error(f"'{options.target}' has no name of its own: say where to put it")


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    # Accepted before and after the command: only what is given sets a value, or the default of the
    # one place would hide what was given in the other.
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--socket", metavar="PATH", help="the daemon's socket")
    common.add_argument("--json", action="store_true", help="print JSON where there is a table")

    top = argparse.ArgumentParser(
        prog="vuserctl",
        description="List and fetch what the vuserd daemon exports.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"vuserctl {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=text, description=text, parents=[common], allow_abbrev=False
        )

    command("exports", "list the exports, their state and what is behind them")
    ls = command("ls", "list a directory, in the order of names, hidden ones included")
    ls.add_argument("-l", dest="long", action="store_true", help="with attributes")
    _add_target(ls)
    _add_target(command("tree", "list a directory with all below it"))
    stat = command("stat", "show a file's attributes")
    stat.add_argument("-L", "--follow", action="store_true", help="of what a symlink leads to")
    _add_target(stat)
    cat = command("cat", "write files to standard output")
    cat.add_argument("targets", type=_target, metavar="EXPORT:PATH", nargs="+")
    get = command("get", "fetch a file, whole, and put it in place when it is there")
    get.add_argument(
        "-r", dest="recursive", action="store_true", help="a directory, with all below"
    )
    _add_target(get)
    get.add_argument("destination", metavar="DEST", nargs="?", help="file, directory, or '-'")
    load = command("load", "have a file written into memory that another process shares")
    _add_target(load)
    load.add_argument(
        "--memory", metavar="MEMFD", required=True, help="a descriptor, or /proc/PID/fd/N"
    )
    load.add_argument(
        "--address", metavar="A", type=_number, required=True, help="where, in the memory"
    )
    load.add_argument(
        "--offset", metavar="N", type=_number, default=0, help="the first byte of the file"
    )
    load.add_argument("--length", metavar="N", type=_number, help="how many bytes")
    reload = command("reload", "replace the backend of an export; no call is lost")
    reload.add_argument("export", metavar="EXPORT")
    command("status", "show the daemon's state")
    completion = command("completion", "print a completion script for a shell")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    return top


def _add_target(command: argparse.ArgumentParser) -> None:
    command.add_argument("target", type=_target, metavar="EXPORT:PATH")


if __name__ == "__main__":
    sys.exit(main())
