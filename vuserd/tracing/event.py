"""The event that a trace shows: a FUSE request and its outcome."""

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

from protocol.fuse import Opcode, Request

#: Numbers and file names by the field names of ``linux/fuse.h``; for BATCH_FORGET a list of pairs
#: of node and lookup count.
Arguments: TypeAlias = Mapping[str, "int | bytes | list[tuple[int, int]]"]

#: The fields of request bodies that are worth showing. ``struct fuse_init_in``,
#: ``fuse_forget_in``, ``fuse_getattr_in``, ``fuse_open_in``, ``fuse_read_in``, ``fuse_release_in``
#: and ``fuse_interrupt_in`` begin with them.
_READ: Final = (struct.Struct("=QQI"), ("fh", "offset", "size"))
_OPEN: Final = (struct.Struct("=I"), ("flags",))
_RELEASE: Final = (struct.Struct("=QI"), ("fh", "flags"))
_LAYOUTS: Final[Mapping[Opcode, tuple[struct.Struct, tuple[str, ...]]]] = {
    Opcode.INIT: (
        struct.Struct("=IIIII"),
        ("major", "minor", "max_readahead", "flags", "flags2"),
    ),
    Opcode.GETATTR: (struct.Struct("=I4xQ"), ("getattr_flags", "fh")),
    Opcode.OPEN: _OPEN,
    Opcode.OPENDIR: _OPEN,
    Opcode.READ: _READ,
    Opcode.READDIR: _READ,
    Opcode.READDIRPLUS: _READ,
    Opcode.RELEASE: _RELEASE,
    Opcode.RELEASEDIR: _RELEASE,
    Opcode.INTERRUPT: (struct.Struct("=Q"), ("unique",)),
}
_FORGET_ONE: Final = struct.Struct("=QQ")
_BATCH_FORGET_HEAD: Final = 8

#: Outcomes that are not an errno.
OK: Final = "OK"
TIMEOUT: Final = "TIMEOUT"  #: the caller gave up waiting; a reply that comes late is another event
LOST: Final = "LOST"  #: the backend went away before it replied


class Event(NamedTuple):
    """One request that has ended or timed out."""

    unique: int  #: grows from request to request, in the order in which they are sent
    opcode: str
    node: int  #: 0 for a request that is about no node
    #: Of the node, from the export's root ``/``; without a leading slash where only its last part
    #: is known, None where nothing is known.
    path: bytes | None
    arguments: Arguments
    size: int  #: of the request, in bytes, including the header
    sent_ns: int  #: when it was put on the ring, in nanoseconds since 1970
    monotonic_ns: int  #: the same by CLOCK_MONOTONIC
    took_ns: int
    outcome: str  #: OK, the name of an errno, TIMEOUT or LOST
    length: int  #: of the reply's body, in bytes


def arguments(request: Request) -> Arguments:
    """Return the fields in the body of a request that the daemon sends."""
    if request.opcode is Opcode.LOOKUP:
        return {"name": request.body.rstrip(b"\0")}
    if request.opcode is Opcode.BATCH_FORGET:
        return {"forgets": [*_FORGET_ONE.iter_unpack(request.body[_BATCH_FORGET_HEAD:])]}
    layout = _LAYOUTS.get(request.opcode)
    if layout is None or len(request.body) < layout[0].size:
        return {}
    fields, names = layout
    return dict(zip(names, fields.unpack_from(request.body), strict=True))
