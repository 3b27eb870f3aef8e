"""A directory of a walk, from when it is found until all below it was read."""

from collections.abc import Iterable
from typing import Final

from protocol.dirent_columns import DirectoryColumns
from protocol.fuse import FileHandle
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.kept import replaced
from vuserd.fs.nodes import Hold, Node, NodeTable
from vuserd.fs.reader import DirectoryReader

#: Bytes of memory for a directory that is not done.
DIRECTORY_BYTES: Final = 1024


class Directory:
    """A directory to be read, or read on; it keeps its node in use until all below it is done.

    Its node may have come with the entry above, by the look-up that READDIRPLUS is: such a one is
    borrowed. Any other is in use for a hold.
    """

    __slots__ = ("elsewhere", "hold", "ino", "node", "parent", "path", "reader", "unfinished")

    def __init__(
        self, path: bytes, parent: "Directory | None", borrowed: Node | None = None
    ) -> None:
        self.path = path
        self.parent = parent
        self.hold: Hold | None = None
        self.node = borrowed
        #: What it was when it was found first, and whether that says which it is.
        self.ino = None if borrowed is None else borrowed.attributes.ino
        self.elsewhere = borrowed is not None and borrowed.elsewhere
        #: None before a part of it was read that is not all of it.
        self.reader: DirectoryReader | None = None
        #: Itself while it is not read to its end, and the directories below it.
        self.unfinished = 1

    @property
    def above(self) -> bytes:
        """What stands before the names in it."""
        return self.path + b"/" if self.path else b""

    @property
    def remembered(self) -> int:
        """Bytes of memory that it takes."""
        of_reader = 0 if self.reader is None else self.reader.remembered
        return DIRECTORY_BYTES + len(self.path) + of_reader

    @property
    def is_open(self) -> bool:
        """Whether the backend has it open for its reader."""
        return self.reader is not None and self.reader.is_open

    @property
    def has_begun(self) -> bool:
        """Whether a part was read, and there is more."""
        return self.reader is not None and self.reader.has_begun

    def found(self, node: Node) -> None:
        """Take the directory's node.

        Raises:
            CallError: CHANGED: it is another directory than the one that a part was read of, or
                that is not known.

        """
        elsewhere = self.elsewhere or node.elsewhere
        if self.has_begun and (elsewhere or node.attributes.ino != self.ino):
            raise replaced()
        self.ino, self.elsewhere = node.attributes.ino, node.elsewhere
        self.node = node

    def read_on(
        self,
        files: FileSystem,
        handle: FileHandle,
        taken: Iterable[tuple[DirectoryColumns, int]],
    ) -> None:
        """Leave the rest to a reader, with what was taken and the opening, now the reader's."""
        assert self.node is not None
        self.reader = DirectoryReader(attributes=True)
        self.reader.begin(files, self.node, handle)
        for entries, following in taken:
            self.reader.take(entries, following)

    def leave(self, nodes: NodeTable) -> None:
        """Close it, and give its node back."""
        if self.reader is not None:
            self.reader.close()
        hold, self.hold = self.hold, None
        node, self.node = self.node, None
        if hold is not None:
            hold.leave()
        elif node is not None:
            nodes.give_back(node.id)
