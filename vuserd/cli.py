"""The command line of the daemon: ``vuserd serve``."""

import argparse
import gc
import logging
import resource
import signal
import sys
from collections.abc import Sequence

import trio

from vuserd import __version__
from vuserd.address import socket_address
from vuserd.config import (
    DaemonConfig,
    check_names,
    parse_adopted,
    parse_export,
    parse_seconds,
    parse_size,
)
from vuserd.daemon import Daemon
from vuserd.device.session import SessionOptions
from vuserd.errors import ConfigurationError

#: A backend alone takes 610.
_LEAST_DESCRIPTORS = 1024

EXIT_FAILURE = 1
EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for a failure, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="vuserd: %(message)s",
        stream=sys.stderr,
    )
    try:
        config = _config(options)
    except ConfigurationError as error:
        print(f"vuserd: {error}", file=sys.stderr)
        return EXIT_USAGE
    problem = _allow_descriptors()
    if problem is None:
        _collect_seldom()
        problem = trio.run(_serve, config)
    if problem is not None:
        print(f"vuserd: {problem}", file=sys.stderr)
        return EXIT_FAILURE
    return 0


def _allow_descriptors() -> ConfigurationError | None:
    """Use as many descriptors as may be: clients need them; return why they are too few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < _LEAST_DESCRIPTORS:
        return ConfigurationError(
            f"{hard} open files are too few, at least {_LEAST_DESCRIPTORS} are needed: raise the"
            " limit (ulimit -Hn, or LimitNOFILE= of a unit)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return None


def _collect_seldom() -> None:
    """Look for garbage in cycles less often.

    What calls leave behind is freed without that. With a thousand requests in flight at once the
    collector's default looks through the objects of all of them for every few that are answered.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vuserd",
        description="A vhost-user front-end without QEMU: serves host directories, read through"
        " virtio-fs, on a MessagePack-RPC socket.",
    )
    parser.add_argument("--version", action="version", version=f"vuserd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the daemon in the foreground")
    serve.add_argument(
        "--export",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="export a directory through a virtiofsd of the daemon's own (repeatable)",
    )
    serve.add_argument(
        "--adopt",
        action="append",
        default=[],
        metavar="NAME=SOCKET",
        help="export what a virtiofsd that you started serves on a unix socket (repeatable)",
    )
    serve.add_argument(
        "--socket",
        metavar="PATH",
        help="where to listen for clients; @NAME for an abstract socket (default:"
        " $VUSERD_SOCKET, $XDG_RUNTIME_DIR/vuserd.sock or /run/vuserd/vuserd.sock)",
    )
    serve.add_argument(
        "--backend", metavar="PATH", help="the virtiofsd to start (default: the first one found)"
    )
    serve.add_argument(
        "--image-cache",
        metavar="SIZE",
        default="1G",
        help="memory for images of files that clients fetched, for the next who asks; 0 keeps none"
        " (default: %(default)s)",
    )
    serve.add_argument(
        "--timeout",
        metavar="SECONDS",
        default="10",
        help="how long a backend may take for each answer (default: %(default)s)",
    )
    serve.add_argument("-v", "--verbose", action="store_true", help="log more")
    return parser


def _config(options: argparse.Namespace) -> DaemonConfig:
    exports = (
        *map(parse_export, options.export),
        *map(parse_adopted, options.adopt),
    )
    if not exports:
        raise ConfigurationError("nothing to serve: give --export NAME=DIR or --adopt NAME=SOCKET")
    check_names(exports)
    return DaemonConfig(
        socket_address(options.socket),
        exports,
        options.backend,
        session_options=SessionOptions(timeout=parse_seconds("--timeout", options.timeout)),
        image_cache=parse_size("--image-cache", options.image_cache),
    )


async def _serve(config: DaemonConfig) -> ConfigurationError | None:
    """Serve until a signal; return what prevents it."""
    daemon = Daemon(config)
    problem: ConfigurationError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, daemon)
        try:
            await daemon.run()
        except ConfigurationError as error:
            problem = error
        nursery.cancel_scope.cancel()
    return problem


async def _stop_on_signal(daemon: Daemon) -> None:
    """Let the daemon end in good order; a signal before it serves ends it as soon as it would."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        async for number in received:
            logging.getLogger(__name__).info("ending on %s", signal.Signals(number).name)
            daemon.stop()


if __name__ == "__main__":
    sys.exit(main())
