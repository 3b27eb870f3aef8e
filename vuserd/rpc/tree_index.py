"""The index of a tree's page as it goes over the wire: a list for each field."""

import stat
import struct
from typing import Any, Final

from protocol.fuse import AttributeFlag, Attributes
from vuserd.delivery.pages import TreePage
from vuserd.errors import VuserdError
from vuserd.fs.filetype import type_name
from vuserd.fs.owners import IdMap, Owners
from vuserd.fs.tree import Found
from vuserd.wire.codec import encode_values, wire_name

_NANOSECONDS: Final = 1_000_000_000
_LAST: Final = (1 << 63) - 1
_SUBMOUNT: Final = int(AttributeFlag.SUBMOUNT)
#: What stands where nothing is known of an entry: of no type that there is.
_NOTHING: Final = Attributes._make([0] * len(Attributes._fields))
#: What names a file that has several names: its mount, and its inode number there.
_LINK: Final = struct.Struct(">IQ")
#: Before the index: how many bytes it has.
_HEAD: Final = struct.Struct(">I")


def encode_index(page: TreePage, owners: Owners | None, following: bytes | None) -> bytes:
    """Return what stands before the bytes of a page's files: the index, after its length.

    Args:
        page: the page.
        owners: how the backend sees those of files; one that is not known is nil.
        following: the token of the next page.

    """
    index = encode_values(
        [
            {
                "entries": _columns(page.found, owners),
                "problems": [
                    {"path": wire_name(path), **error.to_wire()} for path, error in page.problems
                ],
                "next": following,
            }
        ]
    )
    return _HEAD.pack(len(index)) + index


def _columns(found: list[Found], owners: Owners | None) -> dict[str, list[Any]]:
    if not found:
        return {}
    known = [each.attributes or _NOTHING for each in found]
    fields = Attributes._make(map(list, zip(*known, strict=True)))
    columns: dict[str, Any] = fields._asdict()
    for name in ("atime", "mtime", "ctime"):
        columns[name + "_ns"] = _times(columns.pop(name), columns.pop(name + "_nsec"))
    if owners is not None:
        columns["uid"] = _host_ids(columns["uid"], owners.users)
        columns["gid"] = _host_ids(columns["gid"], owners.groups)
    columns["submount"] = [bool(flags & _SUBMOUNT) for flags in columns.pop("flags")]
    columns["type"] = list(map(type_name, columns["mode"]))
    columns["path"] = [wire_name(each.path) for each in found]
    columns["target"] = [None if (t := each.target) is None else wire_name(t) for each in found]
    columns["link"] = list(map(_link, found))
    columns["offset"] = [each.place for each in found]
    columns["length"] = [each.length for each in found]
    columns["error"] = [None if (e := each.error) is None else _code(e) for each in found]
    return columns


def _times(seconds: list[int], nanoseconds: list[int]) -> list[int]:
    """Return times that MessagePack can say: of years far away, the farthest that fits."""
    times = [s * _NANOSECONDS + n for s, n in zip(seconds, nanoseconds, strict=True)]
    if min(times) >= -_LAST and max(times) <= _LAST:
        return times
    return [max(-_LAST - 1, min(time, _LAST)) for time in times]


def _host_ids(numbers: list[int], ids: IdMap) -> list[int | None]:
    host = {number: ids.to_host(number) for number in set(numbers)}
    return [host[number] for number in numbers]


def _link(found: Found) -> bytes | None:
    """Return what all names of a file have in common; None where it has one, or is not known."""
    attributes = found.attributes
    if attributes is None or attributes.nlink < 2 or found.mount is None:
        return None
    if stat.S_ISDIR(attributes.mode):  # its links are its own and its directories' "." and ".."
        return None
    return _LINK.pack(found.mount, attributes.ino)


def _code(error: VuserdError) -> str:
    return str(error.code)
