"""A directory read in portions, all of them from one open directory.

Where a directory goes on is told by an offset that means nothing in another open directory: overlay
and many file systems in user space make up a listing when a directory is opened. So it stays open.
Where it cannot, because the backend was lost or it was not read for a while, it is opened anew and
read from its beginning, and what was given before is left out by name.
"""

from protocol.dirent_columns import DirectoryColumns
from protocol.fuse import FileHandle
from vuserd.fs.directories.entries import Below
from vuserd.fs.directories.given import Given
from vuserd.fs.directories.offsets import Offsets, no_end
from vuserd.fs.directories.opened import OpenDirectory
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.nodes import Node


class DirectoryReader:
    """Returns the entries of a directory; a name that is there all the time comes once.

    Args:
        attributes: whether each entry comes with its node's attributes.

    """

    def __init__(self, *, attributes: bool) -> None:
        self.finished = False
        self._attributes = attributes
        self._files: FileSystem | None = None
        self._directory: OpenDirectory | None = None
        self._position = 0
        self._offsets = Offsets()
        self._given = Given()

    @property
    def is_open(self) -> bool:
        """Whether the backend has the directory open."""
        return self._directory is not None

    @property
    def remembered(self) -> int:
        """Bytes of memory for the names that were given."""
        return self._given.remembered

    @property
    def has_begun(self) -> bool:
        """Whether a part was given, and there is more."""
        return bool(self._given)

    async def read(
        self,
        files: FileSystem,
        node: Node,
        limit: int,
        below: Below | None = None,
        *,
        goes_on: bool = False,
    ) -> DirectoryColumns:
        """Return up to ``limit`` entries, and at least one unless it is ``finished`` then.

        Args:
            files: where the directory is.
            node: the directory, which stays in use until :meth:`close`, or until another is given.
            limit: the most entries.
            below: gets nodes of directories that READDIRPLUS looked up, which are the caller's.
            goes_on: whether this is called again at once: what follows may be read ahead.

        Raises:
            FileError: what the backend says.

        """
        directory = self._directory
        if directory is None or self._files is not files or directory.node.id != node.id:
            self.close()
            directory = self.begin(files, node, await files.operations.open_directory(node))
        entries = DirectoryColumns.empty()
        while not entries.names and not self.finished:
            found, following = await files.directories.read_entries(
                directory,
                self._position,
                limit,
                attributes=self._attributes,
                below=below,
                goes_on=goes_on,
            )
            entries = self.take(found, following)
        return entries

    def begin(self, files: FileSystem, node: Node, handle: FileHandle) -> OpenDirectory:
        """Read from a new opening of the directory, which is this reader's to close; return it."""
        self._files, self._position = files, 0
        self._directory = directory = files.directories.opened(node, handle)
        self._offsets = Offsets()
        self._given.come_again()
        return directory

    def take(self, found: DirectoryColumns, following: int | None) -> DirectoryColumns:
        """Take what was read from its place, and where it goes on; return what is new of it.

        Raises:
            FileError: EIO: its offsets lead back.

        """
        is_new = self._given.are_new(found.names)
        entries = found if is_new is None else found.chosen(is_new)
        if following is None:
            self._finish()
        else:
            if self._offsets.lead_back(following):
                raise no_end()
            self._position = following
            self._given.add(entries.names)
        return entries

    def close(self) -> None:
        """Close the directory in the backend; reading goes on from a new opening."""
        directory, self._directory = self._directory, None
        if directory is not None:
            directory.close()
        self._files = None

    def _finish(self) -> None:
        self.finished = True
        self.close()
        self._given = Given()
