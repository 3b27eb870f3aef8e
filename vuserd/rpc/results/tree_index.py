"""The index of a tree's page as it goes over the wire: a list for each field."""

import operator
import stat
import struct
from typing import Any, Final

from protocol.dirent_columns import AttributeColumns
from protocol.fuse import ATTRIBUTES_SIZE
from vuserd.delivery.pages import TreePage
from vuserd.fs.filetype import NAMES_BY_TYPE
from vuserd.fs.owners import Owners
from vuserd.fs.tree.found import Found
from vuserd.rpc.results.maps import stat_columns, wire_names
from vuserd.wire.codec import encode_values, wire_name

#: What stands where nothing is known of an entry: of no type that there is.
_NOTHING: Final = bytes(ATTRIBUTES_SIZE)
_TARGET: Final = operator.attrgetter("target")
_PLACE: Final = operator.attrgetter("place")
_LENGTH: Final = operator.attrgetter("length")
_ERROR: Final = operator.attrgetter("error")
#: What names a file that has several names: its mount, and its inode number there.
_LINK: Final = struct.Struct(">IQ")
#: Before the index: how many bytes it has.
_HEAD: Final = struct.Struct(">I")


def encode_index(
    page: TreePage, owners: Owners | None, following: bytes | None, *, split_times: bool = False
) -> bytes:
    """Return what stands before the bytes of a page's files: the index, after its length.

    Args:
        page: the page.
        owners: how the backend sees those of files; one that is not known is nil.
        following: the token of the next page.
        split_times: whether times are in seconds and nanoseconds.

    """
    index = encode_values(
        [
            {
                "entries": _columns(page.found, owners, split_times=split_times),
                "problems": [
                    {"path": wire_name(path), **error.to_wire()} for path, error in page.problems
                ],
                "next": following,
            }
        ]
    )
    return _HEAD.pack(len(index)) + index


def _columns(
    found: list[Found], owners: Owners | None, *, split_times: bool
) -> dict[str, list[Any]]:
    if not found:
        return {}
    attributes = AttributeColumns([each.attributes or _NOTHING for each in found])
    columns: dict[str, list[Any]] = {
        "path": wire_names([each.branch.above + each.name for each in found]),
        "type": [NAMES_BY_TYPE[each.mode >> 12 & 15] for each in found],
        "ino": attributes.column("ino"),
        "submount": [False] * len(found),
    }
    columns.update(stat_columns(attributes, owners, split_times=split_times))
    columns["target"] = targets = [*map(_TARGET, found)]
    if targets.count(None) < len(targets):
        columns["target"] = [None if target is None else wire_name(target) for target in targets]
    columns["link"] = _links(found, columns["nlink"], columns["ino"])
    columns["offset"] = [*map(_PLACE, found)]
    columns["length"] = [*map(_LENGTH, found)]
    columns["error"] = errors = [*map(_ERROR, found)]
    if any(errors):
        columns["error"] = [None if error is None else str(error.code) for error in errors]
    return columns


def _links(found: list[Found], counts: list[int], inos: list[int]) -> list[bytes | None]:
    """Return what all names of a file have in common; None where it has one, or is not known."""
    links: list[bytes | None] = [None] * len(found)
    if max(counts) <= 1:
        return links
    for place, count in enumerate(counts):
        each = found[place]
        # A directory's links are its own "." and its directories' "..".
        if count > 1 and each.mount is not None and not stat.S_ISDIR(each.mode):
            links[place] = _LINK.pack(each.mount, inos[place])
    return links
