"""The maps that results are on the wire: of attributes, entries, images and traced requests."""

from typing import Any, Final

from protocol.dirent import DirectoryEntry
from protocol.fuse import AttributeFlag, Attributes
from vuserd.delivery.images import Fetched
from vuserd.fs.filetype import type_name
from vuserd.fs.owners import Owners
from vuserd.tracing.event import Event
from vuserd.wire.codec import wire_name

_NANOSECONDS: Final = 1_000_000_000
_SUBMOUNT: Final = int(AttributeFlag.SUBMOUNT)


def stat_map(attributes: Attributes, owners: Owners | None = None) -> dict[str, Any]:
    """Return attributes as the RPC shows them: ``mode`` is a whole st_mode, times are in ns.

    ``owners`` is how the backend sees those of files; one that is not known is nil.
    """
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
        "atime_ns": _on_the_wire(attributes.atime * _NANOSECONDS + attributes.atime_nsec),
        "mtime_ns": _on_the_wire(attributes.mtime * _NANOSECONDS + attributes.mtime_nsec),
        "ctime_ns": _on_the_wire(attributes.ctime * _NANOSECONDS + attributes.ctime_nsec),
    }
    if attributes.flags & _SUBMOUNT:
        shown["submount"] = True
    return shown


def entry_map(
    entry: DirectoryEntry, key: str, name: bytes, owners: Owners | None
) -> dict[str, Any]:
    """Return an entry of a listing as the RPC shows it, its name or path under ``key``."""
    if entry.entry is None:
        return {key: wire_name(name), "type": type_name(entry.type << 12), "ino": entry.ino}
    return {key: wire_name(name), **stat_map(entry.entry.attributes, owners)}


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


def _on_the_wire(nanoseconds: int) -> int:
    """Return a time that MessagePack can say: of years far away, the farthest that fits."""
    return max(-(1 << 63), min(nanoseconds, (1 << 63) - 1))
