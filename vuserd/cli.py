"""The daemon's command line: ``vuserd serve`` and ``vuserd check``."""

import argparse
import contextlib
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import trio

from vuserd import __version__
from vuserd.check.arguments import add_arguments
from vuserd.config.arguments import (
    check_names,
    check_sockets,
    parse_adopted,
    parse_export,
    parse_seconds,
    parse_size,
)
from vuserd.config.descriptor_limits import LEAST_DESCRIPTORS
from vuserd.config.model import DaemonConfig, ListenConfig
from vuserd.daemon import Daemon
from vuserd.device.session import SessionOptions
from vuserd.errors import ConfigurationError, VuserdError, printable
from vuserd.service.journal import journal_handler
from vuserd.service.log_lines import PrintableFormatter
from vuserd.service.standard_streams import STANDARD_OUTPUT, finish_output, prepare
from vuserd.service.systemd import Notifier, listen_sockets, withhold_privileges
from vuserd.trust.undumpable import become_undumpable
from vuserd.wire.address import socket_address

_LOG = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

EXIT_FAILURE = 1
EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for a failure, 2 for wrong usage.

    A daemon keeps serving even if its log cannot be written; a command that prints fails if its
    output cannot be.
    """
    prepare(errors_wait=False)
    failure, status = None, 0
    try:
        status = _run(arguments)
    except SystemExit as end:  # raised by argparse, which has printed help or an error
        status = end.code if isinstance(end.code, int) else 0
    except OSError as error:
        if error.filename != STANDARD_OUTPUT:
            raise
        failure = error
    failure = finish_output() or failure
    if failure is not None and status == 0:
        print(f"vuserd: {STANDARD_OUTPUT}: {failure.strerror}", file=sys.stderr)
        return EXIT_FAILURE
    return status


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    if options.command == "check":
        return _check(options)
    become_undumpable()  # also where another program, as another user by now, calls this
    withhold_privileges()
    notifier = Notifier.from_environment(os.environ)
    prefix = _log(verbose=options.verbose)
    try:
        inherited = listen_sockets(os.environ, os.getpid())
        daemon = Daemon(_reader(options), inherited, notifier)
    except ConfigurationError as error:
        _complain(error, prefix)
        return EXIT_USAGE
    problem = _allow_descriptors()
    if problem is None:
        _collect_seldom()
        _obey_early_signals(daemon)
        problem = trio.run(_serve, daemon)
        for number in _SIGNALS:  # all is done: one that comes now must not change the exit status
            signal.signal(number, signal.SIG_IGN)
    if problem is not None:
        _complain(problem, prefix)
        return EXIT_FAILURE
    return 0


def _check(options: argparse.Namespace) -> int:
    """Run ``vuserd check``; return the exit status. SIGINT ends the process, as others do."""
    from vuserd.check.command import run  # serving needs none of it

    try:
        return run(options)
    except* KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    return EXIT_FAILURE


def _log(*, verbose: bool) -> str:
    """Log to the journal if standard error goes there, else to standard error.

    Return the prefix of a line on standard error: its priority for the journal, or ``vuserd: ``.
    """
    journal = None
    with contextlib.suppress(OSError):  # a stream that a caller put in place has no descriptor
        journal = journal_handler(os.environ, sys.stderr.fileno())
    handler = journal or logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        PrintableFormatter("vuserd: %(message)s" if journal is None else "%(message)s")
    )
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])
    return "vuserd: " if journal is None else "<3>"


def _complain(problem: ConfigurationError, prefix: str) -> None:
    """Print what keeps the daemon from serving."""
    for line in str(problem).split("\n"):
        print(f"{prefix}{printable(line)}", file=sys.stderr)


def _allow_descriptors() -> ConfigurationError | None:
    """Raise the soft limit of descriptors to the hard one; return an error if that is too low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < LEAST_DESCRIPTORS:
        return ConfigurationError(
            f"{hard} open files are too few, at least {LEAST_DESCRIPTORS} are needed: raise the"
            " limit (ulimit -Hn, or LimitNOFILE= of a unit)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return None


def _collect_seldom() -> None:
    """Tune the cycle collector: to run less often, and never over what was loaded, which stays.

    What calls leave behind is freed by reference counting. With a thousand requests in flight, the
    default thresholds would scan the objects of all of them each time a few are answered, and each
    scan holds up all clients: where a listing is packed, for as long as its columns are.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 4)


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
        "--config",
        metavar="FILE",
        help="read this configuration, with conf.d/*.toml beside it (default, where there is"
        " neither --export nor --adopt: /etc/vuserd/vuserd.toml for root,"
        " $XDG_CONFIG_HOME/vuserd/vuserd.toml for a user)",
    )
    serve.add_argument(
        "--socket",
        metavar="PATH",
        help="where to listen for clients, instead of where the configuration says; @NAME for an"
        " abstract socket (default: $VUSERD_SOCKET, $XDG_RUNTIME_DIR/vuserd.sock or"
        " /run/vuserd/vuserd.sock)",
    )
    serve.add_argument(
        "--backend", metavar="PATH", help="the virtiofsd to start (default: the first one found)"
    )
    serve.add_argument(
        "--image-cache",
        metavar="SIZE",
        help="memory for images of files that were fetched, for the next time; 0 keeps none"
        " (default: 1G)",
    )
    serve.add_argument(
        "--timeout",
        metavar="SECONDS",
        help="how long a backend may take for each answer (default: 10)",
    )
    serve.add_argument("-v", "--verbose", action="store_true", help="log more")
    add_arguments(
        commands.add_parser(
            "check", help="tell whether the configuration and this machine are fit to serve"
        )
    )
    return parser


def _given(value: str | None, default: str) -> str:
    return default if value is None else value


def _reader(options: argparse.Namespace) -> Callable[[], DaemonConfig]:
    """Return a function that reads the configuration, from the command line or anew from files."""
    for option in ("config", "socket", "backend"):
        if getattr(options, option) == "":  # a shell's variable that is not set, and no default
            raise ConfigurationError(f"--{option} is an empty string, which names no file")
    if options.export or options.adopt:
        if options.config is not None:
            raise ConfigurationError("give --config, or --export and --adopt, but not both")
        config = _config(options)
        return lambda: config
    return partial(_config_of_files, options)


def _config(options: argparse.Namespace) -> DaemonConfig:
    session = SessionOptions(timeout=parse_seconds("--timeout", _given(options.timeout, "10")))
    exports = tuple(
        replace(export, program=options.backend, session=session)
        for export in (*map(parse_export, options.export), *map(parse_adopted, options.adopt))
    )
    check_names(exports)
    check_sockets(exports, socket_address(options.socket))
    return DaemonConfig(
        _listeners(options),
        exports,
        image_cache=parse_size("--image-cache", _given(options.image_cache, "1G")),
    )


def _config_of_files(options: argparse.Namespace) -> DaemonConfig:
    from vuserd.config.files import config_files, read_config  # a command line needs none of it

    files = config_files(options.config, os.environ, os.geteuid())
    if not files:
        raise ConfigurationError(
            "nothing to serve: give --export NAME=DIR, --adopt NAME=SOCKET or --config FILE"
        )
    for option in ("backend", "image_cache", "timeout"):
        if getattr(options, option) is not None:
            flag = "--" + option.replace("_", "-")
            raise ConfigurationError(f"{flag}: say {option} in the configuration file instead")
    config = read_config(files, socket_address(options.socket))
    return replace(config, listeners=_listeners(options)) if options.socket else config


def _listeners(options: argparse.Namespace) -> tuple[ListenConfig, ...]:
    return (ListenConfig(options.socket),) if options.socket else ()


async def _serve(daemon: Daemon) -> ConfigurationError | None:
    """Serve until a signal; return the error that prevents it, if there is one."""
    problem: ConfigurationError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_obey_signals, daemon)
        try:
            await daemon.run()
        except ConfigurationError as error:
            problem = error
        nursery.cancel_scope.cancel()
    return problem


def _obey_early_signals(daemon: Daemon) -> None:
    """Obey signals that come before :func:`_obey_signals` does, and those that it leaves behind."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: daemon.stop())
    signal.signal(signal.SIGHUP, lambda *_: None)  # what it would read again was just read


async def _obey_signals(daemon: Daemon) -> None:
    """Reload on SIGHUP; stop cleanly on SIGTERM and SIGINT."""
    with trio.open_signal_receiver(*_SIGNALS) as received:
        async with trio.open_nursery() as nursery:
            async for number in received:
                if number == signal.SIGHUP:
                    nursery.start_soon(_reload, daemon)
                else:
                    _LOG.info("ending on %s", signal.Signals(number).name)
                    daemon.stop()


async def _reload(daemon: Daemon) -> None:
    try:
        await daemon.reload()
    except VuserdError as error:
        for line in str(error).split("\n"):
            _LOG.error("%s", line)


if __name__ == "__main__":
    sys.exit(main())
