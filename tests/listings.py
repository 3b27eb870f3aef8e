"""Directories as the tests list them: a page, or all pages from one listing."""

from collections.abc import Iterable
from itertools import repeat

from protocol.dirent import DirectoryEntry
from protocol.dirent_columns import (
    DirectoryColumns,
    decode_directory_columns,
    last_offset,
    offset_after,
)
from protocol.fuse import Entry
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.listings import Listing


async def page(
    files: FileSystem, path: bytes = b"", *, attributes: bool = False, limit: int = 1000
) -> list[DirectoryEntry]:
    """Return the first entries of a directory; its listing ends here."""
    listing = Listing(path, attributes=attributes)
    try:
        return entries_of(await listing.next_page(files, limit))
    finally:
        listing.close()


async def names(
    files: FileSystem, path: bytes = b"", *, attributes: bool = False, limit: int = 1000
) -> list[bytes]:
    """Return the names of a whole directory, read in pages of ``limit`` entries."""
    listing = Listing(path, attributes=attributes)
    found: list[bytes] = []
    try:
        while not listing.finished:
            entries = await listing.next_page(files, limit)
            assert len(entries.names) <= limit
            assert entries.names or listing.finished
            found += entries.names
    finally:
        listing.close()
    return found


def entries_of(
    columns: DirectoryColumns, offsets: Iterable[int] = repeat(0)
) -> list[DirectoryEntry]:
    """Return what stands in columns, an entry at a time, with the offsets that it has not."""
    rows = zip(columns.names, columns.inos, columns.types, strict=True)
    entries = [
        DirectoryEntry(name, ino, offset, kind, None)
        for (name, ino, kind), offset in zip(rows, offsets, strict=False)
    ]
    for place, node in enumerate(columns.nodes):
        if node:
            found = Entry(node, columns.node_attributes(place))
            entries[place] = entries[place]._replace(entry=found)
    return entries


def decode_by_columns(buffer: bytes, *, plus: bool) -> tuple[list[DirectoryEntry], int | None]:
    """Decode a reply into columns; return it as the plain decoder does."""
    ahead = last_offset(buffer, plus=plus)
    columns, following = decode_directory_columns(buffer, plus=plus)
    assert ahead == following
    count = len(columns.names)
    of_nodes = count if plus else 0
    assert [len(column) for column in columns] == [count] * 3 + [of_nodes] * 2
    offsets = [offset_after(buffer, each, plus=plus) for each in range(1, count + 1)]
    return entries_of(columns, offsets), following
