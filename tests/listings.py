"""Directories as the tests list them: a page, or all pages from one listing."""

from protocol.dirent import DirectoryEntry
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.listings import Listing


async def page(
    files: FileSystem, path: bytes = b"", *, attributes: bool = False, limit: int = 1000
) -> list[DirectoryEntry]:
    """Return the first entries of a directory; its listing ends here."""
    listing = Listing(path, attributes=attributes)
    try:
        return await listing.next_page(files, limit)
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
            assert len(entries) <= limit
            assert entries or listing.finished
            found += [entry.name for entry in entries]
    finally:
        listing.close()
    return found
