"""Run a command of ``vuserctl`` that was parsed, over a connection if it needs one."""

import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Final

from vuserd.client.core.reconnect import PATIENCE
from vuserd.client.errors import CannotConnect, ClientError, ConnectionLost, RemoteError, TimedOut
from vuserd.client.sync_client import Client
from vuserd.ctl.operands import for_each, report
from vuserd.ctl.output import complain, emit, local_fault, shown
from vuserd.ctl.parser import parse
from vuserd.ctl.target import Target
from vuserd.ctl.waiting import connect, hint


def execute(options: Namespace | None, arguments: list[str]) -> int:
    """Run a command, or complete ``arguments`` without ``options``; return the exit code.

    KeyboardInterrupt and BrokenPipeError (of standard output) are left to the caller.
    """
    try:
        if options is None:
            from vuserd.ctl.completion import complete

            code = complete(arguments[1:])
        else:
            code = _dispatch(options)
        sys.stdout.flush()
    except ClientError as error:
        more = ""
        socket, timeout = (options.socket, options.timeout) if options else (None, None)
        if isinstance(error, ConnectionLost | TimedOut | CannotConnect):
            is_silent = error.is_silent if isinstance(error, CannotConnect) else timeout
            more = hint(socket, of_failure=not is_silent)
        code = complain(f"{error.words}{more}")
    except BrokenPipeError:
        raise
    except OSError as error:
        code = complain(local_fault(error))
    else:
        return code
    return 2 if options is not None and options.command == "diff" else code


def _dispatch(options: Namespace) -> int:
    """Run a command, over a connection if it needs one."""
    alone = _ALONE.get(options.command)
    if alone is not None and (code := alone(options)) is not None:
        return code
    # A trace ends with its connection: a new one would silently lack the events in between.
    is_trace = options.command == "trace"
    timeout = options.timeout
    if is_trace and timeout is not None:
        timeout += 1.0  # for which the daemon itself waits for an event
    reconnect = 0.0 if is_trace else PATIENCE
    named = getattr(options, "target", None) or (*getattr(options, "targets", ()), "")[0]
    asked = f"{options.command} {named}".rstrip()
    with connect(options.socket, asked, timeout=timeout, reconnect=reconnect) as client:
        try:
            return _COMMANDS[options.command](client, options) or 0
        except RemoteError as error:
            target: Target | None = getattr(options, "target", None)
            return report(client, target, error, export=getattr(options, "export", None))


# Each command imports only what it needs, since a shell may start vuserctl again and again. It
# returns the exit code; None is 0.


def _exports(client: Client, options: Namespace) -> None:
    from vuserd.ctl import show

    show.exports(client, as_json=options.json)


def _stat(client: Client, options: Namespace) -> int:
    from vuserd.ctl.looking.stat import stat

    return stat(client, options.targets, follow=options.follow, as_json=options.json)


def _ls(client: Client, options: Namespace) -> int:
    if not options.targets:
        return _ls_exports(client, options)
    from vuserd.ctl.looking.ls import How, ls

    how = How(**{name: getattr(options, name) for name in How._fields})
    return ls(client, options.targets, how, terminal=sys.stdout.isatty())


def _ls_exports(client: Client, options: Namespace) -> int:
    """List the exports, as operands of the next command."""
    if options.long or options.json:
        _exports(client, options)
        return 0
    for export in client.exports():
        emit(shown(f"{export.name}:"))
    return 0


def _tree(client: Client, options: Namespace) -> int:
    from vuserd.ctl.looking import tree

    show = tree.print_json if options.json else tree.draw
    return show(client, options.target, depth=options.depth)


def _find(client: Client, options: Namespace) -> int:
    from vuserd.ctl.looking import find

    try:
        tests = [
            *([] if options.name is None else [find.named(options.name)]),
            *([] if options.iname is None else [find.named(options.iname, any_case=True)]),
            *([] if options.type is None else [find.of_type(options.type)]),
            *([] if options.size is None else [find.of_size(options.size)]),
            *([] if options.newer is None else [find.newer_than(client, options.newer)]),
        ]
    except ValueError as error:
        options.usage.error(str(error))
    shape = {"depth": options.depth, "zero": options.zero, "as_json": options.json}
    return find.find(client, options.targets, tests, **shape)


def _du(client: Client, options: Namespace) -> int:
    from vuserd.ctl.looking.du import du

    shape = {"depth": options.depth, "human": options.human, "as_json": options.json}
    return du(client, options.targets, **shape)


def _cat(client: Client, options: Namespace) -> int:
    """Write one file after the other; a missing one does not hold back the others."""
    from vuserd.ctl.copying.get import cat

    return for_each(client, options.targets, lambda target: cat(client, target))


def _head(client: Client, options: Namespace) -> int:
    from vuserd.ctl.contents.parts import Part, head

    return head(client, options.targets, Part(options.lines, options.bytes))


def _tail(client: Client, options: Namespace) -> int:
    from vuserd.ctl.contents.parts import Part, follow, tail

    part = Part(options.lines, options.bytes)
    if options.follow:
        return follow(client, options.targets, part, options.interval)
    return tail(client, options.targets, part)


def _sha256sum(client: Client, options: Namespace) -> int:
    from vuserd.ctl.contents.checksums import check_sums, sha256sum

    if options.sums is None:
        return sha256sum(client, options.targets, as_json=options.json)
    return check_sums(client, options.sums, options.targets[0] if options.targets else None)


def _diff(client: Client, options: Namespace) -> int:
    from vuserd.ctl.contents.diff import diff

    return diff(client, options.target, options.local, as_json=options.json)


def _watch(client: Client, options: Namespace) -> None:
    from vuserd.ctl.contents.watching import watch

    how = {"interval": options.interval, "count": options.count, "as_json": options.json}
    watch(client, options.target, options.run, **how)


def _get(client: Client, options: Namespace) -> int:
    from vuserd.ctl.copying.get_all import get_all
    from vuserd.ctl.copying.how import How

    how = How(**{name: getattr(options, name) for name in How._fields})
    return get_all(client, options.targets, options.destination, how)


def _archive(client: Client, options: Namespace) -> int:
    from vuserd.ctl.copying.archive import archive

    return archive(client, options.target, options)


def _load(client: Client, options: Namespace) -> None:
    from vuserd.ctl.copying.load import load

    load(
        client,
        options.target,
        options.memory,
        options.address,
        offset=options.offset,
        length=options.length,
    )


def _reload(client: Client, options: Namespace) -> int:
    from vuserd.ctl import show

    return show.reload(client, options.export, as_json=options.json)


def _rigs(client: Client, options: Namespace) -> None:
    from vuserd.ctl import show

    show.rigs(client, as_json=options.json)


def _status(client: Client, options: Namespace) -> None:
    from vuserd.ctl import status

    status.show(client, as_json=options.json)


def _top(client: Client, options: Namespace) -> None:
    from vuserd.ctl.top import top

    top(client, interval=options.interval, count=options.count, as_json=options.json)


def _metrics(client: Client, _: Namespace) -> None:
    text = client.metrics()
    if not sys.stdout.isatty():
        sys.stdout.write(text)
        return
    for line in text.splitlines():
        emit(shown(line))


def _trace(client: Client, options: Namespace) -> None:
    from vuserd.ctl import trace

    trace.trace(
        client, options.export, count=options.count, write=options.write, as_json=options.json
    )


def _read_trace(options: Namespace) -> int | None:
    if options.read is None:
        return None
    from vuserd.ctl import trace

    trace.read(options.read, count=options.count, as_json=options.json)
    return 0


def _help(options: Namespace) -> int:
    parse([*([] if options.topic is None else [options.topic]), "--help"])
    return 0


def _completion(options: Namespace) -> int:
    from vuserd.ctl.completion import script

    sys.stdout.write(script(options.shell))
    return 0


_COMMANDS: Final[Mapping[str, Callable[[Client, Namespace], int | None]]] = {
    "exports": _exports,
    "ls": _ls,
    "tree": _tree,
    "stat": _stat,
    "find": _find,
    "du": _du,
    "cat": _cat,
    "get": _get,
    "archive": _archive,
    "head": _head,
    "tail": _tail,
    "sha256sum": _sha256sum,
    "diff": _diff,
    "watch": _watch,
    "load": _load,
    "reload": _reload,
    "rigs": _rigs,
    "status": _status,
    "top": _top,
    "metrics": _metrics,
    "trace": _trace,
}
#: Commands that may need no daemon; they return None if they need one after all.
_ALONE: Final[Mapping[str, Callable[[Namespace], int | None]]] = {
    "trace": _read_trace,
    "completion": _completion,
    "help": _help,
}
