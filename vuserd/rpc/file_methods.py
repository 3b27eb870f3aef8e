"""The methods about files: from checked parameters to what the export that serves now does."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from vuserd.delivery.attached import Loaded
from vuserd.delivery.images import Fetched, ImageStore
from vuserd.delivery.inline import READ_MAX, FileContent, read_inline, read_open
from vuserd.delivery.pages import TreePages
from vuserd.errors import BackendError, CallError, ErrorCode, FileError
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.heldfile import HeldFile
from vuserd.fs.listings import ContinuationTable
from vuserd.fs.listings import Listing as DirectoryListing
from vuserd.fs.openfile import OpenFile
from vuserd.fs.owners import Owners
from vuserd.fs.walk import TreeWalk
from vuserd.rpc import short
from vuserd.rpc.access import VisibleExports
from vuserd.rpc.caller import Caller
from vuserd.rpc.results import answers
from vuserd.rpc.results.answers import Listing, pack_listing
from vuserd.rpc.results.maps import entry_parts, split_stat_map, stat_map
from vuserd.rpc.results.tree_index import encode_index
from vuserd.rpc.signature import (
    FLAG,
    PATH,
    TEXT,
    TIMEOUT,
    TOKEN,
    Option,
    integer,
    listing_weight,
    method,
    optional,
    seconds,
)
from vuserd.wire.codec import wire_name

#: The most entries of one page.
PAGE_MAX: Final = 10_000
#: The most entries of one page of a tree, and the bytes that it may be given.
TREE_PAGE_MAX: Final = 4096
TREE_SIZES: Final = (128 << 10, READ_MAX)
#: The most extents that one call returns.
EXTENTS_MAX: Final = 1000
#: The most seconds that a client may give a call.
TIMEOUT_MAX: Final = 86_400.0

#: Parameters and options that many of the methods have.
_FILE: Final = {"export": TEXT, "path": PATH}
_TIMED: Final = {TIMEOUT: Option(optional(seconds(TIMEOUT_MAX)), None)}
_OPENED: Final = {"file": Option(optional(integer()), None)}
_SPLIT: Final = {"split_times": Option(FLAG, default=False)}
_PAGE: Final = {
    "attrs": Option(FLAG, default=False),
    "limit": Option(integer(1, PAGE_MAX), 1000),
    "after": Option(TOKEN, None),
    "columns": Option(FLAG, default=False),
} | _SPLIT


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
        _FILE,
        {"follow": Option(FLAG, default=True)} | _OPENED | _SPLIT | _TIMED,
        "map",
        short=short.stat,
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
        attributes, owners = await found.call(functools.partial(_with_owners, look))
        return (split_stat_map if split_times else stat_map)(attributes, owners)

    @method(_FILE, _TIMED, "str or bin")
    async def readlink(self, caller: Caller, export: str, path: bytes) -> str | bytes:
        """Return a symlink's target."""
        return wire_name(
            await self.exports.find(caller.rights, export).call(lambda files: files.readlink(path))
        )

    @method(
        _FILE,
        _PAGE | {"ahead": Option(FLAG, default=False)} | _TIMED,
        "map of entries (with columns: a map of lists), next",
        answer=answers.listing,
        weight=listing_weight,
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
        columns: bool,
        split_times: bool,
        ahead: bool,
    ) -> Listing:
        """Return a page of a directory; a listing that goes on stays this connection's."""
        found = self.exports.find(caller.rights, export)
        begun = (export, path, attrs)
        if after is None:
            listing = DirectoryListing(path, attributes=attrs)
        else:
            listing = caller.listings.take(after, begun)
        try:
            entries, owners = await found.call(
                functools.partial(
                    _with_owners, lambda files: listing.next_page(files, limit, goes_on=ahead)
                )
            )
        except BaseException as error:
            if after is not None and isinstance(error, BackendError | FileError):
                caller.listings.keep(listing, begun, after)  # it can be asked again
            else:
                caller.listings.end(listing)
            raise
        return await pack_listing(
            caller,
            len(entries.names),
            entry_parts(entries, "name", owners, attributes=attrs, split_times=split_times),
            columns=columns,
            next=_next_token(caller.listings, listing, begun),
        )

    @method(
        _FILE,
        _PAGE | _TIMED,
        "map of entries (with columns: a map of lists), problems, next",
        answer=answers.listing,
        weight=listing_weight,
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
        columns: bool,
        split_times: bool,
    ) -> Listing:
        """Return a page of the tree below a directory; the walk stays this connection's."""
        found = self.exports.find(caller.rights, export)
        begun = (export, path)
        if after is None:
            walk = TreeWalk(path, attributes=attrs)
        else:
            walk = caller.walks.take(after, begun)
        try:
            (entries, problems), owners = await found.call(
                functools.partial(_with_owners, lambda files: walk.next_page(files, limit))
            )
        except BaseException:
            caller.walks.end(walk)
            raise
        return await pack_listing(
            caller,
            len(entries.names),
            entry_parts(entries, "path", owners, attributes=attrs, split_times=split_times),
            columns=columns,
            problems=[
                {"path": wire_name(problem.path), **problem.error.to_wire()} for problem in problems
            ],
            next=_next_token(caller.walks, walk, begun),
        )

    @method(
        _FILE,
        {
            "limit": Option(integer(1, TREE_PAGE_MAX), TREE_PAGE_MAX),
            "size": Option(integer(*TREE_SIZES), 2 << 20),
            "after": Option(TOKEN, None),
            "look_again": Option(FLAG, default=True),
        }
        | _SPLIT
        | _TIMED,
        "bin of index and bytes",
        since=3,
        answer=answers.tree,
        weight=lambda _, options: options["size"],
    )
    async def tree(
        self,
        caller: Caller,
        export: str,
        path: bytes,
        *,
        limit: int,
        size: int,
        after: bytes | None,
        look_again: bool,
        split_times: bool,
    ) -> answers.Tree:
        """Return a page of the tree below a directory, with the bytes of its small files."""
        found = self.exports.find(caller.rights, export)
        begun = (export, path)
        pages = TreePages(path) if after is None else caller.trees.take(after, begun)
        try:
            fill = functools.partial(pages.next_page, limit=limit, size=size, look_again=look_again)
            page, owners = await found.call(functools.partial(_with_owners, fill))
        except BaseException as error:
            if after is not None and isinstance(error, BackendError | FileError):
                caller.trees.keep(pages, begun, after)  # it can be asked again
            else:
                caller.trees.end(pages)
            raise
        try:
            following = _next_token(caller.trees, pages, begun)
            head = encode_index(page, owners, following, split_times=split_times)
            return answers.Tree(head, page.content)
        except BaseException:
            page.content.give_back()
            raise

    @method(_FILE, _SPLIT | _TIMED, "map", since=2)
    async def open(
        self, caller: Caller, export: str, path: bytes, *, split_times: bool
    ) -> dict[str, Any]:
        """Open a regular file for several calls, which are all about what it is now."""
        found = self.exports.find(caller.rights, export)
        caller.files.require_room()

        async def opened(files: FileSystem) -> HeldFile:
            return HeldFile(path, await files.open(path), files)

        held, owners = await found.call(functools.partial(_with_owners, opened))
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
        _FILE | {"offset": integer(), "length": integer()},
        _OPENED | _TIMED,
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
        _FILE | {"file": integer(), "offset": integer()},
        {"limit": Option(integer(1, EXTENTS_MAX), EXTENTS_MAX)} | _TIMED,
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

    @method({"export": TEXT}, _TIMED, "map")
    async def statfs(self, caller: Caller, export: str) -> dict[str, Any]:
        """Return the statistics of the export's file system."""
        return (await self.exports.find(caller.rights, export).call(FileSystem.statfs))._asdict()

    @method(_FILE, _TIMED, "map, and a descriptor", answer=answers.image, short=short.fetch)
    async def fetch(self, caller: Caller, export: str, path: bytes) -> Fetched:
        """Return a sealed image of a file; the receiver gives it back."""
        return await self.images.fetch(self.exports.find(caller.rights, export), path)

    @method({"size": integer(1)}, {}, "int", descriptor=True)
    async def attach(self, caller: Caller, size: int, *, descriptor: int) -> int:
        """Take a client's memory; return the id to load files into it."""
        return await caller.memories.attach(descriptor, size)

    @method(
        {"memory": integer(), "address": integer()} | _FILE,
        {"offset": Option(integer(), 0), "length": Option(optional(integer()), None)}
        | _OPENED
        | _TIMED,
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


_Result = TypeVar("_Result")


async def _with_owners(
    operation: Callable[[FileSystem], Awaitable[_Result]], files: FileSystem
) -> tuple[_Result, Owners | None]:
    """Do an operation on the files; return how the backend that answered sees their owners, too."""
    return await operation(files), files.owners


_Paged = TypeVar("_Paged", DirectoryListing, TreeWalk, TreePages)


def _next_token(
    table: ContinuationTable[_Paged], paged: _Paged, begun: tuple[object, ...]
) -> bytes | None:
    """Keep what goes on and return its token; end what is finished."""
    if paged.finished:
        table.end(paged)
        return None
    return table.keep(paged, begun)
