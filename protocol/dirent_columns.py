"""The same replies to READDIR and READDIRPLUS in columns: a list a field, for listings in bulk.

The loop only cuts records; names are checked all at once, and attributes stay bytes until somebody
wants a field of all of them. The rules are those of :mod:`protocol.dirent`.
"""

import struct
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Any, Final, NamedTuple, Self

from protocol import Check, MalformedError
from protocol.dirent import DIRENT_SIZE
from protocol.fuse import (
    ATTRIBUTES_SIZE,
    ENTRY_SIZE,
    NAME_MAX,
    Attributes,
    NodeId,
    decode_attributes_at,
)

#: All but the offset, of which only a reply's last one says anything.
_DIRENT = struct.Struct("=Q8xII")
#: Of the entry before it the node and its attributes, as bytes.
_DIRENT_PLUS = struct.Struct(f"=Q32x{ATTRIBUTES_SIZE}sQ8xII")
#: The offset, and the length of the name.
_PLACE = struct.Struct("=8xQI4x")
_PLUS_SIZE: Final = ENTRY_SIZE + DIRENT_SIZE
_DOTS: Final = frozenset({b".", b".."})
_LONGER: Final = 3  #: bytes
#: Bytes of a name with the zeros behind it, by its length.
_ROOMS: Final = tuple(length + 7 & -8 for length in range(NAME_MAX + 1))

#: Where each field of ``struct fuse_attr`` begins, in units of its format, and how many it has.
_VIEWS: Final = {
    field: (code, at, ATTRIBUTES_SIZE // struct.calcsize(code))
    for code, first, fields in (
        ("Q", 0, ("ino", "size", "blocks")),
        ("q", 3, ("atime", "mtime", "ctime")),
        ("I", 12, Attributes._fields[6:]),
    )
    for at, field in enumerate(fields, first)
}


class DirectoryColumns(NamedTuple):
    """The entries of a directory: of each column, the values at one place belong together.

    ``inos`` and ``types`` are what :class:`protocol.dirent.DirectoryEntry` has.
    ``nodes`` and ``attributes`` are empty after READDIR. READDIRPLUS brought one lookup count of
    each node to give back; where a node is 0 there is none, and its attributes mean nothing.
    """

    names: list[bytes]
    inos: list[int]
    types: list[int]
    nodes: list[NodeId]
    attributes: list[bytes]  #: each a ``struct fuse_attr``

    @classmethod
    def empty(cls) -> Self:
        """Return columns without entries."""
        return cls([], [], [], [], [])

    def extend(self, others: "DirectoryColumns") -> None:
        """Add the entries of others, which have the same columns, behind these."""
        each: Iterable[tuple[list[Any], list[Any]]] = zip(self, others, strict=True)
        for column, other in each:
            column += other

    def part(self, begin: int, end: int) -> "DirectoryColumns":
        """Return the entries from place ``begin`` to before ``end``."""
        columns: Iterable[list[Any]] = self
        return DirectoryColumns(*(column[begin:end] for column in columns))

    def chosen(self, choice: Sequence[bool]) -> "DirectoryColumns":
        """Return the entries for which ``choice`` is true."""
        columns: Iterable[list[Any]] = self
        return DirectoryColumns(*(list(compress(column, choice)) for column in columns))

    def without_nodes(self) -> "DirectoryColumns":
        """Return entries of READDIR as READDIRPLUS has those whose lookup failed."""
        count = len(self.names)
        return self._replace(nodes=[NodeId(0)] * count, attributes=[bytes(ATTRIBUTES_SIZE)] * count)

    def node_attributes(self, place: int) -> Attributes:
        """Return the attributes of one entry's node."""
        return decode_attributes_at(self.attributes[place], 0)


class AttributeColumns:
    """The attributes of many nodes, a list a field; what they mean :class:`Attributes` says."""

    def __init__(self, attributes: Iterable[bytes]) -> None:
        joined = memoryview(b"".join(attributes))
        self._views = {"Q": joined.cast("Q"), "q": joined.cast("q"), "I": joined.cast("I")}

    def column(self, field: str) -> list[int]:
        """Return a field of :class:`Attributes`, of all of them in order."""
        code, first, step = _VIEWS[field]
        values: list[int] = self._views[code][first::step].tolist()
        return values


def decode_directory_columns(buffer: bytes, *, plus: bool) -> tuple[DirectoryColumns, int | None]:
    """Decode a whole reply to READDIR, or to READDIRPLUS with ``plus``.

    Returns:
        The entries but "." and "..", and the offset to go on from: None at the directory's end.

    Raises:
        MalformedError: as :func:`protocol.dirent.decode_directory`.

    """
    columns = DirectoryColumns.empty()
    (_cut_plus if plus else _cut)(buffer, columns)
    _require_possible(columns.names)
    return columns, last_offset(buffer, plus=plus)


def decode_directories(buffers: Sequence[bytes]) -> tuple[DirectoryColumns, list[int], list[int]]:
    """Decode replies to READDIRPLUS of several directories, each from its beginning, all at once.

    Returns:
        The entries of all, as :func:`decode_directory_columns` has them; before which place those
        of each end; and the offset to go on from in each: 0 where there was nothing.

    Raises:
        MalformedError: as that.

    """
    columns = DirectoryColumns.empty()
    ends: list[int] = []
    for buffer in buffers:
        _cut_plus(buffer, columns)
        ends.append(len(columns.names))
    _require_possible(columns.names)
    return columns, ends, [last_offset(buffer, plus=True) or 0 for buffer in buffers]


def last_offset(buffer: bytes, *, plus: bool) -> int | None:
    """Return where a reply to READDIR or READDIRPLUS goes on, without a look at all of it.

    It is the last record's offset: that one has its length where only a name of such a length would
    end with the reply, as no name has a NUL. Of a reply that :func:`decode_directory_columns`
    refuses it may be any; of an empty one, and of some of those, it is None.
    """
    end = len(buffer)
    head = DIRENT_SIZE + (ENTRY_SIZE if plus else 0)
    for room in range(8, min(_ROOMS[-1], end - head) + 1, 8):
        start = end - room - DIRENT_SIZE
        offset, length = _PLACE.unpack_from(buffer, start)
        if room - 8 < length <= room:
            return int(offset)
    return None


def offset_after(buffer: bytes, count: int, *, plus: bool) -> int:
    """Return where the directory goes on after the first ``count`` entries of a reply, 1 or more.

    It was decoded, and has as many: "." and ".." are none.
    """
    head = _PLUS_SIZE if plus else DIRENT_SIZE
    offset = position = 0
    while count:
        start = position + head
        offset, length = _PLACE.unpack_from(buffer, start - DIRENT_SIZE)
        position = start + _ROOMS[length]
        count -= buffer[start : start + length] not in _DOTS
    return offset


def _require_possible(names: list[bytes]) -> None:
    """Refuse names of which one has a slash or a NUL.

    Raises:
        MalformedError: one is.

    """
    joined = b"".join(names)
    if b"/" in joined or b"\0" in joined:
        wrong = next(name for name in names if b"/" in name or b"\0" in name)
        raise MalformedError(f"a name that no directory can hold: {wrong!r}", Check.DIRECTORY)


def _cut(buffer: bytes, columns: DirectoryColumns) -> None:
    """Cut the records of a reply to READDIR."""
    add_name, add_ino = columns.names.append, columns.inos.append
    add_type = columns.types.append
    unpack, head, rooms = _DIRENT.unpack_from, DIRENT_SIZE, _ROOMS
    position, end = 0, len(buffer)
    try:
        while position < end:
            ino, length, kind = unpack(buffer, position)
            start = position + head
            position = start + rooms[length]
            name = buffer[start : start + length]
            if length < _LONGER and _is_dot(name, length):
                continue
            add_name(name)
            add_ino(ino)
            add_type(kind)
    except IndexError:
        raise _length_error(length) from None
    except struct.error:
        raise _short_error(end - position) from None
    if position != end:
        raise _end_error()


def _cut_plus(buffer: bytes, columns: DirectoryColumns) -> None:
    """Cut the records of a reply to READDIRPLUS."""
    add_name, add_ino = columns.names.append, columns.inos.append
    add_type = columns.types.append
    add_node, add_attributes = columns.nodes.append, columns.attributes.append
    unpack, head, rooms = _DIRENT_PLUS.unpack_from, _PLUS_SIZE, _ROOMS
    position, end = 0, len(buffer)
    try:
        while position < end:
            node, attributes, ino, length, kind = unpack(buffer, position)
            start = position + head
            position = start + rooms[length]
            name = buffer[start : start + length]
            if length < _LONGER and _is_dot(name, length):
                if node:
                    raise MalformedError(f"a node for {name.decode()!r}", Check.DIRECTORY)
                continue
            add_name(name)
            add_ino(ino)
            add_type(kind)
            add_node(node)
            add_attributes(attributes)
    except IndexError:
        raise _length_error(length) from None
    except struct.error:
        raise _short_error(end - position) from None
    if position != end:
        raise _end_error()


def _is_dot(name: bytes, length: int) -> bool:
    """Return whether a short name is "." or "..", which are no entries; refuse an empty one."""
    if not length:
        raise _length_error(length)
    return name in _DOTS


def _short_error(left: int) -> MalformedError:
    return MalformedError(f"{left} bytes left where a directory entry belongs", Check.DIRECTORY)


def _length_error(length: int) -> MalformedError:
    return MalformedError(f"a name of {length} bytes", Check.DIRECTORY)


def _end_error() -> MalformedError:
    return MalformedError("a directory entry that leaves its buffer", Check.DIRECTORY)
