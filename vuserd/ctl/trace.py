"""``vuserctl trace``: print requests as they happen, write captures of them, and print captures.

A capture is a file of JSON Lines: a header, then one event on each line.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from vuserd import __version__
from vuserd.client.errors import BadReply, ClientError
from vuserd.client.sync_client import Client
from vuserd.client.trace import TraceEvent, TracePage
from vuserd.ctl.output import complain, emit, named, printable

_FORMAT = "vuserd-trace"
_VERSION = 1
#: Seconds without a call after which the daemon ends a trace; the next call begins another.
_KEPT = 60.0
_IN_HEXADECIMAL = ("flags", "flags2", "getattr_flags")
_HEAD = (
    f"{'TIME':15}  {'UNIQUE':>8}  {'USEC':>10}  {'OPCODE':12}  {'NODE':>6}  {'RESULT':13}  REQUEST"
)


class BadCapture(ClientError):  # noqa: N818 - reads as the sentence it is
    """A file is not a capture of a trace."""


def trace(
    client: Client, export: str, *, count: int | None, write: str | None, as_json: bool
) -> None:
    """Print the requests of an export as they happen, or write them to a file; ``count`` of them.

    Without a count it goes on until it is interrupted. The trace has begun once the first line is
    there: the heading, or the header of the file.
    """
    first = client.trace_page(export, wait=0.0)
    events = itertools.islice(_events(client, export, first, _flusher(write)), count)
    if write is None:
        _print(events, as_json=as_json)
    else:
        _write(events, export, write)


def read(name: str, *, count: int | None, as_json: bool) -> None:
    """Print the requests of a capture as ``trace`` would have printed them."""
    with named(name), open(name, encoding="ascii", errors="surrogateescape") as file:
        _check_header(_parsed(file.readline(), name, 1), name)
        _print(itertools.islice(_captured(file, name), count), as_json=as_json)


def line(event: TraceEvent) -> str:
    """Return an event as one line, whatever bytes its names have."""
    seconds, fraction = divmod(event.sent_ns, 1_000_000_000)
    clock = f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{fraction // 1000:06}"
    result = f"OK {event.length}" if event.outcome == "OK" else _name(event.outcome)
    where = [] if event.path is None else [_name(event.path)]
    given = [f"{_name(key)}={_shown(key, value)}" for key, value in event.arguments.items()]
    request = " ".join([*where, *given])
    return (
        f"{clock:15}  {event.unique:>8}  {event.took_ns / 1000:>10.1f}  {_name(event.opcode):12}"
        f"  {event.node:>6}  {result:13}  {request}"
    ).rstrip()


def _shown(key: str, value: Any) -> str:
    if isinstance(value, str):
        return _name(value)
    if isinstance(value, list):
        return ",".join(f"{node}:{lookups}" for node, lookups in value)
    return f"{value:#x}" if key in _IN_HEXADECIMAL else str(value)


def _name(name: str) -> str:
    return printable(name).replace(" ", "\\ ")


def _events(
    client: Client, export: str, page: TracePage, flush: Callable[[], None]
) -> Iterator[TraceEvent]:
    """Yield events for ever; call ``flush`` after those of each page."""
    asked = time.monotonic()
    while True:
        yield from page.events
        flush()
        before, asked = asked, time.monotonic()
        if asked - before > _KEPT:  # this process was stopped, or nobody read what it printed
            complain(
                f"{export}: nothing was read for {asked - before:.0f} s: requests may lack here"
            )
        page = client.trace_page(export)


def _flusher(write: str | None) -> Callable[[], None]:
    return sys.stdout.flush if write is None else lambda: None


def _print(events: Iterable[TraceEvent], *, as_json: bool) -> None:
    if not as_json:
        emit(_HEAD)
    for event in events:
        if as_json:
            emit(json.dumps(event.to_json()))
            continue
        if event.lost:
            emit(f"-- {event.lost} lost: they were not read in time")
        emit(line(event))


def _write(events: Iterable[TraceEvent], export: str, name: str) -> None:
    written = 0
    with named(name), open(name, "w", encoding="ascii", buffering=1) as file:
        header = {"format": _FORMAT, "version": _VERSION, "vuserd": __version__, "export": export}
        file.write(json.dumps(header) + "\n")
        try:
            for event in events:
                file.write(json.dumps(event.to_json()) + "\n")
                written += 1
        finally:
            sys.stderr.write(f"vuserctl: {written} requests in {printable(name)}\n")


def _check_header(header: object, name: str) -> None:
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise BadCapture(f"{name}: not a capture of vuserctl trace")
    if header.get("version") != _VERSION:
        raise BadCapture(f"{name}: a capture of another version: {header.get('version')}")


def _captured(file: TextIO, name: str) -> Iterator[TraceEvent]:
    """Yield the events of a capture; the last line is left out if the file was cut off in it."""
    for number, text in enumerate(file, 2):
        if not text.endswith("\n"):
            return
        try:
            yield TraceEvent.from_json(_parsed(text, name, number))
        except BadReply as error:
            raise BadCapture(f"{name}:{number}: {error}") from None


def _parsed(text: str, name: str, number: int) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadCapture(f"{name}:{number}: not a line of JSON") from None
