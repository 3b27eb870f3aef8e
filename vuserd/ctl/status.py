"""``vuserctl status``: lay out the daemon's state in tables, with whatever fields it has.

``top`` shows the same with rates, which are the fields ``requests_per_s`` and ``bytes_per_s``.
"""

import pwd
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from vuserd.client.sync_client import Client
from vuserd.ctl.output import binary_size, cell, complain, duration, emit, emit_json

_WIDTH: Final = 100
#: The characters that the last column keeps, however wide the others are.
_LEAST: Final = 16
#: What to say where the host's socket was reached from a namespace that is not its own.
_NOTES: Final = {
    "other": "no rig of the daemon's is in this network namespace: what you see is the host's",
    "rig": "a rig is in this network namespace, but its socket was not asked: what you see is the"
    " host's",
}


class _Column(NamedTuple):
    """A column of a table, with the function that makes a row's cell; None is an empty cell."""

    head: str
    value: Callable[[Mapping[str, Any]], object]
    number: bool = False  #: aligned to the right


def show(client: Client, *, as_json: bool) -> None:
    """Print the daemon's state."""
    found = client.status()
    if as_json:
        emit_json(found)
        return
    for line in lines(found):
        emit(line)
    note_namespace(found.get("origin"))


def reached(origin: Mapping[str, Any]) -> str:
    """Return the socket that answered, and its rig."""
    rig = origin.get("rig")
    return cell(origin.get("socket")) + ("" if rig is None else f" of rig {cell(rig)}")


def note_namespace(origin: object) -> None:
    """Say on standard error if the host's socket was reached from another namespace."""
    if isinstance(origin, Mapping) and origin.get("rig") is None:
        note = _NOTES.get(str(origin.get("namespace")))
        if note is not None:
            complain(note)


def lines(found: Mapping[str, Any], width: int = _WIDTH) -> list[str]:
    """Return the daemon's state as lines, of at most ``width`` characters where possible."""
    exports = _maps(found, "exports")
    sections = [
        _head(found),
        _table(_EXPORTS, exports, width) + _wrapped(map(_notes, exports), width),
        _with_reasons(_LISTENERS, _maps(found, "listeners"), "socket", width),
        rig_lines(_maps(found, "rigs"), width),
        _table(_CLIENTS, _maps(found, "clients"), width),
    ]
    laid_out: list[str] = []
    for section in filter(None, sections):
        laid_out += ["", *section] if laid_out else section
    return laid_out


def rig_lines(rigs: Iterable[Mapping[str, Any]], width: int = _WIDTH) -> list[str]:
    """Return a table of rigs as lines, with the problems below it."""
    return _with_reasons(_RIGS, list(rigs), "netns", width)


def _with_reasons(
    columns: Sequence[_Column], rows: Sequence[Mapping[str, Any]], key: str, width: int
) -> list[str]:
    """Return a table as lines, with the reasons of its rows below it; ``key`` names a row."""
    reasons = [f"{cell(row.get(key))}: {cell(row['reason'])}" for row in rows if row.get("reason")]
    return _table(columns, rows, width) + _wrapped(reasons, width)


def _head(found: Mapping[str, Any]) -> list[str]:
    origin = found.get("origin")
    facts = [
        ("reached by", reached(origin) if isinstance(origin, Mapping) else None),
        ("socket", None if _maps(found, "listeners") else found.get("socket")),
        ("connections", found.get("connections")),
        ("requests", _requests(found)),
        ("bytes read", _bytes_read(found)),
        ("images", _images(found.get("images"))),
    ]
    daemon = (
        f"vuserd {cell(found.get('version'))}, pid {cell(found.get('pid'))}, "
        f"up {duration(found.get('uptime_s'))}"
    )
    told = [f"{name:<11}  {cell(fact)}" for name, fact in facts if fact is not None]
    return [daemon, *told]


def _requests(found: Mapping[str, Any]) -> str | None:
    if found.get("requests") is None:
        return None
    errors = f", {cell(found['errors'])} refused or failed" if found.get("errors") else ""
    rate = _rate(found, "requests_per_s")
    return f"{cell(found['requests'])}{errors}" + (f"; {rate} a second" if rate else "")


def _bytes_read(found: Mapping[str, Any]) -> str | None:
    if found.get("bytes_read") is None:
        return None
    ways = [("bytes_of_images", "in images"), ("bytes_loaded", "into clients' memory")]
    more = [f"{binary_size(found[key])} {how}" for key, how in ways if found.get(key)]
    rate = _rate(found, "bytes_per_s", 1e-6)
    words = ", ".join([binary_size(found["bytes_read"]), *more])
    return words + (f"; {rate} MB/s" if rate else "")


def _images(images: object) -> str | None:
    if not isinstance(images, Mapping) or not any(images.values()):
        return None
    return (
        f"{cell(images.get('count'))} kept, {binary_size(images.get('bytes'))}; "
        f"{cell(images.get('hits'))} hits, {cell(images.get('misses'))} misses"
    )


def _notes(export: Mapping[str, Any]) -> str:
    """Return the reason of an export's state, and how it lost its backends."""
    told = []
    if export.get("reason"):
        told.append(cell(export["reason"]))
    loss = export.get("last_loss")
    if isinstance(loss, Mapping):
        when = f" at {_moment(loss['when'])}" if loss.get("when") else ""
        cause, reason = cell(loss.get("cause")), cell(loss.get("reason"))
        told.append(f"lost its backend{when} ({cause}): {reason}")
    causes = export.get("restarts_by_cause")
    if isinstance(causes, Mapping) and causes:
        counts = ", ".join(f"{cell(count)} {cell(cause)}" for cause, count in causes.items())
        told.append(f"restarts: {counts}")
    return f"{cell(export.get('name'))}: {'; '.join(told)}" if told else ""


def _wrapped(notes: Iterable[str], width: int) -> list[str]:
    return [line for note in notes for line in textwrap.wrap(note, width, subsequent_indent="    ")]


def _backend(export: Mapping[str, Any]) -> str | None:
    backend = export.get("backend")
    if not isinstance(backend, Mapping):
        return None if backend is None else cell(backend)
    parts = [backend.get("kind"), backend.get("version")]
    return " ".join(cell(part) for part in parts if part is not None)


def _of_backend(key: str) -> Callable[[Mapping[str, Any]], object]:
    def value(export: Mapping[str, Any]) -> object:
        backend = export.get("backend")
        return backend.get(key) if isinstance(backend, Mapping) else None

    return value


def _key(name: str) -> Callable[[Mapping[str, Any]], object]:
    return lambda row: row.get(name)


def _user(client: Mapping[str, Any]) -> object:
    uid = client.get("uid")
    try:
        return pwd.getpwuid(uid).pw_name if isinstance(uid, int) else uid
    except (KeyError, OverflowError):
        return uid


def _moment(seconds: object) -> str:
    """Return a time of day, with the date if that is not today's."""
    if not isinstance(seconds, int | float):
        return cell(seconds)
    try:
        then = time.localtime(seconds)
    except (OverflowError, ValueError, OSError):
        return cell(seconds)
    today = time.localtime()[:3] == then[:3]
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M", then)


def _rate(row: Mapping[str, Any], key: str, factor: float = 1.0) -> str | None:
    rate = row.get(key)
    return f"{rate * factor:,.1f}" if isinstance(rate, int | float) else None


def _sized(row: Mapping[str, Any]) -> str | None:
    return None if row.get("bytes_read") is None else binary_size(row["bytes_read"])


def _opener(row: Mapping[str, Any]) -> str:
    return "service manager" if row.get("activated") else "vuserd"


def _exports_of(rig: Mapping[str, Any]) -> str | None:
    exports = rig.get("exports")
    return " ".join(map(cell, exports)) if isinstance(exports, list) else None


_RATES: Final = (
    _Column("REQ/S", lambda row: _rate(row, "requests_per_s"), number=True),
    _Column("MB/S", lambda row: _rate(row, "bytes_per_s", 1e-6), number=True),
)
_EXPORTS: Final = (
    _Column("EXPORT", _key("name")),
    _Column("STATE", _key("state")),
    _Column("BACKEND", _backend),
    _Column("PID", _of_backend("pid"), number=True),
    _Column("GEN", _of_backend("generation"), number=True),
    _Column("RESTARTS", _key("restarts"), number=True),
    _Column("NODES", _key("nodes"), number=True),
    _Column("BUSY", _key("in_flight"), number=True),
    _Column("REQUESTS", _key("requests"), number=True),
    *_RATES,
    _Column("SOURCE", _key("source")),
)
_LISTENERS: Final = (
    _Column("SOCKET", _key("socket")),
    _Column("STATE", _key("state")),
    _Column("OPENED BY", _opener),
    _Column("CLIENTS", _key("clients"), number=True),
)
_RIGS: Final = (
    _Column("RIG", _key("netns")),
    _Column("STATE", _key("state")),
    _Column("SOCKET", _key("socket")),
    _Column("CLIENTS", _key("clients"), number=True),
    _Column("EXPORTS", _exports_of),
)
_CLIENTS: Final = (
    _Column("USER", _user),
    _Column("PID", _key("pid"), number=True),
    _Column("REQUESTS", _key("requests"), number=True),
    _Column("BUSY", _key("in_flight"), number=True),
    *_RATES,
    _Column("READ", _sized, number=True),
    _Column("SINCE", lambda row: None if row.get("since") is None else _moment(row["since"])),
    _Column("COMMAND", _key("command")),
)


def _table(columns: Sequence[_Column], rows: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """Return a table as lines; an empty column is left out, and the last one is cut to fit."""
    if not rows:
        return []
    filled = []
    for column in columns:
        values = [column.value(row) for row in rows]
        if any(value is not None for value in values):
            cells = [column.head, *map(cell, values)]
            room = max(map(len, cells))
            pad = str.rjust if column.number else str.ljust
            filled.append([pad(text, room) for text in cells])
    if filled:
        before = sum(len(cells[0]) + 2 for cells in filled[:-1])
        room = max(width - before, _LEAST)
        filled[-1] = [_cut(text.rstrip(), room) for text in filled[-1]]
    return ["  ".join(row).rstrip() for row in zip(*filled, strict=True)]


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 3] + "..."


def _maps(found: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    listed = found.get(key)
    return [row for row in listed if isinstance(row, Mapping)] if isinstance(listed, list) else []
