"""The methods of the daemon: how each call is written and its answer read.

Every function here returns a :class:`Call`; the clients only carry it there and back.
"""

import os
from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from vuserd.client.descriptors import require_image
from vuserd.client.image import Image
from vuserd.client.listing.columns import directory_page, walk_page
from vuserd.client.records import (
    ApiInfo,
    DirectoryPage,
    ExportInfo,
    ExtentsPage,
    FsStat,
    ImageInfo,
    OpenedFile,
    PageToken,
    RigInfo,
    Stat,
    Status,
    WalkPage,
    exports_from_wire,
    rigs_from_wire,
    status_from_wire,
    to_int,
    to_length,
    to_lines,
    to_name,
    to_nothing,
)
from vuserd.client.trace import PAGE_EVENTS, TracePage
from vuserd.wire.codec import wire_name

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

    ``undo`` is given a result that no caller takes; it may return a call that undoes the rest of it
    in the daemon.

    What a connection carries, and what ends with it, are attached memory, open files, and listings
    and walks that go on: ``holds`` returns what of this comes with a result, if anything, and
    ``needs`` is what the call is about. Such a call is of no use on another connection.
    """

    method: str
    params: list[Any]
    decode: Callable[[Any], T]
    buffer: memoryview | None = None
    #: A descriptor to send beside the request. It stays the caller's, open until the answer.
    sends: int | None = None
    receives: bool = False
    undo: "Callable[[T], Call[Any] | None] | None" = None
    holds: Callable[[T], Hashable] | None = None
    needs: Hashable = None
    ends: bool = False  #: once this is sent, what it needs is not held any more
    #: Where in the parameters an export and a path are, for errors to name.
    path_at: int | None = None

    @property
    def filename(self) -> str | None:
        """The file that it is about, as ``EXPORT:PATH``."""
        if self.path_at is None:
            return None
        export, path = self.params[self.path_at : self.path_at + 2]
        return f"{to_name(export)}:{to_name(path)}"


def filename_of(export: str, path: RemotePath) -> str:
    """Return the name of a file in errors: ``EXPORT:PATH``."""
    return f"{export}:{os.fsdecode(path)}"


def within(seconds: float, call: Call[T]) -> Call[T]:
    """Return a call that asks a backend for ``seconds``, and then fails with TIMEOUT.

    ``client.call(within(0.5, stat("kernels", "Image")))``, with any client. Each answer of the
    backend still has the time that the export's configuration gives it.
    """
    *params, last = call.params
    options = {"timeout": seconds}
    if isinstance(last, dict):
        return call._replace(params=[*params, last | options])
    return call._replace(params=[*call.params, options])


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
    return Call("stat", [_wire(export), _wire(path), {"follow": follow}], Stat.from_wire, path_at=0)


def readlink(export: str, path: RemotePath) -> Call[str]:
    """Ask for a symlink's target."""
    return Call("readlink", [_wire(export), _wire(path)], to_name, path_at=0)


def readdir(
    export: str,
    path: RemotePath,
    *,
    attrs: bool = False,
    limit: int = PAGE_ENTRIES,
    after: PageToken | None = None,
    columns: bool = False,
) -> Call[DirectoryPage]:
    """Ask for ``limit`` entries of a directory, after those that gave the token ``after``.

    With ``columns``, which a daemon has from API level 3 on, they come faster.
    """
    options = _page_options(attrs=attrs, limit=limit, after=after, columns=columns)
    return Call(
        "readdir",
        [_wire(export), _wire(path), options],
        directory_page,
        needs=listing_going_on(after),
        path_at=0,
    )


def _page_options(
    *, attrs: bool, limit: int, after: PageToken | None, columns: bool
) -> dict[str, Any]:
    options = {"attrs": attrs, "limit": limit, "after": after}
    return options | {"columns": True} if columns else options


def listing_going_on(token: PageToken | None) -> Hashable:
    """Return what a page needs of its connection: the listing that the token is of."""
    return None if token is None else ("listing", token)


def walk(
    export: str,
    path: RemotePath,
    *,
    attrs: bool = False,
    limit: int = PAGE_ENTRIES,
    after: PageToken | None = None,
    columns: bool = False,
) -> Call[WalkPage]:
    """Ask for one page of the tree below a directory; ``columns`` as :func:`readdir` has them."""
    options = _page_options(attrs=attrs, limit=limit, after=after, columns=columns)
    return Call(
        "walk",
        [_wire(export), _wire(path), options],
        walk_page,
        holds=lambda page: walk_going_on(page.next),
        needs=walk_going_on(after),
        ends=True,
        path_at=0,
    )


def walk_going_on(token: PageToken | None) -> Hashable:
    """Return what a connection carries of a walk, as ``holds`` and ``needs`` of a call."""
    return None if token is None else ("walk", token)


class Going(Protocol):
    """A page that may have another one after it."""

    @property
    def next(self) -> PageToken | None:
        """The token that asks for that."""


Page = TypeVar("Page", bound=Going)


def tree(
    export: str,
    path: RemotePath,
    buffer: WritableBuffer,
    decode: Callable[[memoryview], Page],
    **options: Any,
) -> Call[Page]:
    """Ask for one page of the tree below a directory, with the bytes of its small files.

    It is received into ``buffer``, of 128 KiB to 8 MiB, and ``decode`` makes a page of what has
    come: :meth:`vuserd.client.files.tree_page.TreePage.from_wire`. With ``after`` it is the next
    one; without ``look_again``, from API level 4 on, the caller looks at the files afterwards.
    """
    view = memoryview(buffer).cast("B")
    return Call(
        "tree",
        [_wire(export), _wire(path), {"size": len(view), "after": None, **options}],
        lambda count: decode(view[:count]),
        view,
        holds=lambda page: tree_going_on(page.next),
        needs=tree_going_on(options.get("after")),
        ends=True,
        path_at=0,
    )


def tree_going_on(token: PageToken | None) -> Hashable:
    """Return what a connection carries of a tree, as ``holds`` and ``needs`` of a call."""
    return None if token is None else ("tree", token)


def read_into(
    export: str,
    path: RemotePath,
    offset: int,
    buffer: WritableBuffer,
    *,
    file: int | None = None,
) -> Call[int]:
    """Ask for as many bytes of a file, from ``offset`` on, as ``buffer`` holds.

    With ``file`` they are those of an open file, of whatever version.
    """
    view = memoryview(buffer).cast("B")
    if view.readonly:
        raise ValueError("the buffer to read into is read-only")
    params = [_wire(export), _wire(path), offset, len(view)]
    if file is None:
        return Call("read", params, int, view, path_at=0)
    return Call("read", [*params, {"file": file}], int, view, needs=_file(file), path_at=0)


def open_file(export: str, path: RemotePath) -> Call[OpenedFile]:
    """Open a regular file in the daemon, for :func:`close_file` to close."""
    return Call(
        "open",
        [_wire(export), _wire(path)],
        OpenedFile.from_wire,
        undo=lambda opened: close_file(opened.file),
        holds=lambda opened: _file(opened.file),
        path_at=0,
    )


def open_for_transfer(export: str, path: RemotePath) -> Call[OpenedFile]:
    """Do the same for who can open it anew: other calls need not fail with the connection."""
    return open_file(export, path)._replace(holds=None)


def close_file(file: int) -> Call[None]:
    """Close an open file."""
    return Call("close", [file], to_nothing, needs=_file(file), ends=True)


def stat_open(export: str, path: RemotePath, file: int) -> Call[Stat]:
    """Ask for the attributes that an open file has now."""
    params = [_wire(export), _wire(path), {"file": file}]
    return Call("stat", params, Stat.from_wire, needs=_file(file), path_at=0)


def extents(export: str, path: RemotePath, file: int, *, offset: int) -> Call[ExtentsPage]:
    """Ask where an open file has data, from ``offset`` on."""
    params = [_wire(export), _wire(path), file, offset]
    return Call("extents", params, ExtentsPage.from_wire, needs=_file(file), path_at=0)


def _file(file: int) -> Hashable:
    return ("file", file)


def fetch(export: str, path: RemotePath) -> Call[Image]:
    """Ask for a sealed image of a file, for the caller to close."""
    return Call(
        "fetch",
        [_wire(export), _wire(path)],
        _image_from_wire,
        receives=True,
        undo=Image.close,
        path_at=0,
    )


def _image_from_wire(answer: tuple[object, int]) -> Image:
    described, descriptor = answer
    info = ImageInfo.from_wire(described)
    require_image(descriptor, info.size)
    return Image(info, descriptor)


def attach(memfd: int, size: int) -> Call[int]:
    """Lend ``size`` bytes of a memfd to the daemon; give its id for them."""
    return Call("attach", [size], to_int, sends=memfd, undo=detach, holds=_memory)


def attach_for_transfer(memfd: int, size: int, file: int) -> Call[int]:
    """Do the same for the transfer of an open file, which goes on without it on another connection.

    It is of no use but on the one where the file is open.
    """
    return attach(memfd, size)._replace(holds=None, needs=_file(file))


def _memory(identifier: int) -> Hashable:
    return ("memory", identifier)


def load(
    memory: int,
    address: int,
    export: str,
    path: RemotePath,
    *,
    offset: int = 0,
    length: int | None = None,
    file: int | None = None,
) -> Call[int]:
    """Load a file's bytes to ``address`` of attached memory; the result is their number."""
    options = {"offset": offset, "length": length}
    if file is not None:
        options["file"] = file
    params = [memory, address, _wire(export), _wire(path), options]
    return Call("load", params, to_length, needs=_memory(memory), path_at=2)


def detach(memory: int) -> Call[None]:
    """Take attached memory back."""
    return Call("detach", [memory], to_nothing, needs=_memory(memory), ends=True)


def statfs(export: str) -> Call[FsStat]:
    """Ask for the size and use of an export's file system."""
    return Call("statfs", [_wire(export)], FsStat.from_wire)


def reload(export: str | None = None) -> Call[list[str]]:
    """Replace an export's backend, or let the daemon read the configuration again."""
    return Call("reload", [None if export is None else _wire(export)], to_lines)


def rigs() -> Call[list[RigInfo]]:
    """Ask for the rigs and their state."""
    return Call("rigs", [], rigs_from_wire)


def trace(
    export: str, *, limit: int = PAGE_EVENTS, wait: float = 1.0, end: bool = False
) -> Call[TracePage]:
    """Ask for the FUSE requests of an export that ended since the last time; the first begins it.

    The daemon waits ``wait`` seconds for one where there is none.
    """
    options = {"limit": limit, "wait": wait, "end": end}
    return Call("trace", [_wire(export), options], TracePage.from_wire)


def metrics() -> Call[str]:
    """Ask for the daemon's metrics."""
    return Call("metrics", [], to_name)


def status() -> Call[Status]:
    """Ask for the daemon's own state."""
    return Call("status", [], status_from_wire)
