"""The methods of the daemon: how each call is written and its answer read.

Every function here gives a :class:`Call`; the clients only carry it there and back.
"""

import os
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from vuserd.client.image import Image
from vuserd.client.records import (
    ApiInfo,
    DirectoryPage,
    ExportInfo,
    FsStat,
    ImageInfo,
    RawPage,
    Stat,
    WalkPage,
    exports_from_wire,
    to_int,
    to_length,
    to_map,
    to_name,
    to_nothing,
)
from vuserd.rpc.codec import wire_name

T = TypeVar("T")

#: A path inside an export; relative ones begin at its root.
RemotePath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
#: What a payload can be received into.
WritableBuffer: TypeAlias = bytearray | memoryview

PAGE_ENTRIES = 1000


class Call(NamedTuple, Generic[T]):
    """One call: ``decode`` turns the result on the wire into the one for the user.

    With ``buffer`` the result on the wire is a bin of at most its size, which goes straight into
    it; ``decode`` is then given the number of bytes.

    With ``receives`` a descriptor comes with the result; ``decode`` is then given both, as a pair,
    and what it makes of them owns the descriptor.

    ``undo`` is given a result that nobody will take; it may give a call that undoes the rest of it
    in the daemon.
    """

    method: str
    params: list[Any]
    decode: Callable[[Any], T]
    buffer: memoryview | None = None
    sends: int | None = None  #: a descriptor to send beside the request, which stays the caller's
    receives: bool = False
    undo: "Callable[[T], Call[Any] | None] | None" = None


def _wire(name: RemotePath) -> str | bytes:
    return wire_name(os.fsencode(name))


def api_info() -> Call[ApiInfo]:
    """Ask for versions, methods and error names."""
    return Call("api_info", [], ApiInfo.from_wire)


def exports() -> Call[list[ExportInfo]]:
    """Ask for the exports and their state."""
    return Call("exports", [], exports_from_wire)


def stat(export: str, path: RemotePath, *, follow: bool = True) -> Call[Stat]:
    """Ask for a file's attributes; with ``follow`` those of what a symlink leads to."""
    return Call("stat", [_wire(export), _wire(path), {"follow": follow}], Stat.from_wire)


def readlink(export: str, path: RemotePath) -> Call[str]:
    """Ask for a symlink's target."""
    return Call("readlink", [_wire(export), _wire(path)], to_name)


def readdir(
    export: str,
    path: RemotePath,
    *,
    attrs: bool = False,
    limit: int = PAGE_ENTRIES,
    after: Any = None,
) -> Call[DirectoryPage]:
    """Ask for ``limit`` entries of a directory, after those that gave the token ``after``."""
    options = {"attrs": attrs, "limit": limit, "after": after}
    return Call("readdir", [_wire(export), _wire(path), options], DirectoryPage.from_wire)


def readdir_raw(export: str, path: RemotePath, *, attrs: bool, after: Any) -> Call[RawPage]:
    """Ask for one page of a directory, whose entries are made into records later."""
    options = {"attrs": attrs, "limit": PAGE_ENTRIES, "after": after}
    return Call("readdir", [_wire(export), _wire(path), options], RawPage.from_wire)


def walk(
    export: str,
    path: RemotePath,
    *,
    attrs: bool = False,
    limit: int = PAGE_ENTRIES,
    after: Any = None,
) -> Call[WalkPage]:
    """Ask for one page of the tree below a directory."""
    options = {"attrs": attrs, "limit": limit, "after": after}
    return Call("walk", [_wire(export), _wire(path), options], WalkPage.from_wire)


def read_into(export: str, path: RemotePath, offset: int, buffer: WritableBuffer) -> Call[int]:
    """Ask for as many bytes of a file, from ``offset`` on, as ``buffer`` holds."""
    view = memoryview(buffer).cast("B")
    if view.readonly:
        raise ValueError("the buffer to read into is read-only")
    return Call("read", [_wire(export), _wire(path), offset, len(view)], int, view)


def fetch(export: str, path: RemotePath) -> Call[Image]:
    """Ask for a sealed image of a file; whoever takes it closes it."""
    return Call(
        "fetch", [_wire(export), _wire(path)], _image_from_wire, receives=True, undo=Image.close
    )


def _image_from_wire(answer: tuple[object, int]) -> Image:
    described, descriptor = answer
    return Image(ImageInfo.from_wire(described), descriptor)


def attach(memfd: int, size: int) -> Call[int]:
    """Lend ``size`` bytes of a memfd to the daemon; give its id for them."""
    return Call("attach", [size], to_int, sends=memfd, undo=detach)


def load(
    memory: int,
    address: int,
    export: str,
    path: RemotePath,
    *,
    offset: int = 0,
    length: int | None = None,
) -> Call[int]:
    """Have a file's bytes written at ``address`` of attached memory; give how many they are."""
    options = {"offset": offset, "length": length}
    return Call("load", [memory, address, _wire(export), _wire(path), options], to_length)


def detach(memory: int) -> Call[None]:
    """Take attached memory back."""
    return Call("detach", [memory], to_nothing)


def statfs(export: str) -> Call[FsStat]:
    """Ask for the size and use of an export's file system."""
    return Call("statfs", [_wire(export)], FsStat.from_wire)


def reload(export: str) -> Call[None]:
    """Have an export's backend replaced."""
    return Call("reload", [_wire(export)], to_nothing)


def status() -> Call[dict[str, Any]]:
    """Ask for the daemon's own state."""
    return Call("status", [], to_map)
