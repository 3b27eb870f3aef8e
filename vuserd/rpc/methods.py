"""The methods of the RPC: from checked parameters to file operations, and back to the wire."""

import errno
import functools
from collections.abc import Mapping
from typing import Any, Final, Protocol, TypeVar

from protocol.dirent import DirectoryEntry
from protocol.fuse import AttributeFlag, Attributes
from vuserd import __version__
from vuserd.delivery.attached import Loaded
from vuserd.delivery.images import Fetched, ImageStore
from vuserd.delivery.inline import FileContent, read_inline, read_open
from vuserd.errors import BackendError, CallError, ErrorCode, FileError
from vuserd.exports.export import Export
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.filetype import type_name
from vuserd.fs.heldfile import HeldFile
from vuserd.fs.listings import ContinuationTable
from vuserd.fs.listings import Listing as DirectoryListing
from vuserd.fs.openfile import OpenFile
from vuserd.fs.owners import Owners
from vuserd.fs.walk import TreeWalk
from vuserd.rpc.access import RefusalLog, Rights
from vuserd.rpc.caller import Caller
from vuserd.rpc.listing import Listing, pack_listing
from vuserd.rpc.signature import (
    FLAG,
    PATH,
    TEXT,
    TIMEOUT,
    TOKEN,
    Method,
    Option,
    integer,
    optional,
    seconds,
)
from vuserd.tasks.gather import gather
from vuserd.tracing.event import Event
from vuserd.tracing.trace import CAPACITY
from vuserd.wire.codec import wire_name

#: Goes up with each addition; a client that needs level N works with every daemon of N or more...
API_LEVEL: Final = 2
#: ... that is compatible with N: the oldest level whose clients this daemon still serves.
API_COMPATIBLE: Final = 1

#: The most bytes that one read gives.
READ_MAX: Final = 8 << 20
#: The most entries of one page.
PAGE_MAX: Final = 10_000
_ENTRY_BYTES: Final = 512
#: What a status may have, about: it names clients.
_STATUS_BYTES: Final = 256 << 10
#: The most seconds that ``trace`` waits for something to happen.
TRACE_WAIT_MAX: Final = 10.0
#: The most seconds that a client may give a call.
TIMEOUT_MAX: Final = 86_400.0

_NANOSECONDS: Final = 1_000_000_000
_SUBMOUNT: Final = int(AttributeFlag.SUBMOUNT)
#: The most extents that are told at once.
EXTENTS_MAX: Final = 1000


class Manager(Protocol):
    """What the methods ask of the daemon itself."""

    def status(self, rights: Rights) -> dict[str, Any]:
        """Tell how the daemon does."""

    def rigs(self, rights: Rights) -> list[dict[str, Any]]:
        """Tell which rigs there are."""

    async def metrics(self) -> str:
        """Return all metrics as Prometheus reads them."""

    async def reload(self) -> list[str]:
        """Read the configuration again and apply what differs; tell what was done.

        Raises:
            VuserdError: it is wrong, and nothing was done; or a part of it cannot be had.

        """

    async def reload_export(self, name: str) -> list[str]:
        """Replace an export's backend.

        Raises:
            VuserdError: it cannot be had; the old one, if there is one, goes on.

        """


class Methods:
    """All methods over a set of exports.

    Args:
        exports: by name.
        images: where ``fetch`` gets them.
        manager: the daemon itself, for what concerns all of it.

    """

    def __init__(self, exports: Mapping[str, Export], images: ImageStore, manager: Manager) -> None:
        self._exports = exports
        self._images = images
        self._manager = manager
        self.refusals = RefusalLog()
        of_file = {"export": TEXT, "path": PATH}
        timed = {TIMEOUT: Option(optional(seconds(TIMEOUT_MAX)), None)}
        opened = {"file": Option(optional(integer()), None)}
        table = (
            Method("api_info", self.api_info, {}, {}, "map"),
            Method("exports", self.exports, {}, {}, "array of map"),
            Method(
                "stat",
                self.stat,
                of_file,
                {"follow": Option(FLAG, default=True)} | opened | timed,
                "map",
            ),
            Method("readlink", self.readlink, of_file, timed, "str or bin"),
            Method(
                "readdir",
                self.readdir,
                of_file,
                {
                    "attrs": Option(FLAG, default=False),
                    "limit": Option(integer(1, PAGE_MAX), 1000),
                    "after": Option(TOKEN, None),
                }
                | timed,
                "map of entries, next",
                weight=_listing_weight,
            ),
            Method(
                "walk",
                self.walk,
                of_file,
                {
                    "attrs": Option(FLAG, default=False),
                    "limit": Option(integer(1, PAGE_MAX), 1000),
                    "after": Option(TOKEN, None),
                }
                | timed,
                "map of entries, problems, next",
                weight=_listing_weight,
            ),
            Method(
                "read",
                self.read,
                of_file | {"offset": integer(), "length": integer()},
                opened | timed,
                "bin",
                weight=lambda arguments, _: min(arguments[-1], READ_MAX),
            ),
            Method("statfs", self.statfs, {"export": TEXT}, timed, "map"),
            Method("fetch", self.fetch, of_file, timed, "map, and a descriptor"),
            Method("attach", self.attach, {"size": integer(1)}, {}, "int", descriptor=True),
            Method(
                "load",
                self.load,
                {"memory": integer(), "address": integer()} | of_file,
                {
                    "offset": Option(integer(), 0),
                    "length": Option(optional(integer()), None),
                }
                | opened
                | timed,
                "map of length",
            ),
            Method("open", self.open, of_file, timed, "map", since=2),
            Method("close", self.close, {"file": integer()}, {}, "nil", since=2),
            Method(
                "extents",
                self.extents,
                of_file | {"file": integer(), "offset": integer()},
                {"limit": Option(integer(1, EXTENTS_MAX), EXTENTS_MAX)} | timed,
                "map of extents, next",
                since=2,
            ),
            Method("detach", self.detach, {"memory": integer()}, {}, "nil"),
            Method(
                "reload", self.reload, {"export": optional(TEXT)}, {}, "array of str", manages=True
            ),
            Method("rigs", self.rigs, {}, {}, "array of map"),
            Method("status", self.status, {}, {}, "map", weight=lambda _, __: _STATUS_BYTES),
            Method("metrics", self.metrics, {}, {}, "str", manages=True),
            Method(
                "trace",
                self.trace,
                {"export": TEXT},
                {
                    "limit": Option(integer(1, CAPACITY), 1000),
                    "wait": Option(seconds(TRACE_WAIT_MAX), 1.0),
                    "end": Option(FLAG, default=False),
                },
                "map of events, lost",
                weight=_listing_weight,
                manages=True,
            ),
        )
        self.table: Mapping[str, Method] = {method.name: method for method in table}

    def find(self, name: str) -> Method:
        """Return the method of this name.

        Raises:
            CallError: UNKNOWN_METHOD.

        """
        method = self.table.get(name)
        if method is None:
            raise CallError(
                ErrorCode.UNKNOWN_METHOD, f"there is no method {name!r}; api_info lists them"
            )
        return method

    def _export(self, caller: Caller, name: str) -> Export:
        """Return the export of this name, unless the caller may not know of it."""
        found = self._exports.get(name)
        if found is None or not caller.rights.sees(name, found.config.access):
            if found is not None:
                self.refusals.note(caller.rights.peer, f"export {name}")
            raise CallError(ErrorCode.UNKNOWN_EXPORT, f"there is no export {name!r}")
        return found

    async def _look(self) -> None:
        """Look where the exports' paths lead to: one may be gone, and nobody have asked since."""
        await gather([export.look for export in self._exports.values()])

    async def api_info(self, _: Caller) -> dict[str, Any]:
        """Tell what this daemon can do."""
        return {
            "version": __version__,
            "api_level": API_LEVEL,
            "api_compatible": API_COMPATIBLE,
            "methods": [method.describe() for method in self.table.values()],
            "errors": [*ErrorCode, *errno.errorcode.values()],
        }

    async def exports(self, caller: Caller) -> list[dict[str, Any]]:
        """Tell which exports there are for this client, and how they are."""
        await self._look()
        async with caller.one_at_a_time():
            return [
                export.describe()
                for export in self._exports.values()
                if caller.rights.sees(export.config.name, export.config.access)
            ]

    async def stat(
        self, caller: Caller, export: str, path: bytes, *, follow: bool, file: int | None
    ) -> dict[str, Any]:
        """Return the attributes of what is at a path, or of an open file."""
        found = self._export(caller, export)
        if file is not None:
            held = caller.files.find(file, export)
            attributes = await found.call(lambda files: held.use(files, OpenFile.look_again))
        else:
            attributes = await found.call(lambda files: files.stat(path, follow=follow))
        return stat_map(attributes, found.owners)

    async def open(self, caller: Caller, export: str, path: bytes) -> dict[str, Any]:
        """Open a regular file for several calls, which are all about what it is now."""
        found = self._export(caller, export)
        caller.files.require_room()

        async def opened(files: FileSystem) -> HeldFile:
            return HeldFile(path, await files.open(path), files)

        held = await found.call(opened)
        return stat_map(held.attributes, found.owners) | {
            "file": caller.files.add(held, export),
            "settled": held.settled,
            "by_attributes": held.is_known_by_attributes,
        }

    async def close(self, caller: Caller, file: int) -> None:
        """Close an open file."""
        caller.files.close_one(file)

    async def extents(
        self, caller: Caller, export: str, _: bytes, file: int, offset: int, *, limit: int
    ) -> dict[str, Any]:
        """Return where an open file has data, and no hole."""
        held = caller.files.find(file, export)

        async def ask(opened: OpenFile) -> dict[str, Any]:
            extents, following = await opened.extents(offset, limit)
            return {"extents": [[*extent] for extent in extents], "next": following}

        return await self._export(caller, export).call(lambda files: held.use(files, ask))

    async def readlink(self, caller: Caller, export: str, path: bytes) -> str | bytes:
        """Return a symlink's target."""
        return wire_name(
            await self._export(caller, export).call(lambda files: files.readlink(path))
        )

    async def readdir(
        self,
        caller: Caller,
        export: str,
        path: bytes,
        *,
        attrs: bool,
        limit: int,
        after: bytes | None,
    ) -> Listing:
        """Return a page of a directory; a listing that goes on stays this connection's."""
        found = self._export(caller, export)
        begun = (export, path, attrs)
        if after is None:
            listing = DirectoryListing(path, attributes=attrs)
        else:
            listing = caller.listings.take(after, begun)
        try:
            entries = await found.call(lambda files: listing.next_page(files, limit))
        except BaseException as error:
            if after is not None and isinstance(error, BackendError | FileError):
                caller.listings.keep(listing, begun, after)  # it can be asked again
            else:
                caller.listings.end(listing)
            raise
        return await pack_listing(
            caller,
            entries,
            lambda entry: _entry_map(entry, "name", entry.name, found.owners),
            next=_next_token(caller.listings, listing, begun),
        )

    async def walk(
        self,
        caller: Caller,
        export: str,
        path: bytes,
        *,
        attrs: bool,
        limit: int,
        after: bytes | None,
    ) -> Listing:
        """Return a page of the tree below a directory; the walk stays this connection's."""
        found = self._export(caller, export)
        begun = (export, path)
        if after is None:
            walk = TreeWalk(path, attributes=attrs)
        else:
            walk = caller.walks.take(after, begun)
        try:
            entries, problems = await found.call(lambda files: walk.next_page(files, limit))
        except BaseException:
            caller.walks.end(walk)
            raise
        return await pack_listing(
            caller,
            entries,
            lambda each: _entry_map(each.entry, "path", each.path, found.owners),
            problems=[
                {"path": wire_name(problem.path), **problem.error.to_wire()} for problem in problems
            ],
            next=_next_token(caller.walks, walk, begun),
        )

    async def read(
        self,
        caller: Caller,
        export: str,
        path: bytes,
        offset: int,
        length: int,
        *,
        file: int | None,
    ) -> FileContent:
        """Return bytes of a regular file; the receiver gives their buffers back."""
        if length > READ_MAX:
            raise CallError(
                ErrorCode.TOO_LARGE, f"read gives {READ_MAX} bytes at most", limit=READ_MAX
            )
        found = self._export(caller, export)
        if file is None:
            return await found.call(lambda files: read_inline(files, path, offset, length))
        held = caller.files.find(file, export)
        read = functools.partial(read_open, offset=offset, length=length)
        return await found.call(lambda files: held.use(files, read))

    async def statfs(self, caller: Caller, export: str) -> dict[str, Any]:
        """Return the statistics of the export's file system."""
        return (await self._export(caller, export).call(FileSystem.statfs))._asdict()

    async def fetch(self, caller: Caller, export: str, path: bytes) -> Fetched:
        """Return a sealed image of a file; the receiver gives it back."""
        return await self._images.fetch(self._export(caller, export), path)

    async def attach(self, caller: Caller, size: int, *, descriptor: int) -> int:
        """Take a client's memory; return the id to load files into it."""
        return await caller.memories.attach(descriptor, size)

    async def load(
        self,
        caller: Caller,
        memory: int,
        address: int,
        export: str,
        path: bytes,
        *,
        offset: int,
        length: int | None,
        file: int | None,
    ) -> Loaded:
        """Put a file's bytes into attached memory."""
        attached = caller.memories.find(memory)
        found = self._export(caller, export)
        if file is None:
            return Loaded(
                await found.call(lambda files: attached.load(files, path, address, offset, length))
            )
        held = caller.files.find(file, export)
        load = functools.partial(attached.load_open, address=address, offset=offset, length=length)
        return Loaded(await found.call(lambda files: held.use(files, load)))

    async def detach(self, caller: Caller, memory: int) -> None:
        """Let go of attached memory, once loads into it have ended."""
        await caller.memories.detach(memory)

    async def reload(self, caller: Caller, export: str | None) -> list[str]:
        """Replace an export's backend, or read the configuration again; tell what was done."""
        if export is None:
            return await self._manager.reload()
        self._export(caller, export)
        return await self._manager.reload_export(export)

    async def rigs(self, caller: Caller) -> list[dict[str, Any]]:
        """Tell which rigs there are, as far as this client may know."""
        return self._manager.rigs(caller.rights)

    async def status(self, caller: Caller) -> dict[str, Any]:
        """Return how the daemon does, as far as this client may know."""
        await self._look()  # for all who ask at the same time, who go on at the same time
        async with caller.one_at_a_time():
            return self._manager.status(caller.rights)

    async def metrics(self, _: Caller) -> str:
        """Return all metrics as Prometheus reads them."""
        return await self._manager.metrics()

    async def trace(
        self, caller: Caller, export: str, *, limit: int, wait: float, end: bool
    ) -> dict[str, Any]:
        """Return the FUSE requests of an export that ended since the last time.

        The first time begins the trace. It ends with ``end``, with the connection, or when nobody
        asks for a minute.
        """
        trace = caller.traces.find(export, self._export(caller, export).tracing)
        if end:
            caller.traces.end(export)
        events, lost = await trace.take(limit, wait)
        return {"events": [event_map(event) for event in events], "lost": lost}


def _listing_weight(_: list[Any], options: dict[str, Any]) -> int:
    """Count what an entry takes at most, nearly: all attributes and the longest name."""
    weight: int = options["limit"] * _ENTRY_BYTES
    return weight


def fetched_map(fetched: Fetched) -> dict[str, Any]:
    """Return what the RPC says of an image, beside its descriptor."""
    version = fetched.image.version
    return {
        "size": fetched.image.size,
        "mtime_ns": _on_the_wire(version.mtime_ns),
        "ino": version.ino,
        "cached": fetched.cached,
    }


def _on_the_wire(nanoseconds: int) -> int:
    """Return a time that MessagePack can say: of years far away, the farthest that fits."""
    return max(-(1 << 63), min(nanoseconds, (1 << 63) - 1))


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


_Paged = TypeVar("_Paged", DirectoryListing, TreeWalk)


def _next_token(
    table: ContinuationTable[_Paged], paged: _Paged, begun: tuple[object, ...]
) -> bytes | None:
    """Keep what goes on and return its token; end what is finished."""
    if paged.finished:
        table.end(paged)
        return None
    return table.keep(paged, begun)


def _entry_map(
    entry: DirectoryEntry, key: str, name: bytes, owners: Owners | None
) -> dict[str, Any]:
    if entry.entry is None:
        return {key: wire_name(name), "type": type_name(entry.type << 12), "ino": entry.ino}
    return {key: wire_name(name), **stat_map(entry.entry.attributes, owners)}
