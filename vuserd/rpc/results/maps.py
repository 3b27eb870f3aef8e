"""The maps that results are on the wire: of attributes, entries, images and traced requests."""

from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

from protocol.dirent_columns import AttributeColumns, DirectoryColumns
from protocol.fuse import AttributeFlag, Attributes
from vuserd.delivery.images import Fetched
from vuserd.fs.filetype import NAMES_BY_TYPE, type_name
from vuserd.fs.owners import Owners
from vuserd.tracing.event import Event
from vuserd.wire.codec import wire_name

_NANOSECONDS: Final = 1_000_000_000
_SUBMOUNT: Final = int(AttributeFlag.SUBMOUNT)
_TIMES: Final = ("atime", "mtime", "ctime")
#: Fields of an entry without attributes: name or path, type, inode number.
_BARE: Final = 3

#: A field of a listing's entries, and its values in the entries' order.
Field: TypeAlias = tuple[str, list[Any]]


def stat_map(attributes: Attributes, owners: Owners | None = None) -> dict[str, Any]:
    """Return attributes as the RPC shows them: ``mode`` is a whole st_mode, times are in ns.

    ``owners`` is how the backend sees those of files; one that is not known is nil.
    """
    atime, mtime, ctime = _times_on_the_wire(
        [
            attributes.atime * _NANOSECONDS + attributes.atime_nsec,
            attributes.mtime * _NANOSECONDS + attributes.mtime_nsec,
            attributes.ctime * _NANOSECONDS + attributes.ctime_nsec,
        ]
    )
    shown = {
        "type": type_name(attributes.mode),
        "mode": attributes.mode,
        "size": attributes.size,
        "ino": attributes.ino,
        "nlink": attributes.nlink,
        "uid": attributes.uid if owners is None else owners.users.to_host(attributes.uid),
        "gid": attributes.gid if owners is None else owners.groups.to_host(attributes.gid),
        "rdev": attributes.rdev,
        "blocks": attributes.blocks,
        "blksize": attributes.blksize,
        "atime_ns": atime,
        "mtime_ns": mtime,
        "ctime_ns": ctime,
    }
    if attributes.flags & _SUBMOUNT:
        shown["submount"] = True
    return shown


def split_stat_map(attributes: Attributes, owners: Owners | None = None) -> dict[str, Any]:
    """Return the same with each time as two fields, in seconds and nanoseconds.

    ``mtime_ns`` of today is above 2**53: a client whose numbers are doubles would lose its end.
    """
    shown = stat_map(attributes, owners)
    for field in _TIMES:
        del shown[f"{field}_ns"]
        shown[field] = getattr(attributes, field)
        shown[f"{field}_nsec"] = getattr(attributes, f"{field}_nsec")
    return shown


def entry_columns(
    entries: DirectoryColumns,
    key: str,
    owners: Owners | None,
    begin: int,
    end: int,
    *,
    attributes: bool,
    split_times: bool,
) -> Iterator[Field]:
    """Yield what the RPC shows of the entries from one place to before another, a list a field.

    Their names or paths are the field ``key``, as bytes.

    With ``attributes`` the fields are those of :func:`stat_map`, or of :func:`split_stat_map`, all
    of them nil for an entry whose attributes could not be read.
    """
    entries = entries.part(begin, end)
    yield key, entries.names
    yield "type", _type_names(entries.types)
    yield "ino", entries.inos
    if not attributes:
        return
    absent: list[int] = []
    if 0 in entries.nodes:
        absent = [place for place, node in enumerate(entries.nodes) if not node]
    columns = AttributeColumns(entries.attributes)
    for field, column in stat_columns(columns, owners, split_times=split_times):
        for place in absent:
            column[place] = None
        yield field, column


def stat_columns(
    attributes: AttributeColumns, owners: Owners | None, *, split_times: bool = False
) -> Iterator[Field]:
    """Yield what :func:`stat_map` has, but type and inode number, a list a field.

    With ``split_times`` the times are those of :func:`split_stat_map`.
    """
    for field in ("mode", "size", "nlink"):
        yield field, attributes.column(field)
    for field, ids in (("uid", owners and owners.users), ("gid", owners and owners.groups)):
        column = attributes.column(field)
        yield field, column if ids is None else ids.all_to_host(column)
    for field in ("rdev", "blocks", "blksize"):
        yield field, attributes.column(field)
    for field in _TIMES:
        seconds, nanoseconds = attributes.column(field), attributes.column(field + "_nsec")
        if split_times:
            yield field, seconds
            yield field + "_nsec", nanoseconds
        else:
            times = zip(seconds, nanoseconds, strict=True)
            yield field + "_ns", _times_on_the_wire([s * _NANOSECONDS + ns for s, ns in times])
    flags = attributes.column("flags")
    if any(flags):
        yield "submount", [bool(each & _SUBMOUNT) for each in flags]


def entry_maps(fields: Sequence[Field]) -> Iterator[dict[str, Any]]:
    """Yield a map an entry, of the columns of :func:`entry_columns`."""
    names, (paths, *columns) = zip(*fields, strict=True)
    for row in zip(wire_names(paths), *columns, strict=True):
        shown = dict(zip(names, row, strict=True))
        if len(names) > _BARE:
            if shown["mode"] is None:
                shown = dict(zip(names[:_BARE], row, strict=False))
            elif not shown.get("submount", True):
                del shown["submount"]
        yield shown


def _type_names(types: list[int]) -> list[str]:
    """Return the RPC's names for types, most often for one that all entries have."""
    if types and types.count(types[0]) == len(types):
        return [NAMES_BY_TYPE[types[0]]] * len(types)
    return [*map(NAMES_BY_TYPE.__getitem__, types)]


def wire_names(names: list[bytes]) -> list[Any]:
    """Return names as they go over the wire: most often all of them are UTF-8."""
    try:
        return b"\0".join(names).decode().split("\0") if names else []
    except UnicodeDecodeError:
        return [wire_name(name) for name in names]


def fetched_map(fetched: Fetched) -> dict[str, Any]:
    """Return what the RPC says of an image, beside its descriptor."""
    version = fetched.image.version
    return {
        "size": fetched.image.size,
        "mtime_ns": _on_the_wire(version.mtime_ns),
        "ino": version.ino,
        "cached": fetched.cached,
    }


def event_map(event: Event) -> dict[str, Any]:
    """Return an event as the RPC shows it."""
    shown = event._asdict()
    if event.path is not None:
        shown["path"] = wire_name(event.path)
    shown["arguments"] = {
        name: wire_name(value) if isinstance(value, bytes) else value
        for name, value in event.arguments.items()
    }
    return shown


def _times_on_the_wire(times: list[int]) -> list[int]:
    if times and min(times) >= -(1 << 63) and max(times) < 1 << 63:
        return times
    return [*map(_on_the_wire, times)]


def _on_the_wire(nanoseconds: int) -> int:
    """Return a time that MessagePack can say: of years far away, the farthest that fits."""
    return max(-(1 << 63), min(nanoseconds, (1 << 63) - 1))
