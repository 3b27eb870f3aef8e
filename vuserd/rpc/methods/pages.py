"""The methods whose results come in pages: listings, walks and trees."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import trio

from vuserd.delivery.inline import READ_MAX
from vuserd.delivery.pages import TreePages
from vuserd.errors import BackendError, FileError
from vuserd.fs.listings import ContinuationTable
from vuserd.fs.listings import Listing as DirectoryListing
from vuserd.fs.walk import TreeWalk
from vuserd.rpc.access import VisibleExports
from vuserd.rpc.caller import Caller
from vuserd.rpc.methods.common import FILE, SPLIT, TIMED, call_with_owners
from vuserd.rpc.methods.signature import FLAG, TOKEN, Option, integer, listing_weight, method
from vuserd.rpc.results import answers
from vuserd.rpc.results.answers import Listing, pack_listing
from vuserd.rpc.results.maps import entry_columns
from vuserd.rpc.results.tree_index import encode_index
from vuserd.wire.codec import wire_name

#: The most entries of one page.
PAGE_MAX: Final = 10_000
#: The most entries of one page of a tree, and the bytes that it may be given.
TREE_PAGE_MAX: Final = 4096
TREE_SIZES: Final = (128 << 10, READ_MAX)
#: The most entries of all pages but the first, while other clients want anything: with attributes,
#: without, and with the files' bytes. Who makes a page, and who takes it, keeps a processor from
#: others meanwhile. What goes into one page stays in one: it can be asked for again of the daemon's
#: successor, and several pages end with their connection.
_SHARED: Final = {True: 500, False: 2000}
_TREE_SHARED: Final = 64
#: What ends the call for a page and not what it is a page of.
_PASSING: Final = (BackendError, FileError)

#: Options of a listing and of a walk.
_PAGE: Final = {
    "attrs": Option(FLAG, default=False),
    "limit": Option(integer(1, PAGE_MAX), 1000),
    "after": Option(TOKEN, None),
    "columns": Option(FLAG, default=False),
} | SPLIT


class PageMethods:
    """What a client can ask of the directories of an export.

    Args:
        exports: as each client sees them.

    """

    def __init__(self, exports: VisibleExports) -> None:
        self.exports = exports

    @method(
        FILE,
        _PAGE | {"ahead": Option(FLAG, default=False)} | TIMED,
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
            limit = _fair(caller, limit, _SHARED[attrs])
        with _kept_or_ended(caller.listings, listing, begun, after):
            entries, owners = await call_with_owners(
                found, lambda files: listing.next_page(files, limit, goes_on=ahead)
            )
            fields = functools.partial(
                entry_columns, entries, "name", owners, attributes=attrs, split_times=split_times
            )
            packed = await pack_listing(caller, len(entries.names), fields, columns=columns)
        return packed.beside(next=_next_token(caller.listings, listing, begun))

    @method(
        FILE,
        _PAGE | TIMED,
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
        begun = (export, path, attrs)
        if after is None:
            walk = TreeWalk(path, attributes=attrs)
        else:
            walk = caller.walks.take(after, begun)
            limit = _fair(caller, limit, _SHARED[attrs])
        with _kept_or_ended(caller.walks, walk, begun, None):
            (entries, problems), owners = await call_with_owners(
                found, lambda files: walk.next_page(files, limit)
            )
            fields = functools.partial(
                entry_columns, entries, "path", owners, attributes=attrs, split_times=split_times
            )
            packed = await pack_listing(caller, len(entries.names), fields, columns=columns)
        return packed.beside(
            problems=[
                {"path": wire_name(problem.path), **problem.error.to_wire()} for problem in problems
            ],
            next=_next_token(caller.walks, walk, begun),
        )

    @method(
        FILE,
        {
            "limit": Option(integer(1, TREE_PAGE_MAX), TREE_PAGE_MAX),
            "size": Option(integer(*TREE_SIZES), 2 << 20),
            "after": Option(TOKEN, None),
            "look_again": Option(FLAG, default=True),
        }
        | SPLIT
        | TIMED,
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
        if after is None:
            pages = TreePages(path)
        else:
            pages = caller.trees.take(after, begun)
            limit = _fair(caller, limit, _TREE_SHARED)
        # Cancelled, as where the call's time is over, it has given nothing of the page.
        passing = (*_PASSING, trio.Cancelled)
        with _kept_or_ended(caller.trees, pages, begun, after, passing):
            fill = functools.partial(pages.next_page, limit=limit, size=size, look_again=look_again)
            page, owners = await call_with_owners(found, fill)
        try:
            following = _next_token(caller.trees, pages, begun)
            head = encode_index(page, owners, following, split_times=split_times)
            return answers.Tree(head, page.content)
        except BaseException:
            page.content.give_back()
            raise


def _fair(caller: Caller, limit: int, shared: int) -> int:
    """Return how many entries a page may have: no more than ``shared`` beside other clients."""
    return limit if caller.is_alone() else min(limit, shared)


_Paged = TypeVar("_Paged", DirectoryListing, TreeWalk, TreePages)


@contextmanager
def _kept_or_ended(
    table: ContinuationTable[_Paged],
    paged: _Paged,
    begun: tuple[object, ...],
    after: bytes | None,
    passing: tuple[type[BaseException], ...] = _PASSING,
) -> Iterator[None]:
    """Make a page in the block; where that fails, end what it is of.

    After what is ``passing`` the page can be asked for again by the token ``after``, if there is
    one: where the backend or a file is to blame.
    """
    try:
        yield
    except BaseException as error:
        if after is not None and isinstance(error, passing):
            table.keep(paged, begun, after)
        else:
            table.end(paged)
        raise


def _next_token(
    table: ContinuationTable[_Paged], paged: _Paged, begun: tuple[object, ...]
) -> bytes | None:
    """Keep what goes on and return its token; end what is finished."""
    if paged.finished:
        table.end(paged)
        return None
    return table.keep(paged, begun)
