"""The methods about files: from checked parameters to what the export that serves now does."""

import functools
from typing import Any, Final

from vuserd.delivery.attached import Loaded
from vuserd.delivery.images import Fetched, ImageStore
from vuserd.delivery.inline import READ_MAX, FileContent, read_inline, read_open
from vuserd.errors import CallError, ErrorCode
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.heldfile import HeldFile
from vuserd.fs.openfile import OpenFile
from vuserd.rpc.access import VisibleExports
from vuserd.rpc.caller import Caller
from vuserd.rpc.methods import short
from vuserd.rpc.methods.common import FILE, OPENED, SPLIT, TIMED, call_with_owners
from vuserd.rpc.methods.signature import FLAG, TEXT, Option, integer, method, optional
from vuserd.rpc.results import answers
from vuserd.rpc.results.maps import split_stat_map, stat_map
from vuserd.wire.codec import wire_name

#: The most extents that one call returns.
EXTENTS_MAX: Final = 1000


class FileMethods:
    """What a client can ask of the files of an export.

    Args:
        exports: as each client sees them.
        images: where ``fetch`` gets them.

    """

    def __init__(self, exports: VisibleExports, images: ImageStore) -> None:
        self.exports = exports
        self.images = images

    @method(
        FILE,
        {"follow": Option(FLAG, default=True)} | OPENED | SPLIT | TIMED,
        "map",
        short=short.stat,
        shares=True,
    )
    async def stat(
        self,
        caller: Caller,
        export: str,
        path: bytes,
        *,
        follow: bool,
        file: int | None,
        split_times: bool,
    ) -> dict[str, Any]:
        """Return the attributes of what is at a path, or of an open file."""
        found = self.exports.find(caller.rights, export)
        if file is not None:
            held = caller.files.find(file, export)
            look = functools.partial(held.use, operation=OpenFile.look_again)
        else:
            look = functools.partial(FileSystem.stat, path=path, follow=follow)
        attributes, owners = await call_with_owners(found, look)
        return (split_stat_map if split_times else stat_map)(attributes, owners)

    @method(FILE, TIMED, "str or bin")
    async def readlink(self, caller: Caller, export: str, path: bytes) -> str | bytes:
        """Return a symlink's target."""
        return wire_name(
            await self.exports.find(caller.rights, export).call(lambda files: files.readlink(path))
        )

    @method(FILE, SPLIT | TIMED, "map", since=2)
    async def open(
        self, caller: Caller, export: str, path: bytes, *, split_times: bool
    ) -> dict[str, Any]:
        """Open a regular file for several calls, which are all about what it is now."""
        found = self.exports.find(caller.rights, export)
        caller.files.require_room()

        async def opened(files: FileSystem) -> HeldFile:
            return HeldFile(path, await files.open(path), files)

        held, owners = await call_with_owners(found, opened)
        return (split_stat_map if split_times else stat_map)(held.attributes, owners) | {
            "file": caller.files.add(held, export),
            "settled": held.settled,
            "by_attributes": held.is_known_by_attributes,
        }

    @method({"file": integer()}, {}, "nil", since=2)
    async def close(self, caller: Caller, file: int) -> None:
        """Close an open file."""
        caller.files.close_one(file)

    @method(
        FILE | {"offset": integer(), "length": integer()},
        OPENED | TIMED,
        "bin",
        answer=answers.content,
        weight=lambda arguments, _: min(arguments[-1], READ_MAX),
        short=short.read,
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
        found = self.exports.find(caller.rights, export)
        if file is None:
            return await found.call(lambda files: read_inline(files, path, offset, length))
        held = caller.files.find(file, export)
        read = functools.partial(read_open, offset=offset, length=length)
        return await found.call(lambda files: held.use(files, read))

    @method(
        FILE | {"file": integer(), "offset": integer()},
        {"limit": Option(integer(1, EXTENTS_MAX), EXTENTS_MAX)} | TIMED,
        "map of extents, next",
        since=2,
    )
    async def extents(
        self, caller: Caller, export: str, _: bytes, file: int, offset: int, *, limit: int
    ) -> dict[str, Any]:
        """Return where an open file has data, and no hole."""
        held = caller.files.find(file, export)

        async def ask(opened: OpenFile) -> dict[str, Any]:
            extents, following = await opened.extents(offset, limit)
            return {"extents": [[*extent] for extent in extents], "next": following}

        return await self.exports.find(caller.rights, export).call(
            lambda files: held.use(files, ask)
        )

    @method({"export": TEXT}, TIMED, "map")
    async def statfs(self, caller: Caller, export: str) -> dict[str, Any]:
        """Return the statistics of the export's file system."""
        return (await self.exports.find(caller.rights, export).call(FileSystem.statfs))._asdict()

    @method(FILE, TIMED, "map, and a descriptor", answer=answers.image, short=short.fetch)
    async def fetch(self, caller: Caller, export: str, path: bytes) -> Fetched:
        """Return a sealed image of a file; the receiver gives it back."""
        return await self.images.fetch(self.exports.find(caller.rights, export), path)

    @method({"size": integer(1)}, {}, "int", descriptor=True)
    async def attach(self, caller: Caller, size: int, *, descriptor: int) -> int:
        """Take a client's memory; return the id to load files into it."""
        return await caller.memories.attach(descriptor, size)

    @method(
        {"memory": integer(), "address": integer()} | FILE,
        {"offset": Option(integer(), 0), "length": Option(optional(integer()), None)}
        | OPENED
        | TIMED,
        "map of length",
        answer=answers.loaded,
    )
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
        found = self.exports.find(caller.rights, export)
        if file is None:
            return Loaded(
                await found.call(lambda files: attached.load(files, path, address, offset, length))
            )
        held = caller.files.find(file, export)
        load = functools.partial(attached.load_open, address=address, offset=offset, length=length)
        return Loaded(await found.call(lambda files: held.use(files, load)))

    @method({"memory": integer()}, {}, "nil")
    async def detach(self, caller: Caller, memory: int) -> None:
        """Let go of attached memory, once loads into it have ended."""
        await caller.memories.detach(memory)
