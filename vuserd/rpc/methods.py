"""The methods of the RPC: from checked parameters to file operations, and back to the wire."""

import errno
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

from protocol.dirent import DirectoryEntry
from protocol.fuse import AttributeFlag, Attributes
from vuserd import __version__
from vuserd.delivery.images import Fetched, ImageStore
from vuserd.delivery.inline import FileContent, read_inline
from vuserd.errors import CallError, ErrorCode
from vuserd.fs.export import Export
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.filetype import type_name
from vuserd.fs.walk import TreeWalk
from vuserd.rpc.caller import Caller
from vuserd.rpc.codec import wire_name
from vuserd.rpc.signature import FLAG, PATH, TEXT, TOKEN, Method, Option, integer, optional

#: Goes up with each addition; a client that needs level N works with every daemon of N or more...
API_LEVEL: Final = 1
#: ... that is compatible with N: the oldest level whose clients this daemon still serves.
API_COMPATIBLE: Final = 1

#: The most bytes that one read gives.
READ_MAX: Final = 8 << 20
#: The most entries of one page.
PAGE_MAX: Final = 10_000
_ENTRY_BYTES: Final = 512

_NANOSECONDS: Final = 1_000_000_000
_SUBMOUNT: Final = int(AttributeFlag.SUBMOUNT)
#: Where a directory goes on: its inode number, and the backend's offset.
_TOKEN: Final = struct.Struct(">QQ")


class Methods:
    """All methods over a set of exports.

    Args:
        exports: by name.
        images: where ``fetch`` gets them.
        status: what ``status`` returns.

    """

    def __init__(
        self,
        exports: Mapping[str, Export],
        images: ImageStore,
        status: Callable[[], dict[str, Any]],
    ) -> None:
        self._exports = exports
        self._images = images
        self._status = status
        of_file = {"export": TEXT, "path": PATH}
        table = (
            Method("api_info", self.api_info, {}, {}, "map"),
            Method("exports", self.exports, {}, {}, "array of map"),
            Method("stat", self.stat, of_file, {"follow": Option(FLAG, default=True)}, "map"),
            Method("readlink", self.readlink, of_file, {}, "str or bin"),
            Method(
                "readdir",
                self.readdir,
                of_file,
                {
                    "attrs": Option(FLAG, default=False),
                    "limit": Option(integer(1, PAGE_MAX), 1000),
                    "after": Option(TOKEN, None),
                },
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
                },
                "map of entries, problems, next",
                weight=_listing_weight,
            ),
            Method(
                "read",
                self.read,
                of_file | {"offset": integer(), "length": integer()},
                {},
                "bin",
                weight=lambda arguments, _: min(arguments[-1], READ_MAX),
            ),
            Method("statfs", self.statfs, {"export": TEXT}, {}, "map"),
            Method("fetch", self.fetch, of_file, {}, "map, and a descriptor"),
            Method("attach", self.attach, {"size": integer(1)}, {}, "int", descriptor=True),
            Method(
                "load",
                self.load,
                {"memory": integer(), "address": integer()} | of_file,
                {
                    "offset": Option(integer(), 0),
                    "length": Option(optional(integer()), None),
                },
                "map of length",
            ),
            Method("detach", self.detach, {"memory": integer()}, {}, "nil"),
            Method("reload", self.reload, {"export": TEXT}, {}, "nil"),
            Method("status", self.status, {}, {}, "map"),
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

    def _export(self, name: str) -> Export:
        found = self._exports.get(name)
        if found is None:
            raise CallError(ErrorCode.UNKNOWN_EXPORT, f"there is no export {name!r}")
        return found

    async def api_info(self, _: Caller) -> dict[str, Any]:
        """Tell what this daemon can do."""
        return {
            "version": __version__,
            "api_level": API_LEVEL,
            "api_compatible": API_COMPATIBLE,
            "methods": [method.describe() for method in self.table.values()],
            "errors": [*ErrorCode, *errno.errorcode.values()],
        }

    async def exports(self, _: Caller) -> list[dict[str, Any]]:
        """Tell which exports there are and how they are."""
        return [export.describe() for export in self._exports.values()]

    async def stat(self, _: Caller, export: str, path: bytes, *, follow: bool) -> dict[str, Any]:
        """Return a file's attributes."""
        found = self._export(export)
        return stat_map(await found.call(lambda files: files.stat(path, follow=follow)))

    async def readlink(self, _: Caller, export: str, path: bytes) -> str | bytes:
        """Return a symlink's target."""
        return wire_name(await self._export(export).call(lambda files: files.readlink(path)))

    async def readdir(
        self,
        _: Caller,
        export: str,
        path: bytes,
        *,
        attrs: bool,
        limit: int,
        after: bytes | None,
    ) -> dict[str, Any]:
        """Return a page of a directory."""
        if after is not None and len(after) != _TOKEN.size:
            raise CallError(ErrorCode.BAD_REQUEST, "readdir after: not a token of this daemon's")
        begin = None if after is None else _TOKEN.unpack(after)
        page = await self._export(export).call(
            lambda files: files.readdir(path, attributes=attrs, limit=limit, after=begin)
        )
        following = None if page.next is None else _TOKEN.pack(page.ino, page.next)
        entries = [_entry_map(entry, "name", entry.name) for entry in page.entries]
        return {"entries": entries, "next": following}

    async def walk(
        self,
        caller: Caller,
        export: str,
        path: bytes,
        *,
        attrs: bool,
        limit: int,
        after: bytes | None,
    ) -> dict[str, Any]:
        """Return a page of the tree below a directory; the walk stays this connection's."""
        found = self._export(export)
        begun = (export, path)
        if after is None:
            walk = TreeWalk(path, attributes=attrs)
        else:
            walk = caller.walks.take(after, begun)
        try:
            entries, problems = await found.call(lambda files: walk.next_page(files, limit))
        except BaseException:
            walk.close()
            raise
        return {
            "entries": [_entry_map(entry, "path", inside) for inside, entry in entries],
            "problems": [
                {"path": wire_name(problem.path), **problem.error.to_wire()} for problem in problems
            ],
            "next": None if walk.finished else caller.walks.keep(walk, begun),
        }

    async def read(
        self, _: Caller, export: str, path: bytes, offset: int, length: int
    ) -> FileContent:
        """Return bytes of a regular file; the receiver gives their buffers back."""
        if length > READ_MAX:
            raise CallError(
                ErrorCode.TOO_LARGE, f"read gives {READ_MAX} bytes at most", limit=READ_MAX
            )
        return await self._export(export).call(
            lambda files: read_inline(files, path, offset, length)
        )

    async def statfs(self, _: Caller, export: str) -> dict[str, Any]:
        """Return the statistics of the export's file system."""
        return (await self._export(export).call(FileSystem.statfs))._asdict()

    async def fetch(self, _: Caller, export: str, path: bytes) -> Fetched:
        """Return a sealed image of a file; the receiver gives it back."""
        return await self._images.fetch(self._export(export), path)

    async def attach(self, caller: Caller, size: int, *, descriptor: int) -> int:
        """Take a client's memory; return the id to load files into it."""
        return caller.memories.attach(descriptor, size)

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
    ) -> dict[str, Any]:
        """Put a file's bytes into attached memory."""
        attached = caller.memories.find(memory)
        loaded = await self._export(export).call(
            lambda files: attached.load(files, path, address, offset, length)
        )
        return {"length": loaded}

    async def detach(self, caller: Caller, memory: int) -> None:
        """Let go of attached memory, once loads into it have ended."""
        await caller.memories.detach(memory)

    async def reload(self, _: Caller, export: str) -> None:
        """Replace an export's backend; calls in progress end on the old one."""
        await self._export(export).replace()

    async def status(self, _: Caller) -> dict[str, Any]:
        """Return how the daemon does."""
        return self._status()


def _listing_weight(_: list[Any], options: dict[str, Any]) -> int:
    """Count what an entry takes at most, nearly: all attributes and the longest name."""
    weight: int = options["limit"] * _ENTRY_BYTES
    return weight


def fetched_map(fetched: Fetched) -> dict[str, Any]:
    """Return what the RPC says of an image, beside its descriptor."""
    version = fetched.image.version
    return {
        "size": fetched.image.size,
        "mtime_ns": version.mtime_ns,
        "ino": version.ino,
        "cached": fetched.cached,
    }


def stat_map(attributes: Attributes) -> dict[str, Any]:
    """Return attributes as the RPC shows them: ``mode`` is a whole st_mode, times are in ns."""
    shown = {
        "type": type_name(attributes.mode),
        "mode": attributes.mode,
        "size": attributes.size,
        "ino": attributes.ino,
        "nlink": attributes.nlink,
        "uid": attributes.uid,
        "gid": attributes.gid,
        "rdev": attributes.rdev,
        "blocks": attributes.blocks,
        "blksize": attributes.blksize,
        "atime_ns": attributes.atime * _NANOSECONDS + attributes.atime_nsec,
        "mtime_ns": attributes.mtime * _NANOSECONDS + attributes.mtime_nsec,
        "ctime_ns": attributes.ctime * _NANOSECONDS + attributes.ctime_nsec,
    }
    if attributes.flags & _SUBMOUNT:
        shown["submount"] = True
    return shown


def _entry_map(entry: DirectoryEntry, key: str, name: bytes) -> dict[str, Any]:
    if entry.entry is None:
        return {key: wire_name(name), "type": type_name(entry.type << 12), "ino": entry.ino}
    return {key: wire_name(name), **stat_map(entry.entry.attributes)}
